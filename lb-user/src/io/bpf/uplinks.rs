//! Keeps the uplinks' programs where they shall be: attaches, adopts, repairs, moves and removes.
//!
//! **Changing the mode** makes before it breaks: the new program is attached, then the old one is
//! ended at once (`BPF_LINK_DETACH`; the driver's part of taking an XDP program off may take longer,
//! so that is first replaced by one that passes everything). For some microseconds packets
//! meet both. What XDP sends elsewhere never reaches tc, so nothing is forwarded twice. What XDP
//! passes to this node's own backend on another port than the VIP's comes to tc as a packet for
//! that port, which is answered with a reset: such a packet can end its connection. The other way
//! round, a gap, would hand packets for the VIP to the kernel, which resets connections of every kind.
//! Native and generic XDP exclude each other: between these two there is a gap.
//!
//! The controller holds each link open. Whose pin is removed it is pinned again, without a moment
//! in which it was not attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
};

use aya::Ebpf;
use tracing::{debug, warn};

use super::{
    BpfError, Loading, Pins,
    pins::remove_file,
    syscall,
    tc::{self, Filters, Side},
    xdp,
};
use crate::{
    admin::Paths,
    core::attach::{self, Attachment, Mode, Place, Plan},
    io::netlink::{Netlink, NetlinkError},
};

/// What came of a plan.
#[derive(Default)]
pub struct Outcome {
    /// The uplinks of the plan, in its order.
    pub attached: Vec<Attachment>,
    /// What somebody else had changed, in words.
    pub repaired: Vec<String>,
    /// What else an operator should know now, and did not at the last look, in words.
    pub warnings: Vec<String>,
    /// What did not work; empty: everything is attached.
    pub failures: Vec<BpfError>,
}

/// A link that is attached.
struct Held {
    link: OwnedFd,
    program: u32,
}

/// Programs that stood before ours at every look until now.
#[derive(Default)]
struct Rivals {
    names: Vec<String>,
    looks: u32,
}

/// Looks after which a rival is left where it insists on standing: loading the program again and
/// again keeps the controller from its work.
const PATIENCE: u32 = 5;

/// A carrier whose mode was found.
struct Settled {
    plan: Plan,
    mode: Mode,
    refused: Vec<(Mode, String)>,
    /// The mode is that of the plan before: none of this one's works.
    stands_in: bool,
}

/// Have the kernel take every program that `plans` may ask for, now or when the interfaces change: the
/// verifier takes its time, in which no advert is sent. Of the forms of the ingress program one does;
/// the result is why the others do not.
pub(super) fn preload(object: &mut Ebpf, plans: &[Plan]) -> Result<Vec<BpfError>, BpfError> {
    tc::preload(object, Side::Egress)?;
    let (mut taken, mut refused) = (BTreeSet::new(), BTreeMap::new());
    let modes: BTreeSet<Mode> = plans.iter().flat_map(|plan| &plan.modes).copied().collect();
    for mode in modes {
        let is_xdp = mode != Mode::Tc;
        if taken.contains(&is_xdp) || refused.contains_key(&is_xdp) {
            continue;
        }
        let loaded = if is_xdp {
            xdp::preload(object)
        } else {
            tc::preload(object, Side::Ingress)
        };
        match loaded {
            Ok(()) => drop(taken.insert(is_xdp)),
            Err(error) => drop(refused.insert(is_xdp, error)),
        }
    }
    for plan in plans {
        let mut forms = plan.modes.iter().map(|mode| *mode != Mode::Tc);
        if let Some(first) = plan.modes.first().map(|mode| *mode != Mode::Tc)
            && !forms.any(|form| taken.contains(&form))
            && let Some(error) = refused.remove(&first)
        {
            return Err(error);
        }
    }
    Ok(refused.into_values().collect())
}

/// Attaches the programs of one object.
pub(super) struct Attacher {
    object: Ebpf,
    pins: Pins,
    paths: Paths,
    /// By the name of the pin.
    held: BTreeMap<String, Held>,
    /// By the carrier's index.
    settled: BTreeMap<u32, Settled>,
    /// Carriers whose driver refused native XDP.
    no_native: BTreeSet<u32>,
    /// Who stands before a program at every look, by the name of its pin.
    overtaken: BTreeMap<String, Rivals>,
    /// Filters of clsact, by interface name.
    filters: BTreeSet<(String, Side)>,
    /// Those of earlier runs are among them.
    knows_filters: bool,
    /// The kernel has no tcx links.
    lacks_tcx: bool,
    outcome: Outcome,
}

