//! What the kernel has of what xvip uses.

use super::{Cell, Colour, Table, Tint, join};
use crate::admin::model::{FeatureStatus, KernelStatus};

/// The features that are used in one row, then one row for each that is not; nothing if nobody knows, as
/// of an xvip that does not tell.
pub fn section(kernel: &KernelStatus, colour: Colour) -> Option<String> {
    if kernel.features.is_empty() {
        return None;
    }
    let mut table = Table::new(["KERNEL", "FEATURE", "USED", "NOTE"]);
    let used = kernel.features.iter().filter(|feature| feature.used);
    let used = join(used.map(|feature| feature.name.clone()));
    table.row([
        Cell::new(&kernel.release),
        Cell::new(if used.is_empty() { "-" } else { &used }),
        Cell::new("yes"),
        Cell::default(),
    ]);
    for feature in kernel.features.iter().filter(|feature| !feature.used) {
        table.row([
            Cell::default(),
            Cell::new(&feature.name),
            Cell::new("no").tint(Tint::Yellow),
            Cell::new(note(feature)),
        ]);
    }
    Some(table.render(colour))
}

/// Since when Linux has it, why this one has not, what is used instead and what that costs.
fn note(feature: &FeatureStatus) -> String {
    let since = feature.since.as_ref();
    let since = since.map(|version| format!("Linux {version} has it"));
    let instead = feature
        .instead
        .as_ref()
        .map(|what| format!("instead: {what}"));
    let parts = [since, feature.why.clone(), instead, feature.cost.clone()];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::kernel::{Feature, Kernel, Tried};

    /// What is used is one row, and what is not says what that means.
    #[test]
    fn missing_features_are_explained() {
        let tried =
            [Feature::RingBuffer, Feature::CoarseClock, Feature::Tcx].map(|feature| Tried {
                feature,
                result: if feature == Feature::Tcx {
                    Err("the kernel does not know it".to_owned())
                } else {
                    Ok(())
                },
            });
        let kernel = Kernel {
            release: "6.1.0-57".to_owned(),
            tried: tried.to_vec(),
        };
        assert_eq!(
            section(&KernelStatus::from(&kernel), Colour::Never).unwrap(),
            "KERNEL    FEATURE                    USED  NOTE\n\
             6.1.0-57  ring_buffer, coarse_clock  yes\n\
             \x20         tcx                        no    Linux 6.6 has it; the kernel does not know it; \
             instead: clsact filters of priority 1; somebody else's filter of priority 1 may stand before \
             them\n"
        );
        assert_eq!(section(&KernelStatus::default(), Colour::Never), None);
    }
}
