//! Looks at what VRRP instances track and that does not tell by itself: files and processes.

use std::{fs, io, path::Path};

use crate::{
    config::model::TrackSubject,
    core::tracking::{Condition, Observation},
};

/// Numbers that a file may hold, as in keepalived.
const NUMBERS: std::ops::RangeInclusive<i16> = -254..=254;
/// Longest file that can hold such a number and white space around it, in bytes.
const MAX_LENGTH: u64 = 64;

/// What is to be seen of `subject` now. Reads files of the kernel and of tmpfs mostly, but may block.
pub(super) fn look(subject: &TrackSubject) -> Observation {
    match subject {
        TrackSubject::File(path) => file(path),
        TrackSubject::Process { name, at_least } => {
            processes(Path::new("/proc"), name, at_least.get())
        }
        TrackSubject::LocalBackend(_)
        | TrackSubject::AnyBackend(_)
        | TrackSubject::Interface(_) => Observation {
            condition: Condition::Unknown,
            seen: "the controller knows by itself".to_owned(),
        },
    }
}

/// The number in a file. A file that is not there, or that holds something else, fails.
fn file(path: &Path) -> Observation {
    let shown = path.display();
    let failed = |why: String| Observation {
        condition: Condition::Failed,
        seen: format!("{shown} {why}"),
    };
    let text = match read_short(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return failed("is not there".to_owned());
        }
        Err(error) => return failed(format!("cannot be read: {error}")),
    };
    match text.trim().parse() {
        Ok(number) if NUMBERS.contains(&number) => Observation {
            condition: Condition::Number(number),
            seen: format!("{shown} holds {number}"),
        },
        _ => failed("holds no number of -254..254".to_owned()),
    }
}

fn read_short(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?
        .take(MAX_LENGTH)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Whether at least `wanted` processes named `name` run, by the process file system at `proc`.
fn processes(proc: &Path, name: &str, wanted: u32) -> Observation {
    let entries = match fs::read_dir(proc) {
        Ok(entries) => entries,
        Err(error) => {
            return Observation {
                condition: Condition::Failed,
                seen: format!("{} cannot be read: {error}", proc.display()),
            };
        }
    };
    // A process that ends while it is looked at does not run.
    let running = entries
        .filter_map(Result::ok)
        .filter(|entry| is_pid(&entry.file_name().to_string_lossy()))
        .filter(|entry| is_named(&entry.path(), name))
        .count();
    let is_met = u32::try_from(running).unwrap_or(u32::MAX) >= wanted;
    Observation {
        condition: if is_met {
            Condition::Met
        } else {
            Condition::Failed
        },
        seen: match running {
            0 => format!("no process {name} runs"),
            1 => format!("1 process {name} runs"),
            many => format!("{many} processes {name} run"),
        },
    }
}

fn is_pid(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the process with this directory runs and has this name: the kernel's, which it cuts after
/// 15 bytes, or the last part of what it was started as.
fn is_named(directory: &Path, name: &str) -> bool {
    let Ok(stat) = fs::read(directory.join("stat")) else {
        return false;
    };
    let Some((comm, state)) = comm_and_state(&stat) else {
        return false;
    };
    // Zombies and the dead.
    if matches!(state, b'Z' | b'X') {
        return false;
    }
    let name = name.as_bytes();
    if comm == name {
        return true;
    }
    let Ok(arguments) = fs::read(directory.join("cmdline")) else {
        return false;
    };
    let command = arguments.split(|byte| *byte == 0).next().unwrap_or(&[]);
    command.rsplit(|byte| *byte == b'/').next() == Some(name)
}

/// From `PID (comm) STATE ...`; the name may hold parentheses and spaces itself (proc(5)).
fn comm_and_state(stat: &[u8]) -> Option<(&[u8], u8)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    Some((stat.get(open + 1..close)?, *stat.get(close + 2)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::testing::TempDir;

    /// A file's number counts with white space around it; everything else fails and says why.
    #[test]
    fn files_hold_numbers() {
        let directory = TempDir::new();
        let path = directory.path().join("weight");
        for (content, condition, seen) in [
            ("0", Condition::Number(0), "holds 0"),
            (" -20\n", Condition::Number(-20), "holds -20"),
            ("+5\n", Condition::Number(5), "holds 5"),
            ("255", Condition::Failed, "holds no number of -254..254"),
            ("twenty", Condition::Failed, "holds no number of -254..254"),
            ("", Condition::Failed, "holds no number of -254..254"),
        ] {
            fs::write(&path, content).unwrap();
            let observation = file(&path);
            assert_eq!(observation.condition, condition, "{content:?}");
            assert!(observation.seen.ends_with(seen), "{}", observation.seen);
        }
        fs::remove_file(&path).unwrap();
        let observation = file(&path);
        assert_eq!(observation.condition, Condition::Failed);
        assert!(observation.seen.ends_with("is not there"));
        assert_eq!(file(directory.path()).condition, Condition::Failed);
    }

    /// Processes are found by either of their names, zombies and others are not.
    #[test]
    fn processes_are_counted() {
        let proc = TempDir::new();
        for (pid, stat, cmdline) in [
            ("1", "1 (systemd) S 0", "/sbin/init\0splash\0"),
            ("7", "7 (kube-apiserver) R 1", "kube-apiserver\0--v=2\0"),
            (
                "8",
                "8 (kube-controller) S 1",
                "/usr/bin/kube-controller-manager\0",
            ),
            ("9", "9 (kube-apiserver) Z 1", ""),
            ("10", "10 (a (b) c) S 1", ""),
            ("self", "7 (kube-apiserver) R 1", ""),
        ] {
            let directory = proc.path().join(pid);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("cmdline"), cmdline).unwrap();
        }
        // One that has just ended.
        fs::create_dir(proc.path().join("11")).unwrap();
        for (name, wanted, condition, seen) in [
            (
                "kube-apiserver",
                1,
                Condition::Met,
                "1 process kube-apiserver runs",
            ),
            (
                "kube-apiserver",
                2,
                Condition::Failed,
                "1 process kube-apiserver runs",
            ),
            (
                "kube-controller-manager",
                1,
                Condition::Met,
                "1 process kube-controller-manager runs",
            ),
            ("init", 1, Condition::Met, "1 process init runs"),
            ("a (b) c", 1, Condition::Met, "1 process a (b) c runs"),
            ("haproxy", 1, Condition::Failed, "no process haproxy runs"),
        ] {
            let observation = processes(proc.path(), name, wanted);
            let expected = Observation {
                condition,
                seen: seen.to_owned(),
            };
            assert_eq!(observation, expected);
        }
        let nowhere = processes(&proc.path().join("12"), "init", 1);
        assert_eq!(nowhere.condition, Condition::Failed);
    }
}
