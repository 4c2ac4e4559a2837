//! `[[vrrp]]`.

use std::{
    net::IpAddr,
    num::{NonZeroU8, NonZeroU16},
    time::Duration,
};

use ipnet::IpNet;

use super::{
    Context,
    model::{AdvertInterval, AnnounceConfig, Password, V3Checksum, VrrpConfig, VrrpVersion},
    notify,
    raw::{Mark, Marked, Table, Value},
    track::{self, TrackDraft},
    value::{self, Fault, GARP_TIME, PREEMPT_DELAY},
};

/// Default of `duplicate_probe`.
const DUPLICATE_PROBE: Duration = Duration::from_secs(30);

/// `[[vrrp]]` and what is compared with other keys and sections.
pub(super) struct VrrpDraft {
    /// `None` if something is wrong with it.
    pub(super) config: Option<VrrpConfig>,
    pub(super) mark: Mark,
    pub(super) name: Option<Marked<String>>,
    pub(super) interface: Option<Marked<String>>,
    pub(super) vrid: Option<Marked<NonZeroU8>>,
    /// `None` if the key is left out: version 3.
    pub(super) version: Option<Marked<VrrpVersion>>,
    pub(super) priority: Option<NonZeroU8>,
    pub(super) addresses: Vec<Marked<IpNet>>,
    pub(super) unicast_source: Option<Marked<IpAddr>>,
    pub(super) unicast_peers: Vec<Marked<IpAddr>>,
    pub(super) sync_group: Option<String>,
}

/// Read one `[[vrrp]]`.
pub(super) fn read(
    mut table: Table<'_>,
    context: &Context<'_>,
    tracks: &[TrackDraft],
) -> VrrpDraft {
    let name = table
        .need("name", "write a name such as \"control-plane\"")
        .and_then(|value| value.text("control-plane", value::name));
    let interface = table
        .need("interface", "name one of node.interfaces")
        .and_then(|value| value.text("eth0", value::interface));
    let vrid = table
        .need("vrid", "write 1..255, the same on every node")
        .and_then(|value| number(&value));
    let version = table.get("version").and_then(|value| {
        value.number(2..=3, |number| match number {
            2 => Some(VrrpVersion::V2),
            3 => Some(VrrpVersion::V3),
            _ => None,
        })
    });
    let used_version = version.as_ref().map_or(VrrpVersion::V3, |v| v.value);
    let priority = table.get_or("priority", NonZeroU8::new(100), number);
    let advert_interval = table.get_or(
        "advert_interval",
        AdvertInterval::from_centis(100),
        |value| {
            value.text("1s", |text| match used_version {
                VrrpVersion::V2 => value::v2_interval(text),
                VrrpVersion::V3 => value::v3_interval(text),
            })
        },
    );
    let preempt = table.get_or("preempt", true, Value::boolean);
    let preempt_delay = read_preempt_delay(&mut table, preempt);
    let startup_delay = table.get_or("startup_delay", Duration::ZERO, |value| {
        value.text("10s", |text| value::duration(text, &PREEMPT_DELAY))
    });
    let addresses = read_addresses(&mut table);
    let unicast_source = table
        .get("unicast_source")
        .and_then(|value| value.text("10.0.2.10", value::host_address));
    let unicast_peers = table.get("unicast_peers").map_or_else(Vec::new, |value| {
        value.each(|element| element.text("10.0.2.11", value::host_address))
    });
    let unicast_min_ttl = read_min_ttl(&mut table, unicast_peers.is_empty());
    let over_ipv6 = addresses.first().is_some_and(|a| a.value.addr().is_ipv6());
    let v3_checksum = read_checksum(&mut table, used_version, over_ipv6);
    let announce = read_announce(&mut table);
    let duplicate_probe = read_duplicate_probe(&mut table);
    let password = table
        .get("auth")
        .and_then(|value| read_auth(&value, used_version, context));
    let references = track::read_references(&mut table);
    let tracked = track::resolve(table.report(), &references, tracks);
    let track_defaults = table.get_or("track_defaults", true, Value::boolean);
    let use_vmac = table.get_or("use_vmac", false, Value::boolean);
    let accept = table.get_or("accept", true, Value::boolean);
    let sync_group = table
        .get("sync_group")
        .and_then(|value| value.text("control-plane", value::name));
    let sync_group = sync_group.map(|group| group.value);
    let notify = notify::read(&mut table, context);
    let mark = table.mark().clone();
    table.finish();
    let config = || {
        Some(VrrpConfig {
            name: name.as_ref()?.value.clone(),
            interface: interface.as_ref()?.value.clone(),
            vrid: vrid.as_ref()?.value,
            version: used_version,
            priority: priority?,
            advert_interval: advert_interval?,
            preempt: preempt?,
            preempt_delay: preempt_delay?,
            startup_delay: startup_delay?,
            addresses: addresses.iter().map(|address| address.value).collect(),
            unicast_source: unicast_source.as_ref().map(|source| source.value),
            unicast_peers: unicast_peers.iter().map(|peer| peer.value).collect(),
            unicast_min_ttl: unicast_min_ttl?,
            v3_checksum: v3_checksum?,
            announce: announce?,
            duplicate_probe: duplicate_probe?,
            password,
            track: tracked.clone(),
            track_defaults: track_defaults?,
            sync_group: sync_group.clone(),
            notify: notify.clone()?,
            use_vmac: use_vmac?,
            accept: accept?,
        })
    };
    VrrpDraft {
        config: config(),
        mark,
        name,
        interface,
        vrid,
        version,
        priority,
        addresses,
        unicast_source,
        unicast_peers,
        sync_group,
    }
}

