//! `xvip flows`: entries out of the conntrack maps, a piece at a time.

use std::{
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
};

use aya::Pod;
use lb_common::{
    abi::{Address, Flow, FlowKey, NatReturn},
    conntrack,
};

use crate::{
    admin::{
        flows::{Counter, Directory, FlowEntry, FlowQuery, FlowState},
        server::Lines,
        stream::{End, Item},
        trace::protocol_word,
    },
    core::conntrack::Backends,
    io::{
        bpf::{BpfError, Conntrack, FamilyConntrack, Pins, Table},
        clock,
    },
};

/// Entries whose lines are sent together: about 100 KB.
const STEP: usize = 512;

/// Send the entries that `query` asks for, or their counts, and the end.
pub(super) fn list(
    pins: &Pins,
    directory: &Directory,
    query: &FlowQuery,
    lines: &Lines,
) -> Result<(), BpfError> {
    let maps = Conntrack::open(pins)?;
    let view = View {
        directory,
        backends: maps.backends()?,
        now: clock::monotonic_seconds(),
    };
    let mut listing = Listing {
        view,
        query,
        lines,
        counter: Counter::default(),
        end: End::default(),
    };
    let mut flow = ControlFlow::Continue(());
    if query.wants_family(true) {
        flow = listing.family(&maps.v4)?;
    }
    if query.wants_family(false) && flow.is_continue() {
        flow = listing.family(&maps.v6)?;
    }
    if flow.is_continue() || listing.end.more {
        listing.finish();
    }
    Ok(())
}

/// What makes words of an entry.
pub(super) struct View<'a> {
    pub(super) directory: &'a Directory,
    pub(super) backends: Backends,
    pub(super) now: u32,
}

impl View<'_> {
    /// The entry in words.
    pub(super) fn entry<A: Address>(
        &self,
        key: &FlowKey<A>,
        flow: &Flow,
        half_open: bool,
    ) -> FlowEntry
    where
        IpAddr: From<A>,
    {
        let name = self.directory.backends.get(&flow.backend());
        let epoch = self
            .backends
            .get(&flow.backend())
            .map(|backend| backend.epoch);
        FlowEntry {
            client: SocketAddr::new(key.src().into(), key.sport()),
            vip: SocketAddr::new(key.dst().into(), key.dport()),
            protocol: protocol_word(key.proto()),
            service: name.map(|name| name.service.clone()),
            backend: name.map(|name| name.name.clone()),
            method: name.map(|name| name.method),
            state: state(flow, epoch),
            half_open,
            nat_port: Some(flow.nat_port()).filter(|port| *port != 0),
            idle_seconds: self.now.saturating_sub(flow.last_seen()),
        }
    }
}

/// State of a flow whose backend is in this epoch.
fn state(flow: &Flow, epoch: Option<u16>) -> FlowState {
    match flow.state() {
        // The client knows that it is over.
        conntrack::FlowState::Closed => FlowState::Closed,
        _ if epoch.is_some_and(|epoch| epoch != flow.epoch()) => FlowState::Reset,
        conntrack::FlowState::Syn => FlowState::Syn,
        conntrack::FlowState::Established => FlowState::Established,
        conntrack::FlowState::Fin => FlowState::Fin,
        conntrack::FlowState::Udp => FlowState::Udp,
    }
}

struct Listing<'a> {
    view: View<'a>,
    query: &'a FlowQuery,
    lines: &'a Lines,
    counter: Counter,
    end: End,
}

impl Listing<'_> {
    /// The entries of a family. Breaks when no more are wanted.
    fn family<A: Address + Pod>(
        &mut self,
        maps: &FamilyConntrack<A>,
    ) -> Result<ControlFlow<()>, BpfError>
    where
        FlowKey<A>: Pod,
        NatReturn<A>: Pod,
        IpAddr: From<A>,
    {
        for (table, half_open) in [(&maps.half_flows, true), (&maps.flows, false)] {
            if self.table(table, half_open)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn table<A: Address + Pod>(
        &mut self,
        table: &Table<FlowKey<A>, Flow>,
        half_open: bool,
    ) -> Result<ControlFlow<()>, BpfError>
    where
        FlowKey<A>: Pod,
        IpAddr: From<A>,
    {
        for piece in table.pieces()? {
            for entries in piece?.chunks(STEP) {
                let mut lines = Vec::new();
                let wanted = entries.iter().try_for_each(|(key, flow)| {
                    let entry = self.view.entry(key, flow, half_open);
                    self.take(entry, &mut lines)
                });
                let gone = if lines.is_empty() {
                    self.lines.is_closed()
                } else {
                    self.lines.blocking_send(lines).is_err()
                };
                if wanted.is_break() || gone {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Take an entry in, if it is asked for. Breaks if that is one too many.
    fn take(&mut self, entry: FlowEntry, lines: &mut Vec<u8>) -> ControlFlow<()> {
        if !self.query.fits(&entry) {
            return ControlFlow::Continue(());
        }
        if self.query.count {
            self.counter.add(entry);
            return ControlFlow::Continue(());
        }
        if self
            .query
            .limit
            .is_some_and(|limit| self.end.items >= limit)
        {
            self.end.more = true;
            return ControlFlow::Break(());
        }
        self.end.items += 1;
        Item::Flow(entry).append_to(lines);
        ControlFlow::Continue(())
    }

    /// The counts, if they were asked for, and the end.
    fn finish(mut self) {
        let mut piece = Vec::new();
        for count in self.counter.counts() {
            self.end.items += 1;
            Item::Count(count).append_to(&mut piece);
        }
        Item::End(self.end).append_to(&mut piece);
        // The asker may be gone.
        let _ = self.lines.blocking_send(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow of another epoch than its backend's is being reset, unless the client closed it.
    #[test]
    fn epochs_show_in_the_state() {
        let flow = |state| Flow::new(1, 0, 0, state, 1).in_epoch(4);
        for (from, epoch, to) in [
            (conntrack::FlowState::Syn, Some(4), FlowState::Syn),
            (
                conntrack::FlowState::Established,
                Some(4),
                FlowState::Established,
            ),
            (
                conntrack::FlowState::Established,
                None,
                FlowState::Established,
            ),
            (conntrack::FlowState::Established, Some(5), FlowState::Reset),
            (conntrack::FlowState::Fin, Some(5), FlowState::Reset),
            (conntrack::FlowState::Closed, Some(5), FlowState::Closed),
        ] {
            assert_eq!(state(&flow(from), epoch), to);
        }
    }
}
