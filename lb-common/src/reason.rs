//! Reasons: why a packet got its verdict.
//!
//! A reason is the return value of the pipeline, the index into `reason_stats` and the metric
//! label. Numbers are append-only: a retired reason keeps its number (as a comment), so that
//! recorded counters never change their meaning.

/// What a program does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// To this node's own stack, possibly rewritten.
    Pass,
    /// Discarded.
    Drop,
    /// Out of the interface that it came in through.
    Tx,
    /// Out of another interface.
    Redirect,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal, $verdict:ident;)+) => {
        /// Why a packet got its verdict.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Reason {
            /// Every reason in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Metric label: stable, lower case with underscores.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What it means, in a sentence.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+ }
            }

            /// What the program does with the packet.
            #[inline(always)]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$name => Verdict::$verdict,)+ }
            }
        }
    };
}

reasons! {
    /// Reserved: a counter that is not zero here is a bug.
    Unknown = 0, "unknown", Drop;
    /// Neither IPv4, IPv6 nor ARP.
    NotIp = 1, "not_ip", Pass;
    /// Not addressed to a VIP.
    NotVip = 2, "not_vip", Pass;
    /// To a VIP, but to another station's MAC (a flooded frame).
    NotOurMac = 3, "not_our_mac", Pass;
    /// To a VIP, but to no service (ssh, another protocol): the kernel's.
    NotBalanced = 4, "not_balanced", Pass;
    /// ARP or neighbour discovery that no fence holds back.
    Neighbour = 5, "neighbour", Pass;
    /// Delivered to this node's own backend.
    Local = 6, "local", Pass;
    /// Forwarded by a peer and delivered to this node's own backend.
    LocalFromPeer = 7, "local_from_peer", Pass;
    /// Sent to the backend's node, addresses untouched.
    Dsr = 8, "dsr", Tx;
    /// Sent to the backend's node through another interface, addresses untouched.
    DsrRedirect = 9, "dsr_redirect", Redirect;
    /// Translated and sent to the backend.
    Nat = 10, "nat", Tx;
    /// Translated and sent to the backend through another interface.
    NatRedirect = 11, "nat_redirect", Redirect;
    /// A nat backend's reply, translated back and sent to the client.
    NatReply = 12, "nat_reply", Tx;
    /// A nat backend's reply, translated back and sent to the client through another interface.
    NatReplyRedirect = 13, "nat_reply_redirect", Redirect;
    /// Shorter than the header that it announces, or than its IP length says.
    Truncated = 14, "truncated", Drop;
    /// IPv4 header with a wrong version, header length or total length.
    BadIpv4Header = 15, "bad_ipv4_header", Drop;
    /// IPv6 header with a wrong version or payload length.
    BadIpv6Header = 16, "bad_ipv6_header", Drop;
    /// More IPv6 extension headers, or longer ones, than are walked.
    Ipv6Extensions = 17, "ipv6_extensions", Drop;
    /// TCP header with a wrong data offset.
    BadTcpHeader = 18, "bad_tcp_header", Drop;
    /// A combination of TCP flags that no stack sends (none, SYN+FIN, SYN+RST, FIN without ACK).
    BadTcpFlags = 19, "bad_tcp_flags", Drop;
    /// A fragment to a service: only the first one has ports, so none is forwarded.
    Fragment = 20, "fragment", Drop;
    /// A source address that no client has (multicast, broadcast, loopback, zero, the VIP itself).
    BadSource = 21, "bad_source", Drop;
    /// No backend can take the flow.
    NoBackend = 22, "no_backend", Drop;
    /// The only usable backends are on the node that the packet came from.
    NoOtherBackend = 23, "no_other_backend", Drop;
    /// The next hop's MAC is not known yet.
    Unresolved = 24, "unresolved", Drop;
    /// Retired: the flow's backend is down. Its segments are answered with RST (`flow_reset`).
    BackendDown = 25, "backend_down", Drop;
    /// A request for VIP:backend port, where that is no service: answering it would put the
    /// service's port into the replies.
    BackendPort = 26, "backend_port", Drop;
    /// To the VIP from a backend's port range, but no nat flow has this return path.
    NatUnknownReply = 27, "nat_unknown_reply", Drop;
    /// No free source port towards the nat backend.
    NatPortsExhausted = 28, "nat_ports_exhausted", Drop;
    /// The conntrack entry could not be written.
    ConntrackFailed = 29, "conntrack_failed", Drop;
    /// ARP for a VIP while this node's lease is not valid.
    FencedArp = 30, "fenced_arp", Drop;
    /// Neighbour discovery for a VIP while this node's lease is not valid.
    FencedNd = 31, "fenced_nd", Drop;
    /// tc egress: a local backend's reply got the VIP's port.
    ReplyTranslated = 32, "reply_translated", Pass;
    /// tc egress: nothing of ours.
    EgressOther = 33, "egress_other", Pass;
    /// A table entry contradicts another one: the controller is in the middle of a change, or a bug.
    Inconsistent = 34, "inconsistent", Drop;
    /// `connect()` to a service from this node, sent to the local backend.
    ConnectLocal = 35, "connect_local", Pass;
    /// `connect()` to a service from this node, sent to a backend elsewhere.
    ConnectRemote = 36, "connect_remote", Pass;
    /// `connect()` or a UDP packet from this node to a service that no backend can take.
    ConnectNoBackend = 37, "connect_no_backend", Drop;
    /// A RST of a flow that has no nat entry: there is nothing to translate it to.
    NoFlow = 38, "no_flow", Drop;
    /// A SYN that no backend can take, answered with RST.
    NoBackendReset = 39, "no_backend_reset", Tx;
    /// To VIP:backend port, where that is no service: answered with RST.
    BackendPortReset = 40, "backend_port_reset", Tx;
    /// A segment of a flow whose backend went down, answered with RST.
    FlowReset = 41, "flow_reset", Tx;
    /// A client's RST for a flow whose backend went down: it has heard.
    ResetConfirmed = 42, "reset_confirmed", Drop;
    /// A segment that wanted a RST as its answer, but its checksum is wrong.
    BadChecksum = 43, "bad_checksum", Drop;
    /// A new flow from a source that the service refuses.
    SourceDenied = 44, "source_denied", Drop;
    /// A new flow from a source that opens too many.
    SourceRate = 45, "source_rate", Drop;
    /// Sent to the backend's node without a conntrack entry: there are too many new flows.
    DsrStateless = 46, "dsr_stateless", Tx;
    /// Sent to the backend's node through another interface without a conntrack entry.
    DsrStatelessRedirect = 47, "dsr_stateless_redirect", Redirect;
    /// A new nat flow while there are too many new flows: nat cannot do without an entry.
    Flood = 48, "flood", Drop;
    /// An ICMP error about a flow of this node's own backend, delivered to it.
    IcmpLocal = 49, "icmp_local", Pass;
    /// An ICMP error about a flow, sent to its backend's node.
    IcmpDsr = 50, "icmp_dsr", Tx;
    /// An ICMP error about a flow, sent to its backend's node through another interface.
    IcmpDsrRedirect = 51, "icmp_dsr_redirect", Redirect;
    /// An ICMP error about a reply, translated and sent to the nat backend.
    IcmpNat = 52, "icmp_nat", Tx;
    /// An ICMP error about a reply, translated and sent to the nat backend through another interface.
    IcmpNatRedirect = 53, "icmp_nat_redirect", Redirect;
    /// An ICMP error about a request, translated and sent to the client of a nat flow.
    IcmpNatReply = 54, "icmp_nat_reply", Tx;
    /// An ICMP error about a request, translated and sent to the client through another interface.
    IcmpNatReplyRedirect = 55, "icmp_nat_reply_redirect", Redirect;
    /// ICMP to a VIP that is about no flow of ours: the kernel's.
    IcmpOther = 56, "icmp_other", Pass;
    /// UDP header with a wrong length.
    BadUdpHeader = 57, "bad_udp_header", Drop;
    /// To a VIP, with VLAN tags that are no uplink's: the kernel's.
    NotOurVlan = 58, "not_our_vlan", Pass;
    /// The next hop needs other VLAN tags than the frame has, and XDP cannot change their number.
    VlanMismatch = 59, "vlan_mismatch", Drop;
    /// No free source port towards the nat backend: the SYN is answered with RST.
    NatPortsReset = 60, "nat_ports_reset", Tx;
    /// Forwarded by a peer, to be forwarded once more, and its TTL has run out.
    TtlExpired = 61, "ttl_expired", Drop;
    /// A packet that wants an answer, which could not be made.
    AnswerFailed = 62, "answer_failed", Drop;
    /// `sk_lookup`: given to the listener of a local backend that listens on one address only.
    ListenerAssigned = 63, "listener_assigned", Pass;
    /// A UDP packet to a service, sent by a process on this node: to the local backend.
    SendLocal = 64, "send_local", Pass;
    /// A UDP packet to a service, sent by a process on this node: to a backend elsewhere.
    SendRemote = 65, "send_remote", Pass;
    /// To a VIP whose owner takes only what is for a service (`accept = false`), and for no service.
    NotAccepted = 66, "not_accepted", Drop;
}

impl Reason {
    /// Number of reasons: the size of `reason_stats`.
    pub const COUNT: usize = Self::ALL.len();

    /// The counter index.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counter indices are the position in `ALL`: no gaps, no reordering.
    #[test]
    fn numbers_are_dense_and_in_order() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index() as usize, position, "{reason:?}");
        }
    }

    /// Every reason is explained by sentences.
    #[test]
    fn every_reason_has_a_text() {
        for reason in Reason::ALL {
            let text = reason.text();
            assert!(text.ends_with('.') && !text.starts_with(' '), "{text:?}");
        }
        let text = "Sent to the backend's node, addresses untouched.";
        assert_eq!(Reason::Dsr.text(), text);
    }

    /// A label is a metric label: unique, lower case.
    #[test]
    fn labels_are_unique_words() {
        let mut labels: Vec<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Reason::COUNT);
        for label in labels {
            assert!(
                label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{label}"
            );
        }
    }
}
