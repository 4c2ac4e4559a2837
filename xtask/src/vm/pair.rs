//! Two guests with virtio cards on one bridge: `tests/tests/guest/virtio.rs`.
//!
//! The bridge and the taps are in a network namespace that is made for it. QEMU's own `socket` network
//! has one queue and no offloads; a tap has both.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    thread,
};

use anyhow::{Context, Result};

use super::{
    Binaries, Outcome, archive,
    guest::{Guest, Machine},
    kernel::Kernel,
    plan::{self, Step},
};
use crate::{
    arch::Arch,
    shell::{self, Workspace},
};

/// Jumbo frames reach every card that takes them.
const MTU: &str = "9000";

/// A card: its number, which is the last byte of its MAC, its queues and what QEMU shall not give it.
struct Card {
    number: u8,
    queues: u8,
    more: &'static str,
}

/// Of guest `a`: what the test knows by these numbers, and the card that the guests talk over.
const OF_A: [Card; 6] = [
    card(1, 1, ""),
    card(2, 4, ""),
    card(
        3,
        4,
        ",guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,mrg_rxbuf=off",
    ),
    card(4, 4, ",host_mtu=9000"),
    card(5, 4, ",ctrl_guest_offloads=off"),
    card(99, 1, ""),
];
/// Of guest `b`: the client's, and those of two backends.
const OF_B: [Card; 3] = [
    card(101, 1, ",host_mtu=9000"),
    card(102, 4, ",host_mtu=9000"),
    card(103, 1, ",host_mtu=9000"),
];

const fn card(number: u8, queues: u8, more: &'static str) -> Card {
    Card {
        number,
        queues,
        more,
    }
}

impl Card {
    fn tap(&self) -> String {
        format!("tap{}", self.number)
    }

    /// QEMU's options for it.
    fn options(&self) -> [String; 4] {
        let Self {
            number,
            queues,
            more,
        } = self;
        let many = *queues > 1;
        let queues_of_tap = if many {
            format!(",queues={queues}")
        } else {
            String::new()
        };
        // A vector for each queue's two directions, one for the control queue, one for changes.
        let queues_of_card = if many {
            format!(",mq=on,vectors={}", 2 * queues + 2)
        } else {
            String::new()
        };
        [
            "-netdev".to_owned(),
            format!(
                "tap,id=net{number},ifname={},script=no,downscript=no,vhost=off{queues_of_tap}",
                self.tap()
            ),
            "-device".to_owned(),
            format!(
                "virtio-net-pci,netdev=net{number},mac=02:78:00:00:00:{number:02x},romfile=\
                 {queues_of_card}{more}"
            ),
        ]
    }
}

/// Why there can be no such pair with a kernel, if that is so.
pub(super) fn unavailable(kernel: &Kernel) -> Option<&'static str> {
    if kernel.arch != Arch::X86_64 {
        return Some(
            "the test of two nodes needs tools that only guests of this machine's kind have",
        );
    }
    if !shell::is_root() {
        return Some("a bridge and taps need root");
    }
    let tun = Path::new("/dev/net/tun").exists();
    (!tun).then_some("there is no /dev/net/tun")
}

/// Boots two guests with a kernel and follows both to their end.
pub(super) fn run(
    workspace: &Workspace,
    binaries: &Binaries,
    kernel: &Kernel,
    steps: &[Step],
    scratch: &Path,
) -> Result<Outcome> {
    let network = Network::new()?;
    let directory = scratch.join(format!("{}-pair", kernel.release));
    fs::create_dir_all(&directory)?;
    let script = plan::script(steps, |name| binaries.test(name));
    let initramfs = directory.join("initramfs");
    archive(workspace, binaries, kernel, &script, &directory)?.write(&initramfs)?;
    let follow = |role: &str, cards: &[Card]| -> Result<Outcome> {
        let name = format!("{}{role}", kernel.name);
        let own = directory.join(role);
        fs::create_dir_all(&own)?;
        let options: Vec<_> = cards.iter().flat_map(Card::options).collect();
        let mut guest = Guest::start(&Machine {
            name: &name,
            arch: kernel.arch,
            image: &kernel.image,
            initramfs: &initramfs,
            directory: &own,
            role: Some(role),
            network: &options,
            namespace: Some(&network.path()),
        })?;
        Ok(guest.follow(steps))
    };
    thread::scope(|scope| {
        let a = scope.spawn(|| follow("a", &OF_A));
        let mut outcome = follow("b", &OF_B)?;
        let of_a = a
            .join()
            .map_err(|_| anyhow::anyhow!("guest a's thread panicked"))?;
        outcome.add(of_a?);
        Ok(outcome)
    })
}

/// The namespace with the bridge and the taps. Dropping it removes all.
struct Network {
    name: String,
}

impl Network {
    fn new() -> Result<Self> {
        let prefix = "xvip-vm-";
        for entry in fs::read_dir("/run/netns").into_iter().flatten() {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let left = name
                .strip_prefix(prefix)
                .and_then(|rest| rest.split('-').next());
            if left.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                shell::run(Command::new("ip").args(["netns", "del", &name]))?;
            }
        }
        let thread = format!("{:?}", thread::current().id());
        let thread: String = thread.chars().filter(char::is_ascii_digit).collect();
        let network = Self {
            name: format!("{prefix}{}-{thread}", process::id()),
        };
        shell::run(Command::new("ip").args(["netns", "add", &network.name]))
            .context("cannot make a network namespace")?;
        // No stack of the host's listens here, and nothing is learned before frames pass.
        network.ip("link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0")?;
        network.ip("link set br0 up")?;
        for card in OF_A.iter().chain(&OF_B) {
            let tap = card.tap();
            let many = if card.queues > 1 { " multi_queue" } else { "" };
            network.ip(&format!("tuntap add dev {tap} mode tap vnet_hdr{many}"))?;
            network.ip(&format!("link set {tap} mtu {MTU}"))?;
            network.ip(&format!("link set {tap} master br0 up"))?;
        }
        Ok(network)
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name]).args(arguments.split(' '));
        shell::run(&mut command)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let mut delete = Command::new("ip");
        if let Err(error) = shell::run(delete.args(["netns", "del", &self.name])) {
            eprintln!("xtask: left behind: {error:#}");
        }
    }
}
