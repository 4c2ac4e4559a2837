//! Logs: `tracing` events as text or JSON lines on standard error, with timestamps in UTC.

use std::{
    fmt,
    io::{self, IsTerminal},
    str::FromStr,
};

use clap::ValueEnum;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    filter::{LevelFilter, ParseError},
    fmt::MakeWriter,
};

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Which events are logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or levels by
/// module as in `info,lb_user::core::vrrp=debug`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

/// What is wrong with a filter.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A word without `=` that is no level. (`tracing` would take it for a module, which turns a
    /// misspelt level into silence.)
    #[error("{0:?} is not a level: off, error, warn, info, debug or trace, or MODULE=LEVEL")]
    Level(String),
    /// Anything else.
    #[error(transparent)]
    Syntax(#[from] ParseError),
}

impl FromStr for LogFilter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut words = text.split(',').filter(|part| !part.contains(['=', '[']));
        if let Some(word) = words.find(|word| word.parse::<LevelFilter>().is_err()) {
            return Err(FilterError::Level(word.to_owned()));
        }
        EnvFilter::builder().parse(text)?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Logs could not be set up: somebody else did it before.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up logs: {0}")]
pub struct LogError(#[from] tracing::subscriber::SetGlobalDefaultError);

/// Logs from now on, everywhere in this process.
pub fn init(format: LogFormat, filter: &LogFilter) -> Result<(), LogError> {
    let colour = io::stderr().is_terminal();
    tracing::subscriber::set_global_default(subscriber(format, filter, colour, io::stderr))?;
    Ok(())
}

/// The subscriber behind [`init`].
fn subscriber<W>(
    format: LogFormat,
    filter: &LogFilter,
    colour: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(&filter.0))
        .with_ansi(colour)
        // A closed standard error must not become a panic of whoever logs.
        .log_internal_errors(false)
        .with_writer(writer);
    match format {
        LogFormat::Text => Box::new(builder.finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    /// What `log` writes with this format and filter.
    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
        let buffer = Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let buffer = Arc::clone(&buffer);
            move || Shared(Arc::clone(&buffer))
        };
        let subscriber = subscriber(format, &filter.parse().unwrap(), false, writer);
        tracing::subscriber::with_default(subscriber, log);
        let bytes = buffer.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A JSON line has a timestamp, the level, the message and the fields side by side.
    #[test]
    fn json_lines_are_flat() {
        let text = logged(LogFormat::Json, "info", || {
            tracing::info!(vrrp = "a", "became active");
        });
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "INFO");
        assert_eq!(line["message"], "became active");
        assert_eq!(line["vrrp"], "a");
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    }

    /// A text line has a timestamp, the level, the message and the fields, and no colour codes.
    #[test]
    fn text_lines_are_plain() {
        let text = logged(LogFormat::Text, "info", || {
            tracing::warn!(backend = "b", "down");
        });
        let time = text.split_whitespace().next().unwrap();
        assert!(time.ends_with('Z'), "{text}");
        assert!(text.contains("WARN"), "{text}");
        assert!(text.ends_with("down backend=\"b\"\n"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    /// The filter is by level and by module.
    #[test]
    fn events_are_filtered() {
        let log = || {
            tracing::debug!("one");
            tracing::debug!(target: "other", "two");
            tracing::info!("three");
        };
        let text = logged(LogFormat::Text, "info,lb_user=debug", log);
        assert!(text.contains("one") && text.contains("three"), "{text}");
        assert!(!text.contains("two"), "{text}");
    }

    /// A filter that means nothing is refused when it is read, not ignored when it is used.
    #[test]
    fn bad_filters_are_refused() {
        for bad in ["verbose", "info,lb_user", "lb_user=loud", "a=b=c"] {
            assert!(bad.parse::<LogFilter>().is_err(), "{bad}");
        }
        for good in ["info", "WARN", "off", "warn,lb_user::io=trace"] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
    }
}
