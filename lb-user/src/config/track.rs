//! `[[track]]`, and `vrrp.track` which refers to it.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use super::{
    Context, command,
    model::{CommandConfig, MAX_TRACK_WEIGHT, TrackConfig, TrackSubject, Tracked},
    raw::{Mark, Marked, Report, Table, Value},
    value::{self, CHECK_TIME, Fault},
};

/// Default of `interval`.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
/// Largest number of processes that can be asked for.
const MAX_PROCESSES: u32 = 1_000;

/// `[[track]]` and what is compared with other sections.
pub(super) struct TrackDraft {
    /// `None` if something is wrong with it.
    pub(super) config: Option<TrackConfig>,
    pub(super) name: Option<Marked<String>>,
    /// The service that it is about.
    pub(super) service: Option<Marked<String>>,
    /// Default of the weights that refer to it.
    weight: Option<i16>,
    is_file: bool,
}

/// `track.type`
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    LocalBackend,
    AnyBackend,
    Interface,
    File,
    Process,
    Command,
}

impl Kind {
    const NAMES: [(&'static str, Self); 6] = [
        ("local_backend", Self::LocalBackend),
        ("any_backend", Self::AnyBackend),
        ("interface", Self::Interface),
        ("file", Self::File),
        ("process", Self::Process),
        ("command", Self::Command),
    ];

    /// Whether it has to be asked again and again.
    const fn is_polled(self) -> bool {
        matches!(self, Self::File | Self::Process | Self::Command)
    }
}

/// Read one `[[track]]`.
pub(super) fn read(mut table: Table<'_>, context: &Context<'_>) -> TrackDraft {
    let name = table
        .need("name", "write a name such as \"disk\"")
        .and_then(|value| value.text("disk", value::name));
    let kind = table
        .need("type", "write what is tracked, such as type = \"process\"")
        .and_then(|value| value.choice(&Kind::NAMES));
    let kind = kind.map(|kind| kind.value);
    let subject = Subject {
        service: of_kinds(
            &mut table,
            "service",
            kind,
            &[Kind::LocalBackend, Kind::AnyBackend],
        )
        .and_then(|value| value.text("apiserver", value::name)),
        interface: of_kinds(&mut table, "interface", kind, &[Kind::Interface])
            .and_then(|value| value.text("eth1", value::interface)),
        file: of_kinds(&mut table, "file", kind, &[Kind::File]).and_then(|value| {
            value.text("/run/weight", |path| {
                value::absolute_path(&context.directory.join(path).to_string_lossy())
            })
        }),
        process: of_kinds(&mut table, "process", kind, &[Kind::Process])
            .and_then(|value| value.text("kube-apiserver", process)),
    };
    let at_least = match table.get("at_least") {
        Some(value) if kind.is_some_and(|kind| kind != Kind::Process) => {
            refuse_unused(&value, "process");
            None
        }
        Some(value) => value
            .large_number(1..=MAX_PROCESSES)
            .and_then(|number| NonZeroU32::new(number.value)),
        None => Some(NonZeroU32::MIN),
    };
    let polling = read_polling(&mut table, kind);
    let command = read_command(
        &mut table,
        kind,
        context,
        polling.map(|(interval, ..)| interval),
    );
    let weight = match table.get("weight") {
        Some(value) => read_weight(&value, kind == Some(Kind::File)).map(|weight| weight.value),
        None => Some(0),
    };
    table.finish();
    let service = subject.service.clone();
    let config = || {
        let (interval, rise, fall) = polling?;
        Some(TrackConfig {
            name: name.as_ref()?.value.clone(),
            subject: subject.of(kind?, at_least, command.as_ref())?,
            interval,
            rise,
            fall,
        })
    };
    TrackDraft {
        config: config(),
        service,
        weight,
        is_file: kind == Some(Kind::File),
        name,
    }
}

/// The keys of which one type needs one.
struct Subject {
    service: Option<Marked<String>>,
    interface: Option<Marked<String>>,
    file: Option<Marked<std::path::PathBuf>>,
    process: Option<Marked<String>>,
}

impl Subject {
    fn of(
        &self,
        kind: Kind,
        at_least: Option<NonZeroU32>,
        command: Option<&(CommandConfig, Duration)>,
    ) -> Option<TrackSubject> {
        let service = || Some(self.service.as_ref()?.value.clone());
        Some(match kind {
            Kind::LocalBackend => TrackSubject::LocalBackend(service()?),
            Kind::AnyBackend => TrackSubject::AnyBackend(service()?),
            Kind::Interface => TrackSubject::Interface(self.interface.as_ref()?.value.clone()),
            Kind::File => TrackSubject::File(self.file.as_ref()?.value.clone()),
            Kind::Process => TrackSubject::Process {
                name: self.process.as_ref()?.value.clone(),
                at_least: at_least?,
            },
            Kind::Command => {
                let (command, timeout) = command?;
                TrackSubject::Command {
                    command: command.clone(),
                    timeout: *timeout,
                }
            }
        })
    }
}

/// The value of a key that only `kinds` have, and need.
fn of_kinds<'d>(
    table: &mut Table<'d>,
    key: &'static str,
    kind: Option<Kind>,
    kinds: &[Kind],
) -> Option<Value<'d>> {
    match kind {
        Some(kind) if kinds.contains(&kind) => {
            table.need(key, &format!("write {key} = \"...\": this type needs it"))
        }
        Some(_) => {
            if let Some(value) = table.get(key) {
                let users = Kind::NAMES.iter().filter(|(_, kind)| kinds.contains(kind));
                let users: Vec<_> = users.map(|(name, _)| *name).collect();
                refuse_unused(&value, &users.join("\" or \""));
            }
            None
        }
        // The type is wrong: what belongs to it is not known.
        None => table.get(key).and(None),
    }
}

