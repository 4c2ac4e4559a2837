//! Which values of `arp_ignore` let an interface answer too much or too little.
//!
//! The kernel takes the larger one of `all` and of the interface's own. 1 and 2 answer for addresses of
//! the interface that is asked; 0 for those of any, 3 for those of any but with scope host, 4 to 7 as 0;
//! 8 for none (`Documentation/networking/ip-sysctl.rst`, `arp_ignore()` in `net/ipv4/arp.c`).

/// The largest value that does.
const LARGEST: i64 = 2;
/// No answers at all.
const MUTE: i64 = 8;

/// An interface and its own value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArpIgnore {
    /// Its name.
    pub interface: String,
    /// Its value.
    pub value: i64,
    /// VIPs of IPv4 are added to it while this node owns them.
    pub has_vips: bool,
}

/// What an operator should know. That a value is too small is not among it: `all` is raised.
pub fn complaints(all: i64, interfaces: &[ArpIgnore]) -> Vec<String> {
    if all > LARGEST {
        let has_vips = interfaces.iter().any(|own| own.has_vips);
        return complaint("all", all, has_vips).into_iter().collect();
    }
    let own = |own: &ArpIgnore| complaint(&own.interface, own.value, own.has_vips);
    interfaces.iter().filter_map(own).collect()
}

fn complaint(name: &str, value: i64, has_vips: bool) -> Option<String> {
    let what = match value {
        ..=LARGEST => return None,
        MUTE if has_vips => "ARP is not answered, not even by the owner of a VIP",
        MUTE => return None,
        _ => {
            "ARP is answered for other interfaces' addresses, and so for VIPs that the interface does not have"
        }
    };
    Some(format!(
        "net.ipv4.conf.{name}.arp_ignore is {value}: {what}; set it to 1 or 2"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, value: i64, has_vips: bool) -> ArpIgnore {
        ArpIgnore {
            interface: name.to_owned(),
            value,
            has_vips,
        }
    }

    /// What the interface is told to answer beyond its own addresses is said, and what it is told
    /// not to answer where that matters.
    #[test]
    fn unsuitable_values_are_named() {
        let named = |all, interfaces: &[ArpIgnore]| -> Vec<String> {
            let words = |text: &String| text.split(" is ").next().unwrap_or_default().to_owned();
            complaints(all, interfaces).iter().map(words).collect()
        };
        let uplink = |value| interface("eth0", value, true);
        let other = |value| interface("eth1", value, false);
        assert_eq!(named(1, &[uplink(0), other(2)]), [""; 0]);
        assert_eq!(named(2, &[uplink(0), other(8)]), [""; 0]);
        let own = ["net.ipv4.conf.eth0.arp_ignore"];
        assert_eq!(named(1, &[uplink(8), other(8)]), own);
        assert_eq!(named(1, &[uplink(4), other(1)]), own);
        let others = ["net.ipv4.conf.eth1.arp_ignore"];
        assert_eq!(named(1, &[uplink(1), other(3)]), others);
        // Whatever the interfaces' own values are.
        let all = ["net.ipv4.conf.all.arp_ignore"];
        assert_eq!(named(3, &[uplink(1), other(3)]), all);
        assert_eq!(named(8, &[uplink(1)]), all);
        assert_eq!(named(8, &[other(1)]), [""; 0]);
    }
}
