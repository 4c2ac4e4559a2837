//! The binary's part of `xvip flows`, `trace` and `explain`: reads the answer's lines and prints
//! them, until whoever reads them has seen enough.

use std::{
    io::{self, Write as _},
    net::Shutdown,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use lb_user::{
    admin::{
        flows::FlowEntry,
        model::Command,
        render::{Colour, observe as render},
        stream::{End, Item, Reader},
    },
    cli::observe::{ExplainArgs, FlowsArgs, TraceArgs},
};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Failure, colour};

/// Whether somebody still reads what is printed.
type Printed = Result<ControlFlow<()>, Failure>;

/// `xvip flows`
pub(crate) fn flows(socket: &Path, args: &FlowsArgs) -> Result<(), Failure> {
    let mut reader = Reader::open(socket, &Command::Flows(args.query()))?;
    let mut list = List {
        rows: Vec::new(),
        first: true,
        json: args.json,
        colour: colour(),
    };
    let mut counts = Vec::new();
    loop {
        let printed = match reader.next_item()? {
            Item::Flow(entry) => list.add(entry)?,
            Item::Count(count) if args.json => print(&line(&count)?)?,
            Item::Count(count) => {
                counts.push(count);
                ControlFlow::Continue(())
            }
            Item::End(_) if args.count && args.json => return Ok(()),
            Item::End(_) if args.count => {
                return print(&render::counts(&counts, list.colour)).map(drop);
            }
            Item::End(end) => return list.end(end).map(drop),
            _ => ControlFlow::Continue(()),
        };
        if printed.is_break() {
            return Ok(());
        }
    }
}

/// Entries on their way to standard output.
struct List {
    rows: Vec<FlowEntry>,
    first: bool,
    json: bool,
    colour: Colour,
}

impl List {
    fn add(&mut self, entry: FlowEntry) -> Printed {
        self.rows.push(entry);
        if self.rows.len() < render::ROWS {
            return Ok(ControlFlow::Continue(()));
        }
        self.print()
    }

    fn print(&mut self) -> Printed {
        let text = if self.json {
            self.rows.iter().map(line).collect::<Result<String, _>>()?
        } else {
            render::flows(&self.rows, self.first, self.colour)
        };
        self.first = false;
        self.rows.clear();
        print(&text)
    }

    fn end(mut self, end: End) -> Printed {
        let printed = self.print()?;
        if self.json || printed.is_break() {
            return Ok(printed);
        }
        print(&render::flows_end(end))
    }
}

/// `xvip trace`
pub(crate) fn trace(socket: &Path, args: &TraceArgs) -> Result<(), Failure> {
    let mut reader = Reader::open(socket, &Command::Trace(args.query()))?;
    let interrupted = end_at_signal(&reader)?;
    let colour = colour();
    let mut seen = End::default();
    let end = loop {
        let record = match reader.next_item() {
            Ok(Item::Trace(record)) => record,
            Ok(Item::End(end)) => break end,
            Ok(_) => continue,
            // Its user's wish, not a fault.
            Err(_) if interrupted.load(Ordering::Acquire) => break seen,
            Err(error) => return Err(error.into()),
        };
        seen.items += 1;
        let text = if args.json {
            line(&record)?
        } else {
            render::trace(&record, colour)
        };
        if print(&text)?.is_break() {
            return Ok(());
        }
    };
    // Beside the lines, not among them. Nobody can be told that standard error is gone.
    let _ = io::stderr().write_all(render::trace_end(end).as_bytes());
    Ok(())
}

/// Ctrl-C and SIGTERM close the connection, which ends the trace; whether that has happened.
fn end_at_signal(reader: &Reader) -> Result<Arc<AtomicBool>, Failure> {
    let socket = reader.socket().map_err(Failure::Signals)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(Failure::Signals)?;
    let signals = runtime
        .block_on(async {
            let interrupt = signal(SignalKind::interrupt())?;
            io::Result::Ok((interrupt, signal(SignalKind::terminate())?))
        })
        .map_err(Failure::Signals)?;
    thread::spawn(move || {
        let (mut interrupt, mut terminate) = signals;
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        flag.store(true, Ordering::Release);
        // Closed already: the trace has ended.
        let _ = socket.shutdown(Shutdown::Both);
    });
    Ok(interrupted)
}

/// `xvip explain`
pub(crate) fn explain(socket: &Path, args: &ExplainArgs) -> Result<(), Failure> {
    let mut reader = Reader::open(socket, &Command::Explain(args.query()))?;
    loop {
        let text = match reader.next_item()? {
            Item::Explain(explanation) if args.json => line(&explanation)?,
            Item::Explain(explanation) => render::explanation(&explanation, colour()),
            Item::End(_) => return Ok(()),
            _ => continue,
        };
        if print(&text)?.is_break() {
            return Ok(());
        }
    }
}

fn line(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::Output(error.into()))?;
    Ok(text + "\n")
}

/// Writes to standard output. Breaks if nobody reads it any more, which is no failure.
fn print(text: &str) -> Printed {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(Failure::Output(error)),
    }
}
