//! Sequences of steps as files: a JSON value a line, the first one a note, so that a sequence reads
//! from top to bottom and a difference between two of them is a difference of lines.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::tables::Change;

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A frame comes in through an interface.
    In {
        /// Interface index.
        ifindex: u32,
        /// The frame.
        #[serde(with = "hex")]
        frame: Vec<u8>,
    },
    /// A frame leaves.
    Out {
        /// The frame.
        #[serde(with = "hex")]
        frame: Vec<u8>,
    },
    /// The tables change.
    Change(Change),
}

impl Step {
    /// Whether a packet is part of it.
    pub fn is_packet(&self) -> bool {
        !matches!(self, Self::Change(_))
    }
}

/// What a sequence shows, and its steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// For whoever reads it.
    pub note: String,
    /// In order.
    pub steps: Vec<Step>,
}

/// The first line of a file.
#[derive(Serialize, Deserialize)]
struct Head {
    note: String,
}

impl Case {
    /// The case as text.
    pub fn to_text(&self) -> Result<String> {
        let head = Head {
            note: self.note.clone(),
        };
        let mut lines = vec![serde_json::to_string(&head)?];
        for step in &self.steps {
            lines.push(serde_json::to_string(step)?);
        }
        lines.push(String::new());
        Ok(lines.join("\n"))
    }

    /// The case that [`Case::to_text`] wrote.
    pub fn from_text(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let head: Head = serde_json::from_str(lines.next().context("no note")?)?;
        let steps: Result<Vec<Step>, _> = lines.map(serde_json::from_str).collect();
        Ok(Self {
            note: head.note,
            steps: steps?,
        })
    }

    /// Read a file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        Self::from_text(&text).with_context(|| format!("{} is no case", path.display()))
    }

    /// Write a file.
    pub fn save(&self, path: &Path) -> Result<()> {
        fs::write(path, self.to_text()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        ensure!(
            Self::load(path)? == *self,
            "{} reads differently",
            path.display()
        );
        Ok(())
    }
}

/// Bytes as hexadecimal digits.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[allow(clippy::ptr_arg, reason = "the type of the field")]
    pub(super) fn serialize<S: Serializer>(bytes: &Vec<u8>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&crate::packet::hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.as_bytes().chunks(2);
        digits
            .map(|pair| {
                let pair = str::from_utf8(pair).map_err(D::Error::custom)?;
                u8::from_str_radix(pair, 16).map_err(D::Error::custom)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written reads the same.
    #[test]
    fn text_reads_back() {
        let case = Case {
            note: "a note".to_owned(),
            steps: vec![
                Step::Change(Change::Lease(1, false)),
                Step::Change(Change::Uplink((1, 0), Some([2, 0, 0, 0, 0, 1]))),
                Step::In {
                    ifindex: 1,
                    frame: vec![0, 0xff, 0x10],
                },
                Step::Out { frame: vec![1; 14] },
            ],
        };
        let text = case.to_text().unwrap();
        assert!(
            text.contains(r#"{"in":{"ifindex":1,"frame":"00ff10"}}"#),
            "{text}"
        );
        assert_eq!(Case::from_text(&text).unwrap(), case);
        Case::from_text("{\"note\": \"\"}\n{\"in\": 1}").unwrap_err();
    }
}
