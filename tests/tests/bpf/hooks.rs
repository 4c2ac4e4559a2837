//! A node whose processes' sockets meet the cgroup hooks: its addresses, its cgroup, the hooks' maps;
//! and the process that a test starts in that cgroup, which is this test binary again.

use std::{
    env,
    fs::File,
    net::{IpAddr, SocketAddr, TcpListener},
    process::Command,
};

use aya::programs::CgroupAttachMode;
use lb_common::reason::Reason;
use lb_tests::{
    kernel::Cgroup,
    netns::{NetNs, unique},
    packet::{Family, VIP_PORT},
    process::output,
};

use crate::world::{LOCAL, MASTER2, World};

/// Tells the process in the cgroup what to do.
const ORDER: &str = "XVIP_TEST_ORDER";
/// What that process writes before its answer.
const ANSWER: &str = "answer: ";

/// What this process was started for; `None`: it runs tests.
pub(crate) fn order() -> Option<String> {
    env::var(ORDER).ok()
}

/// What came of the order.
pub(crate) fn answer(text: &str) {
    println!("\n{ANSWER}{text}");
}

/// A node: its addresses, its listeners, its cgroup with the hooks, and their maps.
pub(crate) struct Node<F: Family> {
    /// The hooks' maps.
    pub(crate) world: World<F>,
    /// TCP listeners.
    pub(crate) listeners: Vec<TcpListener>,
    cgroup: Cgroup,
}

impl<F: Family> Node<F> {
    /// A process in the cgroup carries an order out, which is what the "test" `process` of this binary
    /// does; its answer.
    #[track_caller]
    pub(crate) fn carry_out(&self, process: &str, order: &str) -> String {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ >"$0" && exec "$@""#])
            .arg(self.cgroup.path().join("cgroup.procs"))
            .arg(env::current_exe().unwrap())
            .args(["--exact", process, "--nocapture"])
            .env(ORDER, order);
        let written = output(&mut command).unwrap();
        let answer = written.lines().find_map(|line| line.strip_prefix(ANSWER));
        answer
            .unwrap_or_else(|| panic!("no answer in {written}"))
            .to_owned()
    }

    /// The reasons that were counted since the last call.
    pub(crate) fn counted(&self) -> Vec<(Reason, u64)> {
        let counted = self.world.plane_ref().counted().unwrap().into_iter();
        counted.map(|(reason, count, _)| (reason, count)).collect()
    }
}

/// The service's address.
pub(crate) fn vip<F: Family>() -> SocketAddr {
    SocketAddr::new(F::VIP.into(), VIP_PORT)
}

/// Run `scenario` on a node that has the VIP and is master1 and master2 at once, with a backend on
/// each: only the hooks, which are these, tell them apart.
pub(crate) fn on_a_node<F: Family>(hooks: &[&str], scenario: impl FnOnce(&mut Node<F>) + Send) {
    let namespace = NetNs::new("hooks").unwrap();
    for address in [F::VIP, F::MASTERS[0], F::MASTERS[1]] {
        let address: IpAddr = address.into();
        namespace.add_address(address, "lo").unwrap();
    }
    let played = namespace.enter(|| {
        let mut world = World::with(hooks);
        world.reset();
        world.service(&[LOCAL, MASTER2]);
        world.maglev(&[MASTER2]);
        world.node_netns(lb_user::io::netns::cookie()?.get());
        let cgroup = Cgroup::new(&unique("hooks"))?;
        for hook in hooks {
            let directory = File::open(cgroup.path())?;
            world
                .plane()
                .hook(hook)?
                .attach(directory, CgroupAttachMode::Single)?;
        }
        scenario(&mut Node {
            world,
            listeners: Vec::new(),
            cgroup,
        });
        Ok(())
    });
    played.unwrap();
}
