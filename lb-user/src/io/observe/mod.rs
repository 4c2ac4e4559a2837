//! What an operator looks into the data plane with: `xvip flows`, `trace` and `explain`.
//!
//! The controller's thread only takes the question; maps are read, programs run and records
//! waited for on other threads.

mod explain;
mod flows;
mod trace;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ipnet::IpNet;
use lb_common::abi::{self, events::TraceEvent};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
};

use super::bpf::{Loading, ring::RingReader};
use crate::{
    admin::{
        explain::{BackendHealth, ExplainQuery},
        flows::{BackendName, Directory, FlowQuery},
        model::{BackendState, CommandError, Method, Reply},
        server::Lines,
        stream::{End, Item, Started},
        trace::TraceQuery,
    },
    core::{
        controller::{Controller, Input},
        time::Timestamp,
    },
};

/// Who asked, and where the answer goes.
pub struct Asker {
    reply: oneshot::Sender<Result<Reply, CommandError>>,
    lines: Lines,
}

impl Asker {
    /// Somebody who hears the first line by `reply` and those after it by `lines`.
    pub fn new(reply: oneshot::Sender<Result<Reply, CommandError>>, lines: Lines) -> Self {
        Self { reply, lines }
    }

    /// Refuse.
    fn refuse(self, error: CommandError) {
        // The asker may be gone.
        let _ = self.reply.send(Err(error));
    }

    /// Begin a stream; where its lines go.
    fn begin(self) -> Lines {
        // A gone asker is noticed by the first line.
        let _ = self.reply.send(Ok(Reply::Stream(Started::NOW)));
        self.lines
    }
}

/// Answers operators' questions about the data plane that is pinned there.
pub struct Observer {
    loading: Loading,
    /// Has threads of its own.
    threads: runtime::Handle,
    /// Where the controller hears of the end of a trace.
    inputs: mpsc::UnboundedSender<Input>,
    /// The trace under way, by its client.
    under_way: Arc<Mutex<Option<IpNet>>>,
    /// Number of the last trace.
    serial: u64,
}

/// A trace under way. Dropping it ends it.
struct UnderWay {
    serial: u64,
    inputs: mpsc::UnboundedSender<Input>,
    client: Arc<Mutex<Option<IpNet>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Nobody listens any more when the controller ends: it has taken its marks away itself.
        let _ = self.inputs.send(Input::TraceEnded {
            serial: self.serial,
        });
        *lock(&self.client) = None;
    }
}

/// What holds it cannot leave it half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer {
    /// An observer of the data plane that was loaded so, that works on the threads of a runtime.
    /// The controller hears by `inputs` when a trace has ended.
    pub fn new(
        loading: Loading,
        threads: runtime::Handle,
        inputs: mpsc::UnboundedSender<Input>,
    ) -> Self {
        Self {
            loading,
            threads,
            inputs,
            under_way: Arc::default(),
            serial: 0,
        }
    }

    /// List or count conntrack entries.
    pub fn flows(&self, controller: &Controller, query: FlowQuery, asker: Asker) {
        let directory = directory(controller);
        if let Err(error) = query.check(&directory) {
            return asker.refuse(error.into());
        }
        let lines = asker.begin();
        let pins = self.loading.pins.clone();
        self.threads.spawn_blocking(move || {
            if let Err(error) = flows::list(&pins, &directory, &query, &lines) {
                // The asker may be gone.
                let _ = lines.blocking_send(Item::Error(error.to_string()).line());
            }
        });
    }
}

impl Observer {
    /// Follow packets. What the controller is to be told, if that begins.
    pub fn trace(
        &mut self,
        controller: &Controller,
        query: TraceQuery,
        asker: Asker,
    ) -> Option<Input> {
        match self.begin_trace(controller, &query) {
            Ok((ring, under_way, vips)) => {
                let teller = trace::Teller::new(directory(controller));
                let lines = asker.begin();
                self.threads.spawn(async move {
                    trace::follow(ring, teller, &query, &lines).await;
                    drop(under_way);
                });
                let serial = self.serial;
                Some(Input::Trace { serial, vips })
            }
            Err(error) => {
                asker.refuse(error);
                None
            }
        }
    }

