//! Instances with `accept = false`: what is reachable at their addresses, and where nothing sees to it.

use super::{AttachedMode, Cell, Colour, Status, Tint, VrrpStatus, join, printable, push_line};

/// A line for each such instance; nothing if there is none.
pub(super) fn closed(instances: &[VrrpStatus]) -> Option<String> {
    let mut text = String::new();
    for instance in instances.iter().filter(|instance| !instance.accept) {
        let addresses = join(instance.addresses.iter().map(|net| net.addr().to_string()));
        let name = &instance.name;
        let line = format!("{name}: only services are reachable at {addresses} (accept = false)");
        push_line(&mut text, &printable(&line));
    }
    (!text.is_empty()).then_some(text)
}

/// A warning for each such instance whose interface carries no program: the kernel takes everything
/// that comes in there.
pub(super) fn unenforced(status: &Status, colour: Colour) -> Vec<String> {
    let bare = |interface: &str| {
        let mut attached = status.data_plane.attach.iter();
        let own = attached.find(|attach| attach.interface == interface);
        own.is_none_or(|attach| attach.mode == AttachedMode::None)
    };
    let instances = status.vrrp.iter();
    instances
        .filter(|instance| !instance.accept && bare(&instance.interface))
        .map(|VrrpStatus { name, interface, .. }| {
            let line = format!(
                "warning: {name}: accept = false is not in force, {interface} carries no program"
            );
            Cell::new(line).tint(Tint::Yellow).paint(colour)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{model::tests::sample, render};

    const CLOSED: &str = "control-plane: only services are reachable at 10.0.2.100";
    const BARE: &str =
        "warning: control-plane: accept = false is not in force, enp0s3 carries no program\n";

    /// Who accepts everything, which is usual, is not mentioned; without a program it is said that
    /// nobody keeps anything out.
    #[test]
    fn what_is_closed_and_whether_it_is() {
        let mut document = sample();
        let text = |document: &Status| render::status(document, Colour::Never);
        assert!(text(&document).contains(CLOSED));
        assert!(!text(&document).contains(BARE));
        document.data_plane.attach[0].mode = AttachedMode::None;
        assert!(text(&document).contains(BARE), "{}", text(&document));
        document.data_plane.attach.clear();
        assert!(text(&document).contains(BARE), "{}", text(&document));
        document.vrrp[0].accept = true;
        assert!(!text(&document).contains("accept = false"));
        assert!(!text(&document).contains(CLOSED));
    }
}
