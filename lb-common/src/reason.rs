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
    ($($(#[$doc:meta])+ $name:ident = $number:literal, $label:literal, $verdict:ident;)+) => {
        /// Why a packet got its verdict.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $name = $number,)+
        }

        impl Reason {
            /// Every reason in the order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// Metric label: stable, lower case with underscores.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
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
    /// To a VIP, of a protocol that is not balanced (ICMP, VRRP): the kernel's.
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
    /// The flow's backend is down.
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
    /// `connect()` to a service from this node that no backend can take.
    ConnectNoBackend = 37, "connect_no_backend", Drop;
    /// A RST of a flow that has no nat entry: there is nothing to translate it to.
    NoFlow = 38, "no_flow", Drop;
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
