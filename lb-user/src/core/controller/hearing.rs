//! Received VRRP messages: judged, counted, and complained of; and how late this node was itself.

use std::net::IpAddr;

use super::{Action, Controller, Event};
use crate::{
    config::model::VrrpConfig,
    core::{
        time::Timestamp,
        vrrp::{self, Advert, Discard, Instance, Remarks, RxMeta},
    },
};

/// Something to log: its kind, and what it says.
type Complaint = (&'static str, String);

impl Controller {
    /// A VRRP message for the instance with this slot was received `at`.
    pub(super) fn hear(
        &mut self,
        now: Timestamp,
        slot: usize,
        at: Timestamp,
        meta: RxMeta,
        message: &[u8],
    ) {
        let mut roles = self.roles.iter_mut().zip(&self.config.vrrp);
        let Some((role, config)) = roles.find(|(role, _)| role.slot == slot) else {
            return;
        };
        let complaint = match vrrp::packet::parse(message, &meta, config.unicast_min_ttl) {
            Ok(advert) => {
                // Refusals are counted by the instance.
                let heard = role.instance.handle_advert(now, at, meta.src, &advert);
                of_heard(heard, &role.instance, now, config, meta.src, &advert)
            }
            Err(error) => {
                *role.bad.entry(error.label()).or_default() += 1;
                Some((error.label(), format!("an advert was refused: {error}")))
            }
        };
        let Some((kind, what)) = complaint else {
            return;
        };
        if let Some(suppressed) = role.complaints.admit(now, kind, meta.src) {
            self.actions.push_back(Action::Report(Event::BadAdvert {
                name: config.name.clone(),
                from: meta.src,
                what,
                suppressed,
            }));
        }
    }

    /// Tells of timers that were served late.
    pub(super) fn report_late(&mut self, now: Timestamp, position: usize) {
        let (role, config) = (self.roles.get_mut(position), self.config.vrrp.get(position));
        if let (Some(role), Some(config)) = (role, config)
            && let Some(late) = role.instance.take_late(now)
        {
            self.actions.push_back(Action::Report(Event::Late {
                name: config.name.clone(),
                late,
                interval: config.advert_interval.duration(),
            }));
        }
    }
}

/// What there is to say of a well-formed advert.
fn of_heard(
    heard: Result<Remarks, Discard>,
    instance: &Instance,
    now: Timestamp,
    config: &VrrpConfig,
    from: IpAddr,
    advert: &Advert,
) -> Option<Complaint> {
    let alarms = instance.alarms(now);
    let mut alarms = alarms.filter(|alarm| alarm.heard() == now && alarm.from() == from);
    if let Some(alarm) = alarms.next() {
        let what = alarm.describe(config.vrid.get(), &config.interface);
        return Some((alarm.label(), what));
    }
    match heard {
        Err(Discard::Own) => {
            let what = "an advert from this node's own address came in: another node has it, too";
            Some((Discard::Own.label(), what.to_owned()))
        }
        // Nothing, or nobody's fault.
        Ok(Remarks {
            other_addresses: false,
            ..
        })
        | Err(Discard::Stopped | Discard::Vrid(_)) => None,
        Ok(_) => Some(("other_addresses", format!("its {}", lists(advert, config)))),
        Err(Discard::Addresses) => {
            let what = format!("an advert was refused: its {}", lists(advert, config));
            Some((Discard::Addresses.label(), what))
        }
        Err(discard) => {
            let what = format!("an advert was refused: {discard}");
            Some((discard.label(), what))
        }
    }
}

fn lists(advert: &Advert, config: &VrrpConfig) -> String {
    let join = |addresses: &mut dyn Iterator<Item = IpAddr>| {
        let texts: Vec<_> = addresses.map(|address| address.to_string()).collect();
        texts.join(", ")
    };
    let theirs = join(&mut advert.addresses.iter().copied());
    let ours = join(&mut config.addresses.iter().map(ipnet::IpNet::addr));
    format!("virtual addresses are {theirs}, this node's {ours}; make them the same")
}
