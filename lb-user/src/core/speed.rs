//! How short an advertisement interval may be on a machine that has other work to do.
//!
//! An Active router must not be silent for three intervals, and it owns the addresses for no longer
//! than that after an advert ([`super::vrrp`]). A thread that is scheduled as all others waits for
//! them where the CPUs are busy; the kernel's real-time classes do not. What was measured is in
//! `bench/README.md`.

use std::time::Duration;

use crate::config::model::{Config, Realtime, VrrpConfig};

/// Below this an interval asks for real-time scheduling: ordinary threads were seen 166 ms late on busy
/// CPUs, which a lease of three intervals has to outlast.
pub const SAFE_ORDINARY: Duration = Duration::from_millis(100);

/// For so many intervals an owner may do nothing when its next advert is due: its lease lasts three from the
/// advert before.
const STANDSTILL_INTERVALS: u32 = 2;

/// Whether the controller's thread is to be scheduled before all ordinary ones.
pub fn wants_realtime(config: &Config) -> bool {
    match config.node.realtime {
        Realtime::On => true,
        Realtime::Off => false,
        Realtime::Auto => config.vrrp.iter().any(is_fast),
    }
}

fn is_fast(vrrp: &VrrpConfig) -> bool {
    vrrp.advert_interval.duration() < SAFE_ORDINARY
}

/// What an operator should know of the intervals of `config`, with and without real-time scheduling
/// of the thread that sends the adverts: one line for each instance with a fast one.
pub fn warnings(config: &Config, has_realtime: bool) -> Vec<String> {
    let fast = config.vrrp.iter().filter(|vrrp| is_fast(vrrp));
    fast.map(|vrrp| {
        let interval = vrrp.advert_interval.duration();
        let start = format!("vrrp {:?}: advert_interval is {interval:?}", vrrp.name);
        if has_realtime {
            let margin = interval * STANDSTILL_INTERVALS;
            format!(
                "{start}; if this machine stands still for more than {margin:?} (its hypervisor or firmware), it \
                 loses its addresses to others, which real-time scheduling cannot prevent"
            )
        } else {
            format!(
                "{start}; below {SAFE_ORDINARY:?} a busy machine loses its addresses to others for no \
                 reason, unless the controller has real-time scheduling"
            )
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::model::AdvertInterval, core::fixture};

    fn config(centis: u16, realtime: Realtime) -> Config {
        let mut config = fixture::config(10, "");
        config.node.realtime = realtime;
        for vrrp in &mut config.vrrp {
            vrrp.advert_interval = AdvertInterval::from_centis(centis).unwrap();
        }
        config
    }

    /// By default fast adverts ask for it and others do not; the operator has the last word.
    #[test]
    fn fast_adverts_want_realtime() {
        let wants = |centis, realtime| wants_realtime(&config(centis, realtime));
        assert!(wants(1, Realtime::Auto) && wants(9, Realtime::Auto));
        assert!(!wants(10, Realtime::Auto) && !wants(100, Realtime::Auto));
        assert!(wants(100, Realtime::On));
        assert!(!wants(1, Realtime::Off));
    }

    /// Only what is fast is warned of, by name, and of what real-time scheduling leaves.
    #[test]
    fn warns_of_what_is_fast() {
        for has_realtime in [true, false] {
            assert_eq!(warnings(&config(10, Realtime::Off), has_realtime), [""; 0]);
        }
        let warning = |has_realtime| warnings(&config(2, Realtime::Auto), has_realtime).remove(0);
        let ordinary = warning(false);
        assert!(
            ordinary.contains("is 20ms; below 100ms a busy machine"),
            "{ordinary}"
        );
        let realtime = warning(true);
        assert!(
            realtime.contains("is 20ms; if this machine stands still for more than 40ms"),
            "{realtime}"
        );
    }
}