impl Attacher {
    pub(super) fn new(object: Ebpf, loading: Loading) -> Self {
        let Loading {
            pins, paths, tcx, ..
        } = loading;
        Self {
            object,
            pins,
            paths,
            held: BTreeMap::new(),
            settled: BTreeMap::new(),
            no_native: BTreeSet::new(),
            overtaken: BTreeMap::new(),
            filters: BTreeSet::new(),
            knows_filters: false,
            lacks_tcx: !tcx,
            outcome: Outcome::default(),
        }
    }

    /// See [`super::DataPlane::attach`].
    pub(super) fn carry_out(&mut self, plans: &[Plan]) -> Outcome {
        let carriers: BTreeSet<u32> = plans.iter().map(|plan| plan.carrier).collect();
        self.no_native.retain(|carrier| carriers.contains(carrier));
        let known = self.no_native.clone();
        self.attach_all(&attach::even_out(plans, &known));
        if self.no_native != known {
            // A driver has just refused: what that means for the others.
            self.outcome.attached.clear();
            self.outcome.failures.clear();
            self.attach_all(&attach::even_out(plans, &self.no_native.clone()));
        }
        let mut outcome = std::mem::take(&mut self.outcome);
        let failures = outcome.failures.into_iter();
        outcome.failures = failures.map(|error| error.with_log(&self.paths)).collect();
        outcome
    }

    fn attach_all(&mut self, plans: &[Plan]) {
        let mut links = BTreeSet::new();
        let mut filters = BTreeSet::new();
        for plan in plans {
            // First, so that replies are right from the first packet on.
            for place in &plan.places {
                if let Err(error) = self.tc(Side::Egress, place) {
                    self.outcome.failures.push(error);
                }
                links.insert(Side::Egress.link_name(place.ifindex));
                filters.insert((place.interface.clone(), Side::Egress));
            }
            let mode = self.ingress(plan);
            if mode == Some(Mode::Tc) {
                let places = plan.places.iter();
                filters.extend(places.map(|place| (place.interface.clone(), Side::Ingress)));
            }
            // Where nothing new works, what an earlier run left goes on.
            let modes = mode.map_or(vec![Mode::Native, Mode::Tc, Mode::Generic], |mode| {
                vec![mode]
            });
            links.extend(modes.iter().flat_map(|mode| links_of(plan, *mode)));
        }
        self.settled
            .retain(|carrier, _| plans.iter().any(|plan| plan.carrier == *carrier));
        self.remove_others(&links, &filters);
    }

    // --- The ingress program ------------------------------------------------------------------

    /// Attach the ingress program of a carrier in the best mode that works.
    fn ingress(&mut self, plan: &Plan) -> Option<Mode> {
        let mut settled = self.settled.remove(&plan.carrier);
        // A driver that refused is not asked again every few seconds.
        if let Some(settled) = settled.take_if(|settled| settled.plan == *plan)
            && self.ingress_in(plan, settled.mode).is_ok()
        {
            let mode = settled.mode;
            self.settle(settled);
            return Some(mode);
        }
        let mut refused = Vec::new();
        let mut failure = None;
        for &mode in &plan.modes {
            match self.ingress_in(plan, mode) {
                Ok(()) => {
                    self.end_other_modes(plan, mode);
                    let plan = plan.clone();
                    self.settle(Settled {
                        plan,
                        mode,
                        refused,
                        stands_in: false,
                    });
                    return Some(mode);
                }
                Err(error) => {
                    if mode == Mode::Native {
                        self.no_native.insert(plan.carrier);
                    }
                    refused.push((mode, error.cause()));
                    failure = Some(error);
                }
            }
        }
        if let Some(former) = settled.filter(|former| self.ingress_in(plan, former.mode).is_ok()) {
            let (plan, mode) = (plan.clone(), former.mode);
            self.settle(Settled {
                plan,
                mode,
                refused,
                stands_in: true,
            });
            return Some(mode);
        }
        self.fail(plan, &refused, failure);
        None
    }

