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
    BpfError, Pins,
    attach::cause,
    pins::remove_file,
    syscall,
    tc::{self, Filter, Side},
    xdp,
};
use crate::core::attach::{self, Attachment, Mode, Place, Plan};

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

/// Attaches the programs of one object.
pub(super) struct Attacher {
    object: Ebpf,
    pins: Pins,
    /// By the name of the pin.
    held: BTreeMap<String, Held>,
    /// By the carrier's index.
    settled: BTreeMap<u32, Settled>,
    /// See [`Attacher::preload`].
    preloaded: bool,
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
    handle: u16,
    outcome: Outcome,
}

impl Attacher {
    pub(super) fn new(object: Ebpf, pins: Pins) -> Self {
        Self {
            object,
            handle: handle_of(&pins),
            pins,
            held: BTreeMap::new(),
            settled: BTreeMap::new(),
            preloaded: false,
            no_native: BTreeSet::new(),
            overtaken: BTreeMap::new(),
            filters: BTreeSet::new(),
            knows_filters: false,
            lacks_tcx: false,
            outcome: Outcome::default(),
        }
    }

    /// See [`super::DataPlane::without_tcx`].
    pub(super) const fn avoid_tcx(&mut self) {
        self.lacks_tcx = true;
    }

    /// See [`super::DataPlane::attach`].
    pub(super) fn carry_out(&mut self, plans: &[Plan]) -> Outcome {
        self.preload(plans);
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
        if self.lacks_tcx {
            self.outcome.warnings.push(
                "this kernel has no tcx links (before Linux 6.6): the tc programs are clsact filters"
                    .to_owned(),
            );
        }
        std::mem::take(&mut self.outcome)
    }

    /// At the first call, before VRRP starts: have everything loaded that a change of the interfaces
    /// may ask for later. What fails does so again when it is needed.
    fn preload(&mut self, plans: &[Plan]) {
        if self.preloaded {
            return;
        }
        self.preloaded = true;
        let modes: BTreeSet<Mode> = plans.iter().flat_map(|plan| &plan.modes).copied().collect();
        for mode in modes {
            let loaded = match mode {
                Mode::Native | Mode::Generic => xdp::preload(&mut self.object),
                Mode::Tc => tc::preload(&mut self.object, Side::Ingress),
            };
            if let Err(error) = loaded {
                debug!(?mode, %error, "cannot load the ingress program");
            }
        }
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
                    refused.push((mode, cause(&error)));
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

    fn filter(&mut self, side: Side, place: &Place) -> Result<(), BpfError> {
        let handle = self.handle;
        let filter = Filter { side, handle };
        filter.attach(&mut self.object, &place.interface)?;
        self.filters.insert((place.interface.clone(), side));
        Ok(())
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
        let rivals = self.overtaken.entry(link.to_owned()).or_default();
        let known = rivals.names == before;
        rivals.looks = if known {
            rivals.looks.saturating_add(1)
        } else {
            1
        };
        rivals.names.clone_from(&before);
        let strangers = before.join(", ");
        let (interface, name) = (&place.interface, side.name());
        if rivals.looks > PATIENCE {
            let warning = format!(
                "{interface}: {strangers} insists on standing before {name} and is left there: what \
                 it accepts or redirects xvip does not see"
            );
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
            self.outcome.repaired.push(format!(
                "the order of tc programs on {interface} ({strangers} stood before {name})"
            ));
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
        if self.lacks_tcx && !self.knows_filters {
            self.knows_filters = true;
            self.filters.extend(filter_places());
        }
        let stale: Vec<_> = self.filters.difference(filters).cloned().collect();
        for (interface, side) in stale {
            let handle = self.handle;
            Filter { side, handle }.detach(&interface);
            self.filters.remove(&(interface, side));
        }
    }
}

/// Remove the clsact filters of an instance from all interfaces. They outlive their controller, and no
/// pin tells of them.
pub fn remove_filters(pins: &Pins) {
    let handle = handle_of(pins);
    for (interface, side) in filter_places() {
        Filter { side, handle }.detach(&interface);
    }
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

/// A handle of clsact filters for the instance whose pins these are, 1..=65535.
fn handle_of(pins: &Pins) -> u16 {
    let text = pins.directory().as_os_str().as_encoded_bytes();
    // FNV-1a, folded.
    let hash = text.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    let folded = (hash >> 16) ^ (hash & 0xffff);
    u16::try_from(folded).unwrap_or_default().max(1)
}
