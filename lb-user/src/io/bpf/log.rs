//! The lines that programs built for development log about their decisions: `cargo xtask build
//! --bpf-log`. The object that ships logs nothing, and this xvip looks for nothing then.

use lb_common::reason::Reason;

/// Reason and rest of a line, which begins with `reason=NUMBER`.
pub fn reason(line: &str) -> Option<(Reason, &str)> {
    let (number, rest) = line.strip_prefix("reason=")?.split_once(' ')?;
    let number: usize = number.parse().ok()?;
    Some((*Reason::ALL.get(number)?, rest))
}

#[cfg(feature = "bpf-log")]
pub(super) use follow::follow;

#[cfg(feature = "bpf-log")]
mod follow {
    use std::{io, os::fd::AsFd as _, thread};

    use aya::Ebpf;
    use aya_log::EbpfLogger;
    use log::{Log, Metadata, Record};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    /// Hand the lines of `object` on to this process's log, as target `bpf`, as long as the process
    /// lives. The result is why that does not work.
    pub(crate) fn follow(object: &mut Ebpf) -> Option<String> {
        let mut lines = match EbpfLogger::init_with_logger(object, ToTracing) {
            Ok(lines) => lines,
            Err(error) => return Some(format!("the programs log nothing: {error}")),
        };
        let read = move || {
            loop {
                let mut readable = [PollFd::new(lines.as_fd(), PollFlags::POLLIN)];
                // Interrupted by a signal: look, and wait again.
                let _ = poll(&mut readable, PollTimeout::NONE);
                lines.flush();
            }
        };
        let thread = thread::Builder::new().name("bpf-log".to_owned());
        let started: io::Result<_> = thread.spawn(read);
        started
            .err()
            .map(|error| format!("the programs' lines are not read: {error}"))
    }

    /// Lines as events.
    struct ToTracing;

    impl Log for ToTracing {
        fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &Record<'_>) {
            let line = record.args().to_string();
            if let Some((reason, rest)) = super::reason(&line) {
                tracing::trace!(target: "bpf", reason = reason.label(), "{rest}");
            } else {
                tracing::trace!(target: "bpf", "{line}");
            }
        }

        fn flush(&self) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reason has its number in the line; a line of another form has none.
    #[test]
    fn lines_name_reasons() {
        let line = "reason=8 service=1 backend=2";
        assert_eq!(reason(line), Some((Reason::Dsr, "service=1 backend=2")));
        for other in ["", "reason=8", "reason=x y", "reason=127 y", "y reason=8 "] {
            assert_eq!(reason(other), None, "{other:?}");
        }
    }
}