    fn settle(&mut self, settled: Settled) {
        let (plan, mode) = (&settled.plan, Some(settled.mode));
        let note = if settled.stands_in {
            let why = plan.failure(mode, &settled.refused);
            self.outcome.warnings.push(format!("{}: {why}", plan.name));
            Some(why)
        } else {
            plan.note(settled.mode, &settled.refused)
        };
        self.report(&settled.plan, mode, note.as_ref());
        self.settled.insert(settled.plan.carrier, settled);
    }

    fn fail(&mut self, plan: &Plan, refused: &[(Mode, String)], failure: Option<BpfError>) {
        let why = plan.failure(None, refused);
        self.report(plan, None, Some(&why));
        self.outcome
            .failures
            .push(failure.unwrap_or_else(|| BpfError::NoMode {
                interface: plan.name.clone(),
                why,
            }));
    }

    fn report(&mut self, plan: &Plan, mode: Option<Mode>, note: Option<&String>) {
        let attached = plan.places.iter().map(|place| Attachment {
            place: place.clone(),
            mode,
            note: note.cloned(),
        });
        self.outcome.attached.extend(attached);
    }

    fn ingress_in(&mut self, plan: &Plan, mode: Mode) -> Result<(), BpfError> {
        let Some(link) = xdp::link_name(mode, plan.carrier) else {
            let mut places = plan.places.iter();
            return places.try_for_each(|place| self.tc(Side::Ingress, place));
        };
        let what = || format!("the XDP program of {}", plan.name);
        if self.is_held(&link, plan.carrier, what)? {
            return Ok(());
        }
        self.drop_elsewhere(&link, plan.carrier);
        if xdp::adopt(&mut self.object, &self.pins, &link)? {
            debug!(link, "replaced the program of an earlier run");
        } else {
            // Of a device that is gone.
            remove_file(&self.pins.link(&link))?;
            self.end_xdp_but(mode, plan.carrier);
            let to = (plan.name.as_str(), plan.carrier);
            xdp::attach(&mut self.object, &self.pins, (&link, mode), to)?;
        }
        let program = xdp::program_id(&mut self.object);
        self.hold(&link, program)
    }

    /// Native and generic XDP exclude each other.
    fn end_xdp_but(&mut self, mode: Mode, carrier: u32) {
        for other in [Mode::Native, Mode::Generic] {
            if other != mode
                && let Some(link) = xdp::link_name(other, carrier)
            {
                self.end(&link);
            }
        }
    }

    fn end_other_modes(&mut self, plan: &Plan, mode: Mode) {
        let wanted = links_of(plan, mode);
        for other in [Mode::Native, Mode::Tc, Mode::Generic] {
            for link in links_of(plan, other) {
                if !wanted.contains(&link) {
                    self.end(&link);
                }
            }
        }
    }

    // --- tc programs --------------------------------------------------------------------------

    /// Have a tc program attached before all others.
    fn tc(&mut self, side: Side, place: &Place) -> Result<(), BpfError> {
        if self.lacks_tcx {
            return self.filter(side, place);
        }
        let link = side.link_name(place.ifindex);
        let what = || format!("the program {} of {}", side.name(), place.interface);
        if !self.is_held(&link, place.ifindex, what)? {
            self.drop_elsewhere(&link, place.ifindex);
            if !tc::adopt(&mut self.object, &self.pins, side, &link)? {
                remove_file(&self.pins.link(&link))?;
                match tc::attach_first(&mut self.object, side, &place.interface) {
                    Ok(new) => tc::pin_link(new, &self.pins, &link)?,
                    Err(error) if tc::lacks_tcx(&error) => {
                        self.lacks_tcx = true;
                        return self.filter(side, place);
                    }
                    Err(error) => return Err(error),
                }
            }
            let program = tc::program_id(&mut self.object, side);
            self.hold(&link, program)?;
        }
        self.keep_first(side, place, &link)
    }

