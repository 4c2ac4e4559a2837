//! `xvip import`: makes an xvip.toml of keepalived.conf, haproxy.cfg, a check script and the
//! environment of a keepalived container, and says what became of every line.
//!
//! Pure: text comes in, text goes out; the command line reads and writes files. The way of an
//! import: a parser per format cuts its input into words, and each word gets a number in the
//! `ledger`; `keepalived`, `haproxy`, `script` and `env` turn words into a `plan`;
//! `assemble` makes the sections of a `document` of it. A key that is written claims the words
//! that it was made of, other words are claimed with a reason, and what is left is reported as
//! unknown. The result is validated by [`config::parse`] before anybody gets it.

mod assemble;
mod document;
mod env;
mod haproxy;
mod keepalived;
mod ledger;
mod plan;
mod report;
mod script;
mod secrets;
mod tracks;

use std::{collections::BTreeMap, fmt, io, net::IpAddr, path::Path};

use crate::config::{self, ConfigErrors, HostFacts, ReadFile};

pub use report::{Entry, Fate, Report};

use self::{
    ledger::Ledger,
    plan::Plan,
    script::{Around, CheckScript},
};

/// One input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// How it is called in the report.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// What there is to import.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// keepalived.conf
    pub keepalived: Option<Input>,
    /// haproxy.cfg
    pub haproxy: Option<Input>,
    /// The script that keepalived's `vrrp_script` runs.
    pub check_script: Option<Input>,
    /// `NAME=VALUE` lines: the environment of an osixia/keepalived container.
    pub env: Option<Input>,
}

/// Finds the files of an include line, which may hold wildcards.
pub type Include<'a> = &'a dyn Fn(&str) -> Result<Vec<Input>, String>;

/// What the inputs cannot tell.
pub struct Options<'a> {
    /// `node.name`
    pub node: Option<String>,
    /// What keepalived's `@NAME` lines are compared with: the host name, by default.
    pub config_id: String,
    /// Addresses of the node that the result is for.
    pub addresses: Vec<IpAddr>,
    /// The other nodes that will run xvip; found out if there is none.
    pub peers: Vec<(String, IpAddr)>,
    /// Uplinks beside the interfaces that carry VRRP.
    pub interfaces: Vec<String>,
    /// Addresses of host names in haproxy.cfg.
    pub hosts: Vec<(String, IpAddr)>,
    /// What haproxy's `"${NAME}"` stands for.
    pub variables: BTreeMap<String, String>,
    /// Where the result will be: relative paths in it start there.
    pub output: String,
    /// Reads the certificates that the inputs name.
    pub read_file: ReadFile<'a>,
    /// Finds what keepalived.conf includes.
    pub include: Include<'a>,
}

impl Default for Options<'_> {
    /// Nothing is known, and no file can be read.
    fn default() -> Self {
        Self {
            node: None,
            config_id: String::new(),
            addresses: Vec::new(),
            peers: Vec::new(),
            interfaces: Vec::new(),
            hosts: Vec::new(),
            variables: BTreeMap::new(),
            output: String::new(),
            read_file: &|_| Err(io::ErrorKind::NotFound.into()),
            include: &|_| Ok(Vec::new()),
        }
    }
}

impl Options<'_> {
    /// Whether the configuration can name this file: it is looked at where it is validated.
    fn is_readable(&self, path: &str) -> bool {
        (self.read_file)(Path::new(path)).is_ok()
    }
}

/// A configuration that `xvip check` accepts, and what became of the inputs.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The configuration file.
    pub toml: String,
    /// What became of every line.
    pub report: Report,
}

/// Why there is no result.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// An input is larger or deeper than any configuration.
    TooLarge(String),
    /// What came out is no valid configuration.
    Invalid {
        /// What is wrong with it.
        errors: ConfigErrors,
        /// The result, to look at.
        toml: String,
        /// What became of every line.
        report: Report,
    },
}

impl Refusal {
    fn too_large(name: &str, line: usize, limit: usize) -> Self {
        Self::TooLarge(format!(
            "{}:{line}:1: more than {limit}: this is no configuration that the import can read; \
             write the part that matters into a file of its own",
            ledger::printable(name)
        ))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge(what) => f.write_str(what),
            Self::Invalid {
                errors,
                toml,
                report,
            } => {
                write!(f, "{report}the result is not valid and was not written:")?;
                for error in errors.errors() {
                    let line = error.line.checked_sub(1);
                    let text = line.and_then(|line| toml.lines().nth(line)).unwrap_or("");
                    write!(f, "\n{error}\n    {}", secrets::masked(text))?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Refusal {}

/// Makes a configuration of `inputs`.
pub fn import(inputs: &Inputs, options: &Options<'_>) -> Result<Imported, Refusal> {
    let ledger = Ledger::default();
    let mut plan = Plan::default();
    let script = match &inputs.check_script {
        Some(input) => {
            script::read(input, inputs.haproxy.is_some(), &ledger)?.map(|check| CheckScript {
                name: ledger::base_name(&input.name).to_owned(),
                check,
            })
        }
        None => None,
    };
    if let Some(input) = &inputs.keepalived {
        let around = Around {
            script: script.as_ref(),
            has_haproxy: inputs.haproxy.is_some(),
        };
        keepalived::read(input, around, &ledger, options, &mut plan)?;
    }
    if let Some(input) = &inputs.env {
        env::read(input, &ledger, options, &mut plan)?;
    }
    if let Some(input) = &inputs.haproxy {
        haproxy::read(input, &ledger, options, &mut plan)?;
    }
    if let Some(script) = script {
        plan.local_check.get_or_insert(script.check);
    }
    let toml = assemble::assemble(&plan, inputs, options, &ledger);
    let report = ledger.report();
    let facts = HostFacts {
        hostname: options.config_id.clone(),
    };
    match config::parse(&toml, &options.output, &facts, options.read_file) {
        Ok(_) => Ok(Imported { toml, report }),
        Err(errors) => Err(Refusal::Invalid {
            errors,
            toml,
            report,
        }),
    }
}