    fn begin_trace(
        &mut self,
        controller: &Controller,
        query: &TraceQuery,
    ) -> Result<(RingReader<TraceEvent>, UnderWay, BTreeSet<IpAddr>), CommandError> {
        let failed = |error: &dyn std::error::Error| CommandError::Failed(error.to_string());
        let vips = query.vips(configured_vips(controller))?;
        let mut current = lock(&self.under_way);
        if let Some(client) = *current {
            return Err(CommandError::Tracing { client });
        }
        // The reader registers with the runtime that it is opened in.
        let _entered = self.threads.enter();
        let mut ring =
            RingReader::open(&self.loading.pins.map("trace_events")).map_err(|e| failed(&e))?;
        trace::clear(&mut ring);
        trace::set_filter(&self.loading.pins.map("trace"), query.filter())
            .map_err(|e| failed(&e))?;
        self.serial += 1;
        *current = Some(query.client);
        let under_way = UnderWay {
            serial: self.serial,
            inputs: self.inputs.clone(),
            client: Arc::clone(&self.under_way),
        };
        Ok((ring, under_way, vips.into_iter().collect()))
    }
}

impl Observer {
    /// Say what would become of a packet.
    pub fn explain(
        &self,
        controller: &Controller,
        now: Timestamp,
        query: ExplainQuery,
        asker: Asker,
    ) {
        let facts = explain::Facts {
            loading: self.loading.clone(),
            directory: directory(controller),
            health: health(controller, now),
            uplinks: uplinks(controller),
        };
        let lines = asker.begin();
        self.threads.spawn_blocking(move || {
            let mut piece = Vec::new();
            match facts.explain(&query) {
                Ok(explanation) => {
                    Item::Explain(Box::new(explanation)).append_to(&mut piece);
                    let end = End {
                        items: 1,
                        ..End::default()
                    };
                    Item::End(end).append_to(&mut piece);
                }
                Err(error) => Item::Error(error.to_string()).append_to(&mut piece),
            }
            // The asker may be gone.
            let _ = lines.blocking_send(piece);
        });
    }
}

/// Uplinks that carry the program, in configuration order.
fn uplinks(controller: &Controller) -> Vec<explain::Uplink> {
    let network = controller.network();
    let mac = |ifindex| network.at(ifindex).and_then(|interface| interface.mac);
    controller
        .attached()
        .iter()
        .filter_map(|attachment| explain::Uplink::new(attachment, mac(attachment.place.ifindex)))
        .collect()
}

/// What this node's checks say of each backend, by its id.
fn health(controller: &Controller, now: Timestamp) -> BTreeMap<u32, BackendHealth> {
    let mut all = BTreeMap::new();
    let services = controller.config().services.iter().enumerate();
    for ((position, service), placement) in services.zip(controller.placements()) {
        let backends = service.backends.iter().enumerate();
        for ((index, backend), place) in backends.zip(&placement.backends) {
            let Some(view) = controller.backend(position, index) else {
                continue;
            };
            let health = BackendHealth {
                address: backend.address,
                method: method(place.method),
                state: match view.state {
                    abi::BackendState::Up => BackendState::Up,
                    abi::BackendState::Draining => BackendState::Draining,
                    abi::BackendState::Down => BackendState::Down,
                },
                since_ms: u64::try_from(now.saturating_since(view.since).as_millis())
                    .unwrap_or(u64::MAX),
                reason: view.reason.clone(),
            };
            all.insert(place.id, health);
        }
    }
    all
}

/// The VIPs of the configuration.
fn configured_vips(controller: &Controller) -> impl Iterator<Item = IpAddr> {
    let config = controller.config();
    let moved = config.vrrp.iter().flat_map(|vrrp| &vrrp.addresses);
    let served = config.services.iter().map(|service| service.address);
    moved.map(IpNet::addr).chain(served)
}

/// The names of what the maps hold by ids.
fn directory(controller: &Controller) -> Directory {
    let mut directory = Directory::default();
    let services = &controller.config().services;
    for (service, placement) in services.iter().zip(controller.placements()) {
        directory
            .services
            .insert(placement.id, service.name.clone());
        for (backend, place) in service.backends.iter().zip(&placement.backends) {
            let name = BackendName {
                service: service.name.clone(),
                name: backend.name.clone(),
                method: method(place.method),
                address: backend.address,
            };
            directory.backends.insert(place.id, name);
        }
    }
    directory
}

const fn method(method: abi::Method) -> Method {
    match method {
        abi::Method::Local => Method::Local,
        abi::Method::Dsr => Method::Dsr,
        abi::Method::Nat => Method::Nat,
    }
}
