//! The words of keepalived.conf that become no key, and why.

use super::{
    super::{Fate, ledger::Ledger},
    parse::Statement,
};

/// What becomes of a word and all that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// xvip needs nothing in its place: why.
    Nothing(&'static str),
    /// Somebody must do something: what.
    ByHand(&'static str),
}

impl Known {
    /// The same for a report.
    pub(super) fn fate(self) -> Fate {
        match self {
            Self::Nothing(why) => Fate::NoEquivalent(why.to_owned()),
            Self::ByHand(what) => Fate::ByHand(what.to_owned()),
        }
    }
}

/// Claims a statement and everything in its block.
pub(super) fn claim_all(statement: &Statement, known: &Known, ledger: &Ledger) {
    claim_each(statement, &known.fate(), ledger);
}

/// The same for what is said with words of its own.
pub(super) fn claim_each(statement: &Statement, fate: &Fate, ledger: &Ledger) {
    statement.each(&mut |statement| ledger.claim(&statement.ids(), fate));
}

/// Claims the words of a statement.
pub(super) fn claim(statement: &Statement, known: &Known, ledger: &Ledger) {
    ledger.claim(&statement.ids(), &known.fate());
}

const MAIL: &str = "xvip sends no mail: watch its log or `xvip status --json`";
const PROCESS: &str = "xvip is one process; systemd's unit sets scheduling and limits";
const REALTIME: &str = "xvip takes real-time scheduling and keeps its memory where adverts are below \
                        100 ms: see node.realtime";
const FIREWALL: &str = "xvip writes no firewall rules";
const BUFFERS: &str = "xvip sizes its sockets itself";
const SNMP: &str = "xvip has no SNMP and no D-Bus: ask `xvip status --json`";
const SCRIPTS: &str = "xvip runs programs by the user that its configuration says, and does not look who can change \
                       them: see that only root can change what root runs";
const CHECKS_OF_ADVERTS: &str = "xvip checks every advert completely";
const ANNOUNCE: &str = "xvip announces addresses at once, again as vrrp.garp_repeat says, and after another router \
                        claimed them; more at once would be ignored by neighbours";
const ADVERTS: &str = "xvip answers lower priorities as RFC 9568 says";
const DELETED: &str =
    "for xvip an instance that a reload takes out stops: write notify.stop if that must be told";
const FIFO: &str = "node.notify_fifo also tells of backends, in other words: BACKEND \"SERVICE/BACKEND\" UP, DRAINING or \
                    DOWN";
const NOTIFY_OF_SERVERS: &str =
    "xvip runs no programs for backends: read node.notify_fifo, whose BACKEND lines tell";
const PRIORITY_CHANGES: &str =
    "xvip tells of changes of state only: the log has those of priorities";
const ROUTES: &str = "xvip moves addresses only, no routes and no rules: add them to the system's \
                      network configuration";
const VMAC: &str = "xvip makes no interface for a virtual MAC: adverts to the group leave from it, and all \
                    else from vrrp.interface's own";
const LVS: &str = "xvip does not use IPVS";

/// Words of a section's beginning.
pub(super) fn top_level(keyword: &str) -> Option<Known> {
    Some(match keyword {
        "static_ipaddress" | "static_routes" | "static_rules" | "track_group" => Known::ByHand(
            "xvip adds no static addresses, routes and rules: add them to the system's network \
             configuration",
        ),
        "garp_group" => Known::Nothing(ANNOUNCE),
        "linkbeat_interfaces" | "linkbeat_use_polling" | "interface_up_down_delays" => {
            Known::Nothing("xvip takes the kernel's word for the state of an interface")
        }
        "net_namespace" | "net_namespace_ipvs" | "namespace_with_ipsets" => Known::ByHand(
            "start xvip in that network namespace: NetworkNamespacePath= in its systemd unit",
        ),
        "instance" => {
            Known::ByHand("node.instance names an xvip; two of them share no network namespace")
        }
        "use_pid_dir" | "child_wait_time" => Known::Nothing(PROCESS),
        "SSL" => Known::ByHand(
            "certificates of SSL_GET: write client_cert_file, client_key_file and ca_file into \
             [service.health]",
        ),
        "bfd_instance" => Known::ByHand(
            "xvip has no BFD: a short vrrp.advert_interval finds a dead owner as fast",
        ),
        _ => return None,
    })
}

/// Words of `global_defs`.
pub(super) fn global(keyword: &str) -> Option<Known> {
    Some(match keyword {
        "notification_email"
        | "notification_email_from"
        | "smtp_server"
        | "smtp_helo_name"
        | "smtp_connect_timeout"
        | "smtp_alert"
        | "smtp_alert_vrrp"
        | "smtp_alert_checker"
        | "no_email_faults"
        | "no_checker_emails"
        | "rs_init_notifies" => Known::Nothing(MAIL),
        "router_id" => {
            Known::Nothing("it names the machine in keepalived's mails; xvip has node.name")
        }
        "vrrp_rt_priority" | "vrrp_no_swap" | "vrrp_rlimit_rttime" => Known::Nothing(REALTIME),
        "process_names"
        | "process_name"
        | "vrrp_process_name"
        | "checker_process_name"
        | "lvs_process_name"
        | "bfd_process_name"
        | "max_auto_priority"
        | "min_auto_priority_delay"
        | "vrrp_priority"
        | "checker_priority"
        | "bfd_priority"
        | "checker_no_swap"
        | "bfd_no_swap"
        | "vrrp_cpu_affinity"
        | "checker_cpu_affinity"
        | "bfd_cpu_affinity"
        | "checker_rt_priority"
        | "bfd_rt_priority"
        | "checker_rlimit_rttime"
        | "bfd_rlimit_rttime"
        | "vrrp_rlimit_rtime"
        | "checker_rlimit_rtime"
        | "bfd_rlimit_rtime"
        | "umask"
        | "use_pid_dir"
        | "data_use_instance"
        | "instance"
        | "child_wait_time" => Known::Nothing(PROCESS),
        "tmp_config_directory"
        | "config_save_dir"
        | "reload_check_config"
        | "include_check"
        | "reload_file"
        | "random_seed" => {
            Known::Nothing("xvip reads one file, and refuses a wrong one at a reload")
        }
        "reload_time_file" | "reload_repeat" => {
            Known::ByHand("xvip reloads when it is told to: run `xvip reload` by a timer")
        }
        "startup_script"
        | "startup_script_timeout"
        | "shutdown_script"
        | "shutdown_script_timeout" => {
            Known::ByHand("write ExecStartPre= and ExecStopPost= into xvip's systemd unit")
        }
        "enable_script_security" | "use_symlink_paths" => Known::Nothing(SCRIPTS),
        "script_user" => Known::ByHand("it names nobody: write the user of each program"),
        "state_dump_file" | "stats_dump_file" | "json_dump_file" | "json_version" => {
            Known::Nothing("`xvip status --json` shows all that there is")
        }
        "iproute_usr_dir" | "iproute_etc_dir" => {
            Known::Nothing("they are about names of routing tables, of which xvip has none")
        }
        "checker_log_all_failures" | "log_unknown_vrids" => {
            Known::Nothing("xvip logs what changes a state; `xvip status` counts the rest")
        }
        "default_interface" => Known::Nothing("every [[vrrp]] names its interface"),
        "vrrp_mcast_group4" | "vrrp_mcast_group6" => {
            Known::ByHand("xvip uses the groups of RFC 9568, 224.0.0.18 and ff02::12")
        }
        _ => return global_more(keyword),
    })
}

/// The rest of them: about the network and the world outside.
fn global_more(keyword: &str) -> Option<Known> {
    Some(match keyword {
        "lvs_sync_daemon" | "lvs_timeouts" | "lvs_flush" | "lvs_flush_on_stop"
        | "lvs_flush_onstop" | "iptables_ipvs" => Known::Nothing(LVS),
        "vrrp_garp_master_delay"
        | "vrrp_garp_master_repeat"
        | "vrrp_garp_lower_prio_delay"
        | "vrrp_garp_lower_prio_repeat"
        | "vrrp_garp_master_refresh"
        | "vrrp_garp_master_refresh_repeat"
        | "vrrp_garp_interval"
        | "vrrp_gna_interval"
        | "vrrp_min_garp"
        | "vrrp_garp_extra_if"
        | "vrrp_vmac_garp_intvl" => Known::Nothing(ANNOUNCE),
        "vrrp_down_timer_adverts" => Known::ByHand(
            "xvip takes over after 3 adverts, as RFC 9568 says: change vrrp.advert_interval",
        ),
        "vrrp_lower_prio_no_advert" | "vrrp_higher_prio_send_advert" => Known::Nothing(ADVERTS),
        "nftables"
        | "nftables_priority"
        | "nftables_counters"
        | "nftables_ifindex"
        | "nftables_ipvs"
        | "nftables_ipvs_priority"
        | "nftables_ipvs_start_fwmark"
        | "vrrp_iptables"
        | "vrrp_ipsets"
        | "disable_local_igmp" => Known::Nothing(FIREWALL),
        "vrrp_check_unicast_src" | "vrrp_skip_check_adv_addr" => Known::Nothing(CHECKS_OF_ADVERTS),
        "snmp_socket"
        | "enable_snmp_vrrp"
        | "enable_snmp_keepalived"
        | "enable_snmp_checker"
        | "enable_snmp_rfc"
        | "enable_snmp_rfcv2"
        | "enable_snmp_rfcv3"
        | "enable_traps"
        | "enable_dbus"
        | "dbus_service_name"
        | "dbus_no_interface_name" => Known::Nothing(SNMP),
        "lvs_notify_fifo" => Known::ByHand(FIFO),
        "fifo_write_vrrp_states_on_reload" => Known::ByHand(
            "xvip tells of states that change, by a reload as well: ask `xvip status --json` for those that stay",
        ),
        "vrrp_notify_priority_changes" => Known::ByHand(PRIORITY_CHANGES),
        "dynamic_interfaces" => Known::Nothing("xvip waits for its interfaces"),
        "vmac_prefix" | "vmac_addr_prefix" => Known::Nothing(VMAC),
        "linkbeat_use_polling" => {
            Known::Nothing("xvip takes the kernel's word for the state of an interface")
        }
        "vrrp_owner_ignore_adverts" => {
            Known::Nothing("an xvip of priority 255 listens to nobody either")
        }
        "net_namespace" | "net_namespace_ipvs" | "namespace_with_ipsets" => {
            return top_level(keyword);
        }
        other if other.ends_with("_rcv_bufs") || other.ends_with("_rcv_bufs_force") => {
            Known::Nothing(BUFFERS)
        }
        "vrrp_rx_bufs_policy" | "vrrp_rx_bufs_multiplier" => Known::Nothing(BUFFERS),
        _ => return None,
    })
}

/// Words of `vrrp_instance` and `vrrp_sync_group`.
pub(super) fn instance(keyword: &str) -> Option<Known> {
    Some(match keyword {
        "use_vmac_addr" | "vmac_xmit_base" => Known::Nothing(VMAC),
        "use_ipvlan" => Known::Nothing("xvip adds the addresses to vrrp.interface itself"),
        "native_ipv6" => Known::Nothing("the addresses tell the family"),
        "dont_track_primary" => Known::Nothing(
            "an owner whose interface is down is heard by nobody, and others take over",
        ),
        "mcast_dst_ip" => Known::ByHand("xvip uses the groups of RFC 9568: write unicast_peers"),
        "track_src_ip" => Known::Nothing("an xvip without its source address sends no adverts"),
        "check_unicast_src" | "skip_check_adv_addr" => Known::Nothing(CHECKS_OF_ADVERTS),
        "unicast_fault_no_peer" => Known::Nothing("xvip sends to its unicast_peers only"),
        "old_unicast_checksum" => {
            Known::ByHand("xvip has no checksum of keepalived before 1.3.6: upgrade those nodes")
        }
        "garp_master_delay"
        | "garp_master_repeat"
        | "garp_lower_prio_delay"
        | "garp_lower_prio_repeat"
        | "garp_master_refresh"
        | "garp_master_refresh_repeat"
        | "garp_extra_if"
        | "vmac_garp_intvl" => Known::Nothing(ANNOUNCE),
        "timer_expired_backup" | "thread_timer_expired" => {
            Known::Nothing("an xvip that was held up gives the addresses up when its lease is over")
        }
        "owner_ignore_adverts" => {
            Known::Nothing("an xvip of priority 255 listens to nobody either")
        }
        "no_virtual_ipaddress" => Known::ByHand(
            "an instance of xvip has addresses: leave it out if no other one says them",
        ),
        "down_timer_adverts" => Known::ByHand(
            "xvip takes over after 3 adverts, as RFC 9568 says: change vrrp.advert_interval",
        ),
        "lower_prio_no_advert" | "higher_prio_send_advert" => Known::Nothing(ADVERTS),
        "promote_secondaries" => {
            Known::Nothing("a VIP is never the first address of an interface, so none goes with it")
        }
        "virtual_routes" | "virtual_rules" => Known::ByHand(ROUTES),
        "preempt" => Known::Nothing("preempt = true is xvip's default"),
        "debug" => Known::Nothing("xvip run --log-level sets what is logged"),
        "notify_deleted" => Known::ByHand(DELETED),
        "notify_master_rx_lower_pri" | "notify_priority_changes" => Known::ByHand(PRIORITY_CHANGES),
        "smtp_alert" => Known::Nothing(MAIL),
        "kernel_rx_buf_size" => Known::Nothing(BUFFERS),
        "linkbeat_use_polling" => {
            Known::Nothing("xvip takes the kernel's word for the state of an interface")
        }
        "vrf" => Known::ByHand("xvip has no VRF: start it in a network namespace"),
        "lvs_sync_daemon_interface" => Known::Nothing(LVS),
        _ => return None,
    })
}

/// Words of `virtual_server` and `real_server`, with checks.
pub(super) fn lvs(keyword: &str) -> Option<Known> {
    Some(match keyword {
        "hashed" | "flag-1" | "flag-2" | "flag-3" | "sh-port" | "sh-fallback" | "mh-port"
        | "mh-fallback" => Known::Nothing("xvip chooses by Maglev hashing of addresses and ports"),
        "ops" => {
            Known::Nothing("UDP packets of one source stay at one backend for service.idle_timeout")
        }
        "persistence_engine" | "persistence_timeout" | "persistence_granularity" => Known::ByHand(
            "xvip has no persistence: each new connection goes where the hash of its addresses and \
             ports says; do without, or keep a balancer that has it",
        ),
        "ha_suspend" => Known::Nothing("every xvip checks, so that a new owner knows at once"),
        "smtp_alert" => Known::Nothing(MAIL),
        "snmp_name" => Known::Nothing(SNMP),
        "alpha" => Known::Nothing(
            "service.health.start is \"probe\" by default: down until the first check",
        ),
        "omega" | "quorum_up" | "quorum_down" | "notify_up" | "notify_down" => {
            Known::ByHand(NOTIFY_OF_SERVERS)
        }
        "hysteresis" => Known::Nothing("it is about quorum, which see"),
        "ip_family" => Known::Nothing("the addresses tell the family"),
        "sorry_server_inhibit" | "sorry_server_lvs_method" => {
            Known::Nothing("the sorry server is a backup backend like the others")
        }
        "warmup" => Known::Nothing("xvip spreads its checks over their interval"),
        "uthreshold" | "lthreshold" => {
            Known::Nothing("xvip does not limit connections: limit them in the server")
        }
        "tls_compliant" => Known::Nothing("xvip's checks speak TLS 1.2 and 1.3"),
        "log_all_failures" | "fast_recovery" => {
            Known::Nothing("xvip logs what changes a state; `xvip status` shows the last result")
        }
        "bindto" | "bind_if" | "bind_port" | "fwmark" => {
            Known::ByHand("xvip's checks leave by the kernel's routes: mark or route them there")
        }
        _ => return None,
    })
}
