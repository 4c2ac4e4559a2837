//! How the controller is scheduled, and how late its timers were.

use super::{Cell, Colour, SchedulingStatus, Table, Tint, VrrpStatus};

/// A line on the scheduling; none if it is as all others and nobody wanted something else.
pub(super) fn scheduling(status: &SchedulingStatus, colour: Colour) -> Option<String> {
    let tint = match (status.realtime, status.what.as_str()) {
        (false, "" | "ordinary") => return None,
        (false, _) => Tint::Yellow,
        (true, _) => Tint::Plain,
    };
    let line = format!("scheduling of the controller: {}", status.what);
    Some(Cell::new(line).tint(tint).paint(colour))
}

/// Instances whose timers were late; nothing if none was.
pub(super) fn timers(instances: &[VrrpStatus], colour: Colour) -> Option<String> {
    let mut table = Table::new(["VRRP", "LATE TIMERS", "WORST"]).numbers([1, 2]);
    let mut any = false;
    for instance in instances.iter().filter(|one| one.late_timers > 0) {
        any = true;
        table.row([
            Cell::new(&instance.name),
            Cell::new(instance.late_timers).tint(Tint::Yellow),
            Cell::new(format!("{} ms", instance.late_max_ms)),
        ]);
    }
    any.then(|| table.render(colour))
}
