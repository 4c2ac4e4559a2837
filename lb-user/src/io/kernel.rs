//! Finds out what this machine's kernel can do, by trying it ([`crate::core::kernel`]).

use std::env;

use rustix::system::uname;

use super::{
    bpf::features,
    netlink::{Netlink, NetlinkError, sock_diag::SockDiag},
    netns, realtime,
};
use crate::{
    config::model::CgroupPath,
    core::kernel::{Feature, Kernel, Tried},
};

/// Names of features, with commas between them, that xvip does without although the kernel has them:
/// where one is broken, and for tests of what is done instead.
pub const WITHOUT: &str = "XVIP_KERNEL_WITHOUT";

/// [`WITHOUT`] names what xvip cannot be told to do without.
#[derive(Debug, thiserror::Error)]
#[error("{WITHOUT}: {name:?} cannot be left out ({} can)", dispensable().map(Feature::name).collect::<Vec<_>>().join(", "))]
pub struct UnknownFeature {
    name: String,
}

fn dispensable() -> impl Iterator<Item = Feature> {
    let all = Feature::ALL.into_iter();
    all.filter(|feature| feature.is_dispensable())
}

/// Try every feature that xvip uses. `cgroup` is where the hooks of system calls go: none are wanted
/// where it is off.
pub fn detect(cgroup: &CgroupPath) -> Result<Kernel, UnknownFeature> {
    let unwanted = unwanted(&env::var(WITHOUT).unwrap_or_default())?;
    let hooks = *cgroup != CgroupPath::Off;
    let of_hooks = [
        Feature::ConnectHooks,
        Feature::DatagramHooks,
        Feature::SetRetval,
    ];
    let wanted = Feature::ALL.into_iter();
    let wanted = wanted.filter(|feature| hooks || !of_hooks.contains(feature));
    let tried = wanted.map(|feature| Tried {
        feature,
        result: if unwanted.contains(&feature) {
            Err(format!("{WITHOUT} names it"))
        } else {
            attempt(feature)
        },
    });
    Ok(Kernel {
        release: release(),
        tried: tried.collect(),
    })
}

fn unwanted(list: &str) -> Result<Vec<Feature>, UnknownFeature> {
    let names = list.split(',').map(str::trim);
    let features = names.filter(|name| !name.is_empty()).map(|name| {
        dispensable()
            .find(|feature| feature.name() == name)
            .ok_or_else(|| UnknownFeature {
                name: name.to_owned(),
            })
    });
    features.collect()
}

/// What `uname -r` prints.
pub fn release() -> String {
    uname().release().to_string_lossy().into_owned()
}

fn attempt(feature: Feature) -> Result<(), String> {
    if let Some(result) = features::probe(feature) {
        return result;
    }
    match feature {
        Feature::NetnsCookie => netns::cookie().map(drop).map_err(|error| error.to_string()),
        Feature::Realtime => realtime::probe().map_err(|error| error.to_string()),
        Feature::SockDestroy => answered(SockDiag::open().and_then(|mut own| own.can_destroy())),
        Feature::ManagedNeighbours => {
            answered(Netlink::open().and_then(|mut own| own.knows_managed_neighbours()))
        }
        // `features::probe` answers for the others.
        _ => Err("nobody tried it".to_owned()),
    }
}

fn answered(answer: Result<bool, NetlinkError>) -> Result<(), String> {
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err("the kernel does not know it".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an operator does without is named as in the status.
    #[test]
    fn features_can_be_left_out() {
        assert_eq!(unwanted("").unwrap(), []);
        let two = unwanted("tcx, xdp_frags").unwrap();
        assert_eq!(two, [Feature::Tcx, Feature::XdpFrags]);
        let error = unwanted("tcx,jit").unwrap_err().to_string();
        assert_eq!(
            error,
            "XVIP_KERNEL_WITHOUT: \"jit\" cannot be left out (sockmap_update, coarse_clock, xdp_frags, \
             set_retval, tcx can)"
        );
    }
}