/// 1..=255: ids, priorities and TTLs. Priority 0 is the priority of one who leaves (RFC 9568 section 5.2.4).
fn number(value: &Value<'_>) -> Option<Marked<NonZeroU8>> {
    value.number(1..=255, |number| {
        NonZeroU16::new(number).and_then(|number| number.try_into().ok())
    })
}

fn read_preempt_delay(table: &mut Table<'_>, preempt: Option<bool>) -> Option<Duration> {
    let Some(value) = table.get("preempt_delay") else {
        return Some(Duration::ZERO);
    };
    let delay = value
        .text("10s", |text| value::duration(text, &PREEMPT_DELAY))?
        .value;
    if preempt == Some(false) && !delay.is_zero() {
        value.refuse(Fault::new(
            "has no effect with preempt = false",
            "remove it or write preempt = true",
        ));
    }
    Some(delay)
}

/// `unicast_min_ttl`: without unicast peers all adverts come from this link.
fn read_min_ttl(table: &mut Table<'_>, multicast: bool) -> Option<u8> {
    let Some(value) = table.get("unicast_min_ttl") else {
        return Some(u8::MAX);
    };
    if multicast {
        value.refuse(Fault::new(
            "has no effect without unicast_peers",
            "remove it or write unicast_peers",
        ));
    }
    number(&value).map(|ttl| ttl.value.get())
}

/// `garp_*`.
fn read_announce(table: &mut Table<'_>) -> Option<AnnounceConfig> {
    let default = AnnounceConfig::default();
    let count = |least| move |value: &Value<'_>| value.number(least..=10, |n| u8::try_from(n).ok());
    let time = |value: &Value<'_>| value.text("60s", |text| value::duration(text, &GARP_TIME));
    let repeat = table.get_or("garp_repeat", Some(default.repeat), |value| count(0)(value));
    let delay = table.get_or("garp_delay", Some(default.delay), |value| time(value));
    let refresh = table.get_or("garp_refresh", Some(default.refresh), |value| time(value));
    let refresh_repeat = table.get_or(
        "garp_refresh_repeat",
        Some(default.refresh_repeat),
        |value| count(1)(value),
    );
    Some(AnnounceConfig {
        repeat: repeat?,
        delay: delay?,
        refresh: refresh?,
        refresh_repeat: refresh_repeat?,
    })
}

