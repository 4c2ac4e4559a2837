//! Real-time scheduling of the controller's thread: `SCHED_FIFO` and memory that stays in RAM, so
//! that adverts leave in time on a machine whose CPUs are busy.
//!
//! - It is for this thread alone: `SCHED_RESET_ON_FORK` gives threads and processes that it starts
//!   the ordinary scheduling.
//! - The lowest of real-time priorities would do, as ordinary threads are below all of them. The
//!   default leaves room on both sides.
//! - A real-time thread that does not sleep takes a CPU from everybody else. `RLIMIT_RTTIME` makes
//!   the kernel send SIGXCPU then, and the thread is scheduled as all others for a while.
//! - Pages that are there are locked at once, later ones when they are touched (`MCL_ONFAULT`): thread
//!   stacks and the allocator's reserves take no memory that nobody uses.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use nix::libc;
use rustix::{
    mm::{MlockAllFlags, mlockall, munlockall},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::gettid,
};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tracing::{info, warn};

use crate::{
    admin::model::SchedulingStatus,
    config::model::Config,
    core::speed::{SAFE_ORDINARY, wants_realtime, warnings},
};

/// CPU time that the thread may take without sleeping.
const MAX_SPIN: Duration = Duration::from_millis(500);
/// How long it is then scheduled as all others.
const PENANCE: Duration = Duration::from_secs(10);

/// The scheduling of one thread.
pub struct Realtime {
    thread: libc::pid_t,
    /// The priority in force; 0: scheduled as all others.
    priority: Arc<AtomicU8>,
    /// Why it is not as the configuration wants it.
    refused: Option<String>,
}

impl Realtime {
    /// The calling thread's, which is as all others so far. A task on `runtime`, which must have
    /// threads of its own, watches that it does not spin.
    pub fn of_this_thread(runtime: &Handle) -> io::Result<Self> {
        let thread = gettid().as_raw_nonzero().get();
        let priority = Arc::new(AtomicU8::new(0));
        let entered = runtime.enter();
        // Before there is a limit: the signal kills who does not expect it.
        let mut spins = signal(SignalKind::from_raw(libc::SIGXCPU))?;
        drop(entered);
        let wanted = Arc::clone(&priority);
        runtime.spawn(async move {
            while spins.recv().await.is_some() {
                pause(thread, &wanted).await;
            }
        });
        Ok(Self {
            thread,
            priority,
            refused: None,
        })
    }

    /// Do what `config` asks for, and say what came of it. What is refused is no error: adverts are
    /// sent all the same.
    pub fn follow(&mut self, config: &Config) {
        let wanted = if wants_realtime(config) {
            config.node.realtime_priority.get()
        } else {
            0
        };
        let before = self.priority.load(Ordering::Relaxed);
        if wanted != before || self.refused.is_some() {
            self.change(wanted);
        }
        for warning in warnings(config, self.is_on()) {
            warn!("{warning}");
        }
    }

    fn change(&mut self, wanted: u8) {
        self.refused = None;
        self.priority.store(0, Ordering::Relaxed);
        if let Err(error) = set_up(self.thread, wanted) {
            self.refused = Some(error.to_string());
            warn!(
                %error,
                "no real-time scheduling (needs CAP_SYS_NICE, and a cpu cgroup that may run \
                 real-time threads): adverts are late where the CPUs are busy, so \
                 advert_interval should be {SAFE_ORDINARY:?} or more"
            );
            return;
        }
        self.priority.store(wanted, Ordering::Relaxed);
        if wanted == 0 {
            info!("the controller is scheduled as all others");
            return;
        }
        info!(priority = wanted, "the controller has real-time scheduling");
        if let Err(error) = lock_memory() {
            warn!(%error, "cannot lock memory (needs CAP_IPC_LOCK): adverts are late while it swaps");
        }
    }

    /// For the status document.
    pub fn status(&self) -> SchedulingStatus {
        let what = match (self.priority.load(Ordering::Relaxed), &self.refused) {
            (0, None) => "ordinary".to_owned(),
            (0, Some(why)) => format!("ordinary (real-time was refused: {why})"),
            (priority, _) => format!("real-time, priority {priority}"),
        };
        SchedulingStatus {
            realtime: self.is_on(),
            what,
        }
    }

    fn is_on(&self) -> bool {
        self.priority.load(Ordering::Relaxed) > 0
    }
}

/// The thread has not slept for [`MAX_SPIN`]: let others run.
async fn pause(thread: libc::pid_t, wanted: &AtomicU8) {
    if schedule(thread, 0).is_err() {
        return;
    }
    warn!(
        "the controller computed for {MAX_SPIN:?} without a pause: it has ordinary scheduling for \
         {PENANCE:?}"
    );
    sleep(PENANCE).await;
    if let Err(error) = schedule(thread, wanted.load(Ordering::Relaxed)) {
        warn!(%error, "cannot go back to real-time scheduling");
    }
}

fn set_up(thread: libc::pid_t, priority: u8) -> io::Result<()> {
    if priority > 0 {
        limit_spinning()?;
    } else {
        munlockall()?;
    }
    schedule(thread, priority)
}

/// Whether the kernel gives a thread of this process real-time scheduling: one that ends at once tries it.
pub fn probe() -> io::Result<()> {
    const LOWEST: u8 = 1;
    const THIS_THREAD: libc::pid_t = 0;
    std::thread::scope(|scope| {
        let trial = scope.spawn(|| schedule(THIS_THREAD, LOWEST));
        trial
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the trial panicked")))
    })
}

/// `SCHED_FIFO` with `priority`; 0: `SCHED_OTHER`.
fn schedule(thread: libc::pid_t, priority: u8) -> io::Result<()> {
    let policy = if priority > 0 {
        libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK
    } else {
        libc::SCHED_OTHER
    };
    let param = libc::sched_param {
        sched_priority: priority.into(),
    };
    // SAFETY: the kernel reads `param`, which lives until the call returns, and nothing else.
    let result = unsafe { libc::sched_setscheduler(thread, policy, &raw const param) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The signal comes after [`MAX_SPIN`]. The hard limit, at which the kernel kills, stays.
fn limit_spinning() -> io::Result<()> {
    let maximum = getrlimit(Resource::Rttime).maximum;
    let micros = u64::try_from(MAX_SPIN.as_micros()).unwrap_or(u64::MAX);
    let current = maximum.map_or(micros, |maximum| micros.min(maximum));
    let limit = Rlimit {
        current: Some(current),
        maximum,
    };
    Ok(setrlimit(Resource::Rttime, limit)?)
}

fn lock_memory() -> io::Result<()> {
    mlockall(MlockAllFlags::CURRENT)?;
    Ok(mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}
