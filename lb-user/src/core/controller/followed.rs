//! The VIPs whose packets somebody follows (`xvip trace`): marked in the data plane as long as the
//! trace lasts, and in no table of a controller that has just started.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::abi::Vip;

use crate::core::tables::Tables;

/// The trace that is under way, if any.
#[derive(Debug, Default)]
pub(super) struct Followed {
    serial: u64,
    vips: BTreeSet<IpAddr>,
}

impl Followed {
    /// A trace begins, in place of another one.
    pub(super) fn begin(&mut self, serial: u64, vips: BTreeSet<IpAddr>) {
        *self = Self { serial, vips };
    }

    /// A trace has ended. Whether it was the one under way.
    pub(super) fn end(&mut self, serial: u64) -> bool {
        let ends = self.serial == serial;
        if ends {
            self.vips.clear();
        }
        ends
    }

    /// Whatever was under way has ended.
    pub(super) fn clear(&mut self) {
        self.vips.clear();
    }

    /// Mark the VIPs in the tables, those that are there.
    pub(super) fn mark(&self, tables: &mut Tables) {
        for vip in &self.vips {
            let value: Option<&mut Vip> = match vip {
                IpAddr::V4(vip) => tables.v4.vips.get_mut(&vip.octets()),
                IpAddr::V6(vip) => tables.v6.vips.get_mut(&vip.octets()),
            };
            if let Some(value) = value {
                *value = value.traced(true);
            }
        }
    }
}
