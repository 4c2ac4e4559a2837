//! Features of the kernel that decide how the object is loaded, and the trials that find out about those
//! of the `bpf` system call.
//!
//! A trial loads a program of two instructions, or asks about something that is not there. Nothing is
//! attached and nothing stays.

use std::{borrow::Cow, io, os::fd::AsFd as _};

use aya::{
    EbpfLoader,
    maps::MapType,
    programs::{ProgramError, ProgramType, SchedClassifier, tc::TcAttachType},
    sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported},
};
use nix::errno::Errno;
use object::{
    Object as _, ObjectSection as _, SectionIndex,
    elf::FileHeader64,
    endian::Endianness,
    read::elf::{ElfFile64, FileHeader as _, SectionHeader as _},
};

use super::syscall::{self, Kind};
use crate::core::kernel::{Feature, Kernel};

/// `BPF_PROG_TYPE_SCHED_CLS`
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`
const XDP: u32 = 6;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
const SOCK_ADDR: u32 = 18;
/// `BPF_F_XDP_HAS_FRAGS`
const HAS_FRAGS: u32 = 1 << 5;
/// `BPF_CGROUP_INET4_CONNECT`, the same for IPv6, and `BPF_CGROUP_INET4_GETPEERNAME`, the same for IPv6.
const CONNECT: [u32; 4] = [10, 11, 29, 30];
/// `BPF_CGROUP_UDP4_SENDMSG`, IPv6, `BPF_CGROUP_UDP4_RECVMSG`, IPv6.
const DATAGRAM: [u32; 4] = [14, 15, 19, 20];

/// Section of XDP programs that take frames of several buffers; aya sets a flag because of it that a
/// kernel without this feature refuses.
const FRAGS_SECTION: &[u8] = b"xdp.frags";
/// Bytes of that name that make the name of a section for all other XDP programs.
const PLAIN_LENGTH: usize = 3;

/// What the programs may use of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a feature of its own, as the programs' constants are"
)]
pub struct Features {
    /// XDP frames of several buffers.
    pub xdp_frags: bool,
    /// The clock that is read without a look at the hardware.
    pub coarse_clock: bool,
    /// A hook of a system call may choose its error.
    pub set_retval: bool,
    /// XDP and tc programs may write to socket maps.
    pub sockmap_update: bool,
}

impl Features {
    /// Those of this machine's kernel. One that cannot be tried is not used.
    pub fn detect() -> Self {
        let has = |feature| probe(feature).is_some_and(|result| result.is_ok());
        Self {
            xdp_frags: has(Feature::XdpFrags),
            coarse_clock: has(Feature::CoarseClock),
            set_retval: has(Feature::SetRetval),
            sockmap_update: has(Feature::SockmapUpdate),
        }
    }

    /// Those of a kernel that was tried.
    pub fn of(kernel: &Kernel) -> Self {
        Self {
            xdp_frags: kernel.has(Feature::XdpFrags),
            coarse_clock: kernel.has(Feature::CoarseClock),
            set_retval: kernel.has(Feature::SetRetval),
            sockmap_update: kernel.has(Feature::SockmapUpdate),
        }
    }

    /// The programs' variables that these features set, with their values.
    pub fn globals(self) -> [(&'static str, &'static u32); 4] {
        let value = |has| if has { &1 } else { &0 };
        [
            ("XDP_BUFFERS", value(self.xdp_frags)),
            ("COARSE_CLOCK", value(self.coarse_clock)),
            ("SET_RETVAL", value(self.set_retval)),
            ("SOCKMAP_UPDATE", value(self.sockmap_update)),
        ]
    }

    /// Have `loader` load programs that use no more than these features. The object goes through
    /// [`Features::object`].
    pub fn apply(self, loader: &mut EbpfLoader<'_>) {
        for (name, value) in self.globals() {
            loader.override_global(name, value, true);
        }
    }

    /// The object as this kernel takes it.
    pub fn object(self, object: &[u8]) -> Cow<'_, [u8]> {
        if self.xdp_frags {
            return Cow::Borrowed(object);
        }
        // What cannot be read the loader refuses, with the reason.
        without_frags(object).map_or(Cow::Borrowed(object), Cow::Owned)
    }
}

/// The object with its programs for frames of several buffers in the section of all other XDP programs.
/// Nothing moves: the names of the section, in the ELF file and in BTF, end earlier.
fn without_frags(object: &[u8]) -> Option<Vec<u8>> {
    let mut plain = object.to_vec();
    for name in [section_name(object)?, btf_name(object)?] {
        *plain.get_mut(name.checked_add(PLAIN_LENGTH)?)? = 0;
    }
    Some(plain)
}

/// Where the name of the section is among the names of sections.
fn section_name(object: &[u8]) -> Option<usize> {
    let header = FileHeader64::<Endianness>::parse(object).ok()?;
    let endian = header.endian().ok()?;
    let sections = header.sections(endian, object).ok()?;
    let section = sections
        .iter()
        .find(|section| sections.section_name(endian, section) == Ok(FRAGS_SECTION))?;
    let names = usize::try_from(header.shstrndx(endian, object).ok()?).ok()?;
    let names = sections.section(SectionIndex(names)).ok()?;
    let names = usize::try_from(names.sh_offset(endian)).ok()?;
    names.checked_add(usize::try_from(section.sh_name(endian)).ok()?)
}

/// Where the name of the section is among the strings of BTF.
fn btf_name(object: &[u8]) -> Option<usize> {
    let file = ElfFile64::<Endianness>::parse(object).ok()?;
    let (start, length) = file.section_by_name(".BTF")?.file_range()?;
    let (start, length) = (usize::try_from(start).ok()?, usize::try_from(length).ok()?);
    let btf = object.get(start..start.checked_add(length)?)?;
    let whole = [b"\0", FRAGS_SECTION, b"\0"].concat();
    let at = btf
        .windows(whole.len())
        .position(|window| window == whole)?;
    start.checked_add(at)?.checked_add(1)
}

/// Whether the kernel has a feature of the `bpf` system call, with why not; `None`: the feature is of
/// another kind.
pub(crate) fn probe(feature: Feature) -> Option<Result<(), String>> {
    Some(match feature {
        Feature::RingBuffer => known(is_map_supported(MapType::RingBuf)),
        Feature::ConnectHooks => sock_addr(&CONNECT),
        Feature::DatagramHooks => sock_addr(&DATAGRAM),
        Feature::ListenerLookup => known(is_program_supported(ProgramType::SkLookup)),
        Feature::CoarseClock => helpers(&[
            (ProgramType::Xdp, BpfHelper::BPF_FUNC_ktime_get_coarse_ns),
            (
                ProgramType::SchedClassifier,
                BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
            ),
            (
                ProgramType::CgroupSockAddr,
                BpfHelper::BPF_FUNC_ktime_get_coarse_ns,
            ),
        ]),
        Feature::XdpFrags => helpers(&[
            (ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_get_buff_len),
            (ProgramType::Xdp, BpfHelper::BPF_FUNC_xdp_load_bytes),
        ])
        .and_then(|()| {
            let (program, flags) = (XDP, HAS_FRAGS);
            let kind = Kind {
                program,
                flags,
                ..Kind::default()
            };
            loads(kind)
        }),
        Feature::SetRetval => {
            helpers(&[(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)])
        }
        Feature::SockmapUpdate => {
            [XDP, SCHED_CLS].into_iter().try_for_each(|program| {
                let kind = Kind {
                    program,
                    ..Kind::default()
                };
                syscall::load_sockmap_writer(kind).map(drop).map_err(|error| {
                format!("this kernel does not let packet programs write to socket maps ({error})")
            })
            })
        }
        Feature::Tcx => tcx(),
        Feature::Jit => jit(),
        Feature::NetnsCookie
        | Feature::ManagedNeighbours
        | Feature::SockDestroy
        | Feature::Realtime => return None,
    })
}

const UNKNOWN: &str = "the kernel does not know it";

fn known<E: std::fmt::Display>(answer: Result<bool, E>) -> Result<(), String> {
    match answer {
        Ok(true) => Ok(()),
        Ok(false) => Err(UNKNOWN.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn helpers(all: &[(ProgramType, BpfHelper)]) -> Result<(), String> {
    let mut all = all.iter();
    all.try_for_each(|(program, helper)| known(is_helper_supported(*program, *helper)))
}

fn sock_addr(attach_types: &[u32]) -> Result<(), String> {
    let mut kinds = attach_types.iter().map(|attach| Kind {
        program: SOCK_ADDR,
        attach: *attach,
        flags: 0,
    });
    kinds.try_for_each(loads)
}

fn loads(kind: Kind) -> Result<(), String> {
    match syscall::load_trivial(kind) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(UNKNOWN.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The programs of the loopback interface, of which every network namespace has one.
fn tcx() -> Result<(), String> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(()),
        Err(ProgramError::SyscallError(error)) => {
            match Errno::from_raw(error.io_error.raw_os_error().unwrap_or_default()) {
                // No program is there, said some early kernels.
                Errno::ENOENT => Ok(()),
                Errno::EINVAL => Err(UNKNOWN.to_owned()),
                _ => Err(error.io_error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    }
}

fn jit() -> Result<(), String> {
    let kind = Kind {
        program: SCHED_CLS,
        ..Kind::default()
    };
    let compiled = syscall::load_trivial(kind).and_then(|it| syscall::compiled_size(it.as_fd()));
    match compiled {
        Ok(0) => Err("the kernel interprets programs (net.core.bpf_jit_enable is 0)".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use aya_obj::{Object, ProgramSection};

    use super::*;
    use crate::core::kernel::Tried;

    const ALL: Features = Features {
        xdp_frags: true,
        coarse_clock: true,
        set_retval: true,
        sockmap_update: true,
    };

    /// Each feature sets its own variable.
    #[test]
    fn features_set_variables() {
        let values = |features: Features| features.globals().map(|(_, value)| *value);
        assert_eq!(values(ALL), [1, 1, 1, 1]);
        let set = |change: fn(&mut Features)| {
            let mut features = ALL;
            change(&mut features);
            features.globals()
        };
        assert_eq!(set(|one| one.xdp_frags = false)[0], ("XDP_BUFFERS", &0));
        assert_eq!(set(|one| one.coarse_clock = false)[1], ("COARSE_CLOCK", &0));
        assert_eq!(set(|one| one.set_retval = false)[2], ("SET_RETVAL", &0));
        let sockmap = set(|one| one.sockmap_update = false)[3];
        assert_eq!(sockmap, ("SOCKMAP_UPDATE", &0));
    }

    /// What was found out about a kernel decides.
    #[test]
    fn a_kernel_has_what_it_was_seen_to_have() {
        let kernel = |lacking: Feature| Kernel {
            release: "6.1".to_owned(),
            tried: Feature::ALL
                .map(|feature| Tried {
                    feature,
                    result: if feature == lacking {
                        Err(String::new())
                    } else {
                        Ok(())
                    },
                })
                .to_vec(),
        };
        assert_eq!(Features::of(&kernel(Feature::Tcx)), ALL);
        assert!(!Features::of(&kernel(Feature::XdpFrags)).xdp_frags);
        assert!(!Features::of(&kernel(Feature::CoarseClock)).coarse_clock);
        assert!(!Features::of(&kernel(Feature::SetRetval)).set_retval);
        assert!(!Features::of(&kernel(Feature::SockmapUpdate)).sockmap_update);
    }

    /// Without the feature all XDP programs are plain ones, and nothing else of the object changes.
    #[test]
    fn the_object_goes_without_frags() {
        let shipped = super::super::object();
        let frags = |bytes: &[u8]| -> Vec<bool> {
            let object = Object::parse(bytes).unwrap();
            let programs = object.programs.values();
            programs
                .filter_map(|program| match program.section {
                    ProgramSection::Xdp { frags, .. } => Some(frags),
                    _ => None,
                })
                .collect()
        };
        assert!(frags(&ALL.object(shipped)).contains(&true));
        let features = Features {
            xdp_frags: false,
            ..ALL
        };
        let plain = features.object(shipped);
        let found = frags(&plain);
        assert!(!found.is_empty() && !found.contains(&true), "{found:?}");
        let changed = shipped.iter().zip(plain.iter()).filter(|(a, b)| a != b);
        assert_eq!(changed.count(), 2);
        assert_eq!(plain.len(), shipped.len());
    }

    /// What is no object is left to the loader.
    #[test]
    fn other_bytes_are_left_alone() {
        let features = Features {
            xdp_frags: false,
            ..ALL
        };
        for bytes in [&b""[..], b"\x7fELF", &[0; 100]] {
            assert_eq!(features.object(bytes), bytes);
        }
    }
}