fn refuse_unused(value: &Value<'_>, users: &str) {
    value.refuse(Fault::new(
        "is not used by this type",
        format!("remove it or write type = \"{users}\""),
    ));
}

/// `command`, `user` and `timeout`, by default `interval`: what is run, by whom and for how long.
fn read_command(
    table: &mut Table<'_>,
    kind: Option<Kind>,
    context: &Context<'_>,
    interval: Option<Duration>,
) -> Option<(CommandConfig, Duration)> {
    let program = of_kinds(table, "command", kind, &[Kind::Command]);
    if kind != Some(Kind::Command) {
        for key in ["user", "timeout"] {
            if let Some(value) = table.get(key).filter(|_| kind.is_some()) {
                refuse_unused(&value, "command");
            }
        }
        return None;
    }
    let user = command::user(table);
    let timeout = table.get_or("timeout", interval, |value| {
        value.text("1s", |text| value::duration(text, &CHECK_TIME))
    });
    let hint = "write the program and its arguments, such as command = [\"/usr/local/bin/check\"]";
    let program = command::program(&program?, context, hint)?;
    let command = CommandConfig {
        program: program.path,
        arguments: program.arguments,
        user: user?,
    };
    Some((command, timeout?))
}

/// `interval`, `rise` and `fall` of what has to be asked.
fn read_polling(
    table: &mut Table<'_>,
    kind: Option<Kind>,
) -> Option<(Duration, NonZeroU32, NonZeroU32)> {
    if kind.is_some_and(|kind| !kind.is_polled()) {
        for key in ["interval", "rise", "fall"] {
            if let Some(value) = table.get(key) {
                refuse_unused(&value, "file\", \"process\" or \"command");
            }
        }
        return Some((DEFAULT_INTERVAL, NonZeroU32::MIN, NonZeroU32::MIN));
    }
    let interval = table.get_or("interval", DEFAULT_INTERVAL, |value| {
        value.text("1s", |text| value::duration(text, &CHECK_TIME))
    });
    let count = |value: &Value<'_>| value.number(1..=100, |n| NonZeroU32::new(n.into()));
    let rise = table.get_or("rise", NonZeroU32::MIN, count);
    let fall = table.get_or("fall", NonZeroU32::MIN, count);
    Some((interval?, rise?, fall?))
}

