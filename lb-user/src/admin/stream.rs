//! Answers of many lines: what `xvip flows`, `trace` and `explain` read.
//!
//! The first line is an answer like any other, `{"ok":...}` or `{"error":"..."}`. After an `ok` come
//! lines with one [`Item`] each, and at last `{"end":...}` or `{"error":"..."}`; a connection that
//! ends without one of these broke. Empty lines say that the server is alive.

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    os::unix::net::UnixStream,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    client::{ClientError, explain_io, malformed, start},
    explain::Explanation,
    flows::{FlowCount, FlowEntry},
    model::{Command, Response},
    trace::TraceRecord,
};

/// Bytes of a line that are read at most; the longest one, of `explain`, is far below.
const MAX_LINE: u64 = 1 << 20;

/// The first line's `ok`: items follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Always true: items follow.
    pub stream: bool,
}

impl Started {
    /// Items follow.
    pub const NOW: Self = Self { stream: true };
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Item {
    /// A conntrack entry.
    Flow(FlowEntry),
    /// How many entries are alike.
    Count(FlowCount),
    /// What became of a packet.
    Trace(Box<TraceRecord>),
    /// What would become of a packet.
    Explain(Box<Explanation>),
    /// There is no more.
    End(End),
    /// Something went wrong on the way.
    Error(String),
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Items before this one.
    pub items: u64,
    /// There is more that was not asked for (a limit was reached).
    pub more: bool,
    /// Items may be missing: they came faster than they were read for a while.
    pub lossy: bool,
}

impl Item {
    /// The line, with a newline at its end. JSON has no newline outside of strings and escapes those
    /// within.
    pub fn append_to(&self, lines: &mut Vec<u8>) {
        let before = lines.len();
        if serde_json::to_writer(&mut *lines, self).is_err() {
            lines.truncate(before);
        }
        lines.push(b'\n');
    }

    /// The line alone.
    pub fn line(&self) -> Vec<u8> {
        let mut line = Vec::new();
        self.append_to(&mut line);
        line
    }
}

/// A stream that is being read.
pub struct Reader {
    path: std::path::PathBuf,
    reader: BufReader<UnixStream>,
}

impl Reader {
    /// Ask the xvip at `path`; an error if it refuses.
    pub fn open(path: &Path, command: &Command) -> Result<Self, ClientError> {
        let stream = start(path, command).map_err(|error| explain_io(path, error))?;
        let mut reader = Self {
            path: path.to_owned(),
            reader: BufReader::new(stream),
        };
        match reader.parse::<Response<serde_json::Value>>()? {
            Response::Ok(_) => Ok(reader),
            Response::Error(reason) => Err(ClientError::Refused(reason)),
        }
    }

    /// The connection, to be closed by another thread.
    pub fn socket(&self) -> io::Result<UnixStream> {
        self.reader.get_ref().try_clone()
    }

    /// The next item; an [`Item::Error`] becomes the error.
    pub fn next_item(&mut self) -> Result<Item, ClientError> {
        match self.parse()? {
            Item::Error(reason) => Err(ClientError::Refused(reason)),
            item => Ok(item),
        }
    }

    fn parse<T: DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let line = loop {
            let line = self.line().map_err(|error| explain_io(&self.path, error))?;
            if line != b"\n" {
                break line;
            }
        };
        serde_json::from_slice(&line).map_err(|source| malformed(&self.path, source))
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.reader
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)?;
        if line.last() == Some(&b'\n') {
            Ok(line)
        } else {
            // Ended in the middle, or before the end was said.
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixListener, thread};

    use super::*;
    use crate::admin::testing::TempDir;

    /// What a reader makes of a server that says `answer` and closes.
    fn read_from(answer: &'static str) -> Result<Vec<Item>, ClientError> {
        let dir = TempDir::new();
        let path = dir.path().join("x.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut request)
                .unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let read = || {
            let mut reader = Reader::open(&path, &Command::Status)?;
            let mut items = Vec::new();
            loop {
                items.push(reader.next_item()?);
                if matches!(items.last(), Some(Item::End(_))) {
                    return Ok(items);
                }
            }
        };
        let result = read();
        server.join().unwrap();
        result
    }

    const START: &str = "{\"ok\":{\"stream\":true}}\n";

    /// Items come up to the end; empty lines are none.
    #[test]
    fn items_are_read_to_the_end() {
        let end = End {
            items: 0,
            ..End::default()
        };
        let text = String::from_utf8(Item::End(end).line()).unwrap();
        let text = format!("{START}\n\n{text}");
        let items = read_from(Box::leak(text.into_boxed_str())).unwrap();
        assert_eq!(items, [Item::End(end)]);
    }

    /// A stream that breaks off is an error, and so is one that says so, and a refused one.
    #[test]
    fn broken_streams_are_errors() {
        let error = read_from(START).unwrap_err();
        assert!(matches!(error, ClientError::Closed { .. }), "{error}");
        let error = read_from("{\"error\":\"no\"}\n").unwrap_err();
        assert!(matches!(&error, ClientError::Refused(why) if why == "no"));
        let error = read_from("{\"ok\":{\"stream\":true}}\n{\"error\":\"later\"}\n").unwrap_err();
        assert!(matches!(&error, ClientError::Refused(why) if why == "later"));
        let error = read_from("{\"ok\":{\"stream\":true}}\n{\"surprise\":1}\n").unwrap_err();
        assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    }
}