/// `duplicate_probe`
fn read_duplicate_probe(table: &mut Table<'_>) -> Option<Duration> {
    let Some(value) = table.get("duplicate_probe") else {
        return Some(DUPLICATE_PROBE);
    };
    let gap = value.text("30s", |text| value::duration(text, &GARP_TIME))?;
    if (Duration::from_nanos(1)..Duration::from_secs(1)).contains(&gap.value) {
        value.refuse(Fault::new(
            "is less than a second",
            "write 1s or more, or 0s",
        ));
    }
    Some(gap.value)
}

/// `v3_checksum`: in version 2 and over IPv6 there is but one reading.
fn read_checksum(
    table: &mut Table<'_>,
    version: VrrpVersion,
    over_ipv6: bool,
) -> Option<V3Checksum> {
    let Some(value) = table.get("v3_checksum") else {
        return Some(V3Checksum::default());
    };
    if version == VrrpVersion::V2 || over_ipv6 {
        value.refuse(Fault::new(
            "is for version 3 over IPv4 only",
            "remove it: there is one kind of checksum here",
        ));
    }
    let chosen = value.choice(&[
        ("pseudo-header", V3Checksum::PseudoHeader),
        ("rfc9568", V3Checksum::Rfc9568),
    ]);
    chosen.map(|checksum| checksum.value)
}

fn read_addresses(table: &mut Table<'_>) -> Vec<Marked<IpNet>> {
    let hint = "write the virtual addresses, such as addresses = [\"10.0.2.100/24\"]";
    let Some(value) = table.need("addresses", hint) else {
        return Vec::new();
    };
    if value.is_empty_array() {
        value.refuse(Fault::new("is empty", hint));
    }
    value.each(|element| element.text("10.0.2.100/24", value::virtual_address))
}

/// `auth = { type = "password", secret | secret_file }`. RFC 9568 section 9: v3 has none.
fn read_auth(value: &Value<'_>, version: VrrpVersion, context: &Context<'_>) -> Option<Password> {
    if version == VrrpVersion::V3 {
        value.refuse(Fault::new(
            "VRRP version 3 has no authentication",
            "remove it or write version = 2",
        ));
    }
    let mut table = value.table()?;
    let _kind = table
        .need("type", "write type = \"password\"")
        .and_then(|kind| kind.choice(&[("password", ())]));
    let secret = table.get("secret");
    let secret_file = table.get("secret_file");
    let password = match (secret, secret_file) {
        (Some(secret), None) => secret.text("pass1122", |text| password(text.as_bytes())),
        (None, Some(file)) => file.text("vrrp.secret", |path| {
            let (_, content) = context.read(path)?;
            password(first_line(&content))
        }),
        (Some(_), Some(file)) => {
            file.refuse(Fault::new("stands next to secret", "keep one of the two"));
            None
        }
        (None, None) => {
            table.refuse_missing("secret", "write secret or secret_file");
            None
        }
    };
    table.finish();
    password.map(|password| password.value)
}

/// `content` without the line end that editors add.
fn first_line(content: &[u8]) -> &[u8] {
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    content.strip_suffix(b"\r").unwrap_or(content)
}

/// A password of 1 to 8 bytes (RFC 2338 section 5.3.6), never shown.
fn password(secret: &[u8]) -> Result<Password, Fault> {
    let mut padded = [0; 8];
    match padded.get_mut(..secret.len()) {
        Some(start) if !secret.is_empty() && secret.iter().all(u8::is_ascii_graphic) => {
            start.copy_from_slice(secret);
            Ok(Password(padded))
        }
        _ => Err(Fault::new(
            "not a VRRP password",
            "it has 1 to 8 ASCII characters without spaces",
        )),
    }
}