/// Files may hold -1 as well, so that their weight may be one larger.
fn read_weight(value: &Value<'_>, is_file: bool) -> Option<Marked<i16>> {
    let most = MAX_TRACK_WEIGHT + i16::from(is_file);
    value.signed_number(-most..=most)
}

/// The name of a process: what stands in `/proc/PID/comm`, or the last part of the path that it was
/// started by.
fn process(text: &str) -> Result<String, Fault> {
    if text.is_empty() || text.len() > 255 || text.contains(['/', '\0']) {
        return Err(Fault::new(
            format!("{text:?} is not the name of a process"),
            "write the name without its path, such as \"kube-apiserver\"",
        ));
    }
    Ok(text.to_owned())
}

/// One element of `vrrp.track`.
pub(super) struct Reference {
    name: Marked<String>,
    weight: Option<Marked<i16>>,
    reverse: bool,
}

/// Read `vrrp.track`: names, or tables with `name`, `weight` and `reverse`.
pub(super) fn read_references(table: &mut Table<'_>) -> Vec<Reference> {
    let Some(value) = table.get("track") else {
        return Vec::new();
    };
    let elements = value.elements();
    elements.iter().filter_map(read_reference).collect()
}

fn read_reference(value: &Value<'_>) -> Option<Reference> {
    if !value.is_table() {
        let name = value.text("disk", value::name)?;
        return Some(Reference {
            name,
            weight: None,
            reverse: false,
        });
    }
    let mut table = value.table()?;
    let name = table
        .need("name", "name a [[track]]")
        .and_then(|value| value.text("disk", value::name));
    let weight = table
        .get("weight")
        .and_then(|value| read_weight(&value, true));
    let reverse = table.get_or("reverse", false, Value::boolean);
    table.finish();
    Some(Reference {
        name: name?,
        weight,
        reverse: reverse?,
    })
}

/// What `references` refer to. Names that there are not, and that are there twice, are refused.
pub(super) fn resolve(
    report: &Report,
    references: &[Reference],
    tracks: &[TrackDraft],
) -> Vec<Tracked> {
    let mut seen: BTreeMap<&str, &Mark> = BTreeMap::new();
    let mut resolved = Vec::new();
    for reference in references {
        let (name, mark) = (reference.name.value.as_str(), &reference.name.mark);
        if seen.insert(name, mark).is_some() {
            let problem = format!("{name:?} is there already");
            report.refuse(mark, Fault::new(problem, "write it once"));
        }
        let named = |track: &TrackDraft| track.name.as_ref().is_some_and(|own| own.value == name);
        let Some(position) = tracks.iter().position(named) else {
            let problem = format!("no [[track]] is named {name:?}");
            report.refuse_absence(mark, Fault::new(problem, "add one, or write another name"));
            continue;
        };
        let Some(track) = tracks.get(position) else {
            continue;
        };
        if let Some(weight) = &reference.weight
            && !track.is_file
            && weight.value.abs() > MAX_TRACK_WEIGHT
        {
            let problem = format!("{} is out of range", weight.value);
            let hint = format!("write -{MAX_TRACK_WEIGHT}..{MAX_TRACK_WEIGHT}");
            report.refuse(&weight.mark, Fault::new(problem, hint));
        }
        let weight = reference.weight.as_ref().map(|weight| weight.value);
        resolved.push(Tracked {
            track: position,
            weight: weight.or(track.weight).unwrap_or_default(),
            reverse: reference.reverse,
        });
    }
    resolved
}