    /// Have a tc program in a clsact filter, before those of others.
    fn filter(&mut self, side: Side, place: &Place) -> Result<(), BpfError> {
        let key = (place.interface.clone(), side);
        let link = side.link_name(place.ifindex);
        let insist = self
            .overtaken
            .get(&link)
            .is_none_or(|rivals| rivals.looks < PATIENCE);
        let filters = Filters::new(&self.pins, side);
        let placed = filters.put(&mut self.object, place, insist)?;
        let was_there = !self.filters.insert(key);
        let (interface, name) = (&place.interface, side.name());
        let behind = placed.before.len() > placed.stay.len();
        if !placed.stay.is_empty() || behind && !insist {
            let strangers = if behind { &placed.before } else { &placed.stay };
            self.outcome
                .warnings
                .push(insists(interface, &strangers.join(", "), name));
        }
        if !behind {
            self.overtaken.remove(&link);
        } else if insist {
            let known = self.rival(&link, &placed.before);
            if was_there && !known {
                let strangers = placed.before.join(", ");
                self.outcome
                    .repaired
                    .push(order(interface, &strangers, name));
            }
            return Ok(());
        }
        if placed.changed && was_there {
            self.outcome.repaired.push(format!(
                "the filter {name} of {interface}, which was removed or replaced"
            ));
        }
        Ok(())
    }

    /// Note that these stand before a program; whether they did so at the last look.
    fn rival(&mut self, link: &str, before: &[String]) -> bool {
        let rivals = self.overtaken.entry(link.to_owned()).or_default();
        let known = rivals.names == before;
        rivals.looks = if known {
            rivals.looks.saturating_add(1)
        } else {
            1
        };
        before.clone_into(&mut rivals.names);
        known
    }

    /// Somebody may have attached a program before ours.
    fn keep_first(&mut self, side: Side, place: &Place, link: &str) -> Result<(), BpfError> {
        let Some(held) = self.held.get(link) else {
            return Ok(());
        };
        let before = tc::before(&place.interface, side, held.program);
        if before.is_empty() {
            self.overtaken.remove(link);
            return Ok(());
        }
        let known = self.rival(link, &before);
        let strangers = before.join(", ");
        let (interface, name) = (&place.interface, side.name());
        if self
            .overtaken
            .get(link)
            .is_some_and(|rivals| rivals.looks > PATIENCE)
        {
            let warning = insists(interface, &strangers, name);
            self.outcome.warnings.push(warning);
            return Ok(());
        }
        tc::renew(&mut self.object, side)?;
        let new = tc::attach_first(&mut self.object, side, &place.interface)?;
        self.end(link);
        tc::pin_link(new, &self.pins, link)?;
        let program = tc::program_id(&mut self.object, side);
        self.hold(link, program)?;
        if !known {
            self.outcome
                .repaired
                .push(order(interface, &strangers, name));
        }
        Ok(())
    }

    // --- Links --------------------------------------------------------------------------------

    /// Whether the link is attached to `ifindex` with the program that was put there. One whose pin
    /// was removed is pinned again; what is not as it shall be is let go of.
    fn is_held(
        &mut self,
        link: &str,
        ifindex: u32,
        what: impl Fn() -> String,
    ) -> Result<bool, BpfError> {
        let Some(held) = self.held.get(link) else {
            return Ok(false);
        };
        let state = syscall::link_state(held.link.as_fd());
        let good = state.is_ok_and(|now| now.ifindex == ifindex && now.program == held.program);
        if !good {
            self.held.remove(link);
            self.outcome
                .repaired
                .push(format!("{}, which was detached or replaced", what()));
            return Ok(false);
        }
        let path = self.pins.link(link);
        if !path.exists() {
            syscall::pin(held.link.as_fd(), &path)
                .map_err(|source| BpfError::Path { path, source })?;
            self.outcome
                .repaired
                .push(format!("{}, whose pin was removed", what()));
        }
        Ok(true)
    }

    /// End a link of this name that is attached to another interface: a name that changed its
    /// interface in the middle of an attachment, or an index that was used again.
    fn drop_elsewhere(&mut self, link: &str, ifindex: u32) {
        let Ok(open) = syscall::open_pin(&self.pins.link(link)) else {
            return;
        };
        let state = syscall::link_state(open.as_fd());
        if state.is_ok_and(|now| now.ifindex != ifindex) {
            self.end(link);
        }
    }

    fn hold(&mut self, link: &str, program: Option<u32>) -> Result<(), BpfError> {
        let path = self.pins.link(link);
        let opened = syscall::open_pin(&path);
        let open = opened.map_err(|source| BpfError::Path { path, source })?;
        if let Some(program) = program {
            let held = Held {
                link: open,
                program,
            };
            self.held.insert(link.to_owned(), held);
        }
        Ok(())
    }

