//! Long-lived connections: watch streams that must go on whatever happens to the VIP.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    sync::oneshot,
};

use crate::{
    client::{self, Load},
    netns::NetNs,
    process::wait_until,
    topology::Node,
};

/// What has come through one stream.
#[derive(Clone, Debug, Default)]
struct Stream {
    node: String,
    events: u64,
    ended: Option<Ended>,
}

/// How and when a stream ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The node that served it.
    pub node: String,
    /// What the client was told.
    pub why: String,
    /// When the client noticed.
    pub at: Instant,
}

/// Watch streams of a client. Dropping it closes them.
#[derive(Debug)]
pub struct Watches {
    streams: Shared,
    // Its end ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Watches {
    /// Opens `count` streams from a node and waits for the first event of each.
    pub fn open(node: &Node, load: &Load, count: usize, deadline: Duration) -> Result<Self> {
        Self::open_in(node.namespace(), load, count, deadline)
    }

    /// The same from a namespace that is no node's.
    pub fn open_in(
        namespace: &NetNs,
        load: &Load,
        count: usize,
        deadline: Duration,
    ) -> Result<Self> {
        let streams = Shared(Arc::new(Mutex::new(vec![Stream::default(); count])));
        let (stop, stopped) = oneshot::channel();
        let (shared, load) = (streams.clone(), load.clone());
        // Detached: it ends with `stop`.
        drop(namespace.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start a runtime")?;
            runtime.block_on(async {
                for number in 0..count {
                    tokio::spawn(follow(shared.clone(), number, load.clone()));
                }
                // An error is the end, too: the other side is gone.
                let _ = stopped.await;
            });
            Ok(())
        }));
        let watches = Self {
            streams,
            _stop: stop,
        };
        watches.wait_events(1, deadline)?;
        Ok(watches)
    }

    /// Waits until every stream has brought `count` more events; fails if one has ended.
    pub fn wait_events(&self, count: u64, deadline: Duration) -> Result<()> {
        let before: Vec<_> = self.streams.all().iter().map(|s| s.events).collect();
        wait_until("events of every watch", deadline, || {
            let now = self.streams.all();
            let far = now
                .iter()
                .zip(&before)
                .all(|(s, before)| s.events >= before + count);
            let ended = now.iter().any(|stream| stream.ended.is_some());
            Ok((far || ended).then_some(()))
        })?;
        let ended = self.ended();
        ensure!(ended.is_empty(), "watches ended: {ended:?}");
        Ok(())
    }

    /// Waits until every stream that one of these nodes serves has brought `count` more events; fails if
    /// a stream has ended.
    pub fn wait_events_of(&self, nodes: &[&str], count: u64, deadline: Duration) -> Result<()> {
        let events = || -> Vec<u64> {
            let streams = self.streams.all();
            let theirs = streams.iter().filter(|s| nodes.contains(&s.node.as_str()));
            theirs.map(|stream| stream.events).collect()
        };
        let before = events();
        ensure!(!before.is_empty(), "{nodes:?} serve no stream");
        let what = format!("events of the streams on {nodes:?}");
        wait_until(&what, deadline, || {
            let far = events()
                .iter()
                .zip(&before)
                .all(|(now, b)| *now >= b + count);
            Ok((far || !self.ended().is_empty()).then_some(()))
        })?;
        let ended = self.ended();
        ensure!(ended.is_empty(), "watches ended: {ended:?}");
        Ok(())
    }

    /// The streams that have ended: their nodes and why.
    pub fn ended(&self) -> Vec<(String, String)> {
        let streams = self.streams.all();
        let ended = streams
            .iter()
            .filter_map(|stream| stream.ended.clone())
            .map(|ended| (ended.node, ended.why));
        ended.collect()
    }

    /// Waits until every stream has ended.
    pub fn wait_ended(&self, deadline: Duration) -> Result<Vec<Ended>> {
        let ended = || -> Option<Vec<Ended>> {
            let streams = self.streams.all();
            streams.iter().map(|stream| stream.ended.clone()).collect()
        };
        wait_until("the end of every watch", deadline, || Ok(ended()))
            .with_context(|| format!("{} ended", self.ended().len()))
    }

    /// How many streams each node serves.
    pub fn by_node(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for stream in self.streams.all().iter() {
            *counts.entry(stream.node.clone()).or_default() += 1;
        }
        counts
    }
}

/// What all streams have brought so far.
#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Vec<Stream>>>);

impl Shared {
    fn all(&self) -> MutexGuard<'_, Vec<Stream>> {
        match self.0.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn change(&self, number: usize, change: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.all().get_mut(number) {
            change(stream);
        }
    }
}

async fn follow(streams: Shared, number: usize, load: Load) {
    let why = match read_events(&streams, number, &load).await {
        Ok(()) => "the server closed it".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let at = Instant::now();
    streams.change(number, |stream| {
        let node = stream.node.clone();
        stream.ended = Some(Ended { node, why, at });
    });
}

async fn read_events(streams: &Shared, number: usize, load: &Load) -> Result<()> {
    let mut connection = BufReader::new(client::open(load).await?);
    let request = format!("GET /watch HTTP/1.1\r\nHost: {}\r\n\r\n", load.target);
    connection.write_all(request.as_bytes()).await?;
    let mut line = String::new();
    while connection.read_line(&mut line).await? > 0 {
        if let Ok(event) = serde_json::from_str::<serde_json::Value>(line.trim())
            && let Some(node) = event.get("node").and_then(serde_json::Value::as_str)
        {
            streams.change(number, |stream| {
                node.clone_into(&mut stream.node);
                stream.events += 1;
            });
        }
        line.clear();
    }
    Ok(())
}