    /// Detach a link now, and unpin it.
    fn end(&mut self, link: &str) {
        let path = self.pins.link(link);
        let open = match self.held.remove(link) {
            Some(held) => held.link,
            None => match syscall::open_pin(&path) {
                Ok(open) => open,
                Err(_) => return,
            },
        };
        if link.starts_with("xdp_") {
            xdp::suspend(&mut self.object, &self.pins, link);
        }
        // One of a device that is gone cannot be detached any more.
        if let Err(error) = syscall::detach(open.as_fd()) {
            debug!(link, %error, "cannot detach a link");
        }
        if let Err(error) = remove_file(&path) {
            warn!(%error, "cannot remove a pin");
        }
    }

    /// Remove what an earlier plan, or an earlier run, attached.
    fn remove_others(&mut self, links: &BTreeSet<String>, filters: &BTreeSet<(String, Side)>) {
        for link in self.pins.link_names().unwrap_or_default() {
            let of_uplink = ["xdp_", "tc_"].iter().any(|kind| link.starts_with(kind));
            if of_uplink && !links.contains(&link) {
                self.end(&link);
            }
        }
        self.held.retain(|link, _| links.contains(link));
        self.overtaken.retain(|link, _| links.contains(link));
        if !self.lacks_tcx {
            return;
        }
        let mut stale: Vec<_> = self.filters.difference(filters).cloned().collect();
        if !self.knows_filters {
            self.knows_filters = true;
            let all = filter_places();
            stale = all
                .into_iter()
                .filter(|own| !filters.contains(own))
                .collect();
        }
        for (interface, side) in stale {
            if let Err(error) = remove_filter(&self.pins, &interface, side) {
                warn!(%error, interface, "cannot remove a filter");
            }
            self.filters.remove(&(interface, side));
        }
    }
}

/// What to say of programs that cannot be overtaken.
fn insists(interface: &str, strangers: &str, name: &str) -> String {
    format!(
        "{interface}: {strangers} insists on standing before {name} and is left there: what it accepts or \
         redirects xvip does not see"
    )
}

fn order(interface: &str, strangers: &str, name: &str) -> String {
    format!("the order of tc programs on {interface} ({strangers} stood before {name})")
}

/// Remove the clsact filters of an instance from all interfaces. They outlive their controller, and no
/// pin tells of them. The result is where there were any.
pub fn remove_filters(pins: &Pins) -> Result<BTreeSet<String>, NetlinkError> {
    let mut removed = BTreeSet::new();
    for (interface, side) in filter_places() {
        if remove_filter(pins, &interface, side)? {
            removed.insert(interface);
        }
    }
    let mut netlink = Netlink::open()?;
    for interface in &removed {
        // One that is gone has no qdisc.
        if let Ok(ifindex) = nix::net::if_::if_nametoindex(interface.as_str()) {
            netlink.remove_empty_clsact(ifindex)?;
        }
    }
    Ok(removed)
}

fn remove_filter(pins: &Pins, interface: &str, side: Side) -> Result<bool, NetlinkError> {
    // An interface that is gone has no filters.
    let Ok(ifindex) = nix::net::if_::if_nametoindex(interface) else {
        return Ok(false);
    };
    Filters::new(pins, side).remove(&mut Netlink::open()?, ifindex)
}

/// Where a clsact filter may be.
fn filter_places() -> BTreeSet<(String, Side)> {
    let interfaces = nix::net::if_::if_nameindex();
    let names: Vec<String> = match &interfaces {
        Ok(all) => all
            .iter()
            .filter_map(|one| Some(one.name().to_str().ok()?.to_owned()))
            .collect(),
        Err(error) => {
            warn!(%error, "cannot list interfaces");
            Vec::new()
        }
    };
    let sides = [Side::Ingress, Side::Egress];
    let places = names
        .iter()
        .flat_map(|name| sides.map(|side| (name.clone(), side)));
    places.collect()
}

/// Names of the pins of a carrier's ingress links in `mode`.
fn links_of(plan: &Plan, mode: Mode) -> Vec<String> {
    if let Some(link) = xdp::link_name(mode, plan.carrier) {
        return vec![link];
    }
    let places = plan.places.iter();
    places
        .map(|place| Side::Ingress.link_name(place.ifindex))
        .collect()
}
