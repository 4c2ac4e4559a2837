//! `notify_master` and its kin, of an instance or a group: the table `notify`. `notify_fifo` and its
//! kin: `node.notify_fifo`.

use super::{
    super::{
        document::{Key, quoted},
        ledger::WordId,
    },
    parse::Statement,
    program::{self, Tools},
};

/// The programs of an instance or a group.
#[derive(Debug, Default)]
pub(super) struct Notify {
    /// `active` and so on.
    programs: Vec<Key>,
    /// Who runs them, and the words that say it.
    user: Option<(String, Vec<WordId>)>,
}

/// The key for a line, if it is one of them.
fn key(keyword: &str) -> Option<&'static str> {
    Some(match keyword {
        "notify_master" => "active",
        "notify_backup" => "backup",
        "notify_fault" => "fault",
        "notify_stop" => "stop",
        "notify" => "any",
        _ => return None,
    })
}

impl Notify {
    /// `notify_master PROGRAM [USER [GROUP]]` and the like. Whether it was one.
    pub(super) fn read(&mut self, line: &Statement, tools: Tools<'_>) -> bool {
        let Some(key) = key(line.keyword()) else {
            return false;
        };
        let ledger = tools.ledger;
        let words = line.first(2);
        let command = match program::command(line.word(1), tools.options) {
            Ok(command) => command,
            Err(what) => {
                ledger.by_hand(&line.ids(), format!("{what} as notify.{key}"));
                return true;
            }
        };
        let Some((user, of_user)) = program::user(line, 2, tools) else {
            let what = format!(
                "enable_script_security without script_user, and no user keepalived_script: keepalived does not run it \
                 either; write notify.{key} = {command} and notify.user"
            );
            ledger.by_hand(&words, what);
            return true;
        };
        let (own, own_words) = self.user.get_or_insert_with(|| (user.clone(), Vec::new()));
        if *own != user {
            let what = format!(
                "all programs of one notify have one user, here {own:?}: if that will do, write notify.{key} = {command}"
            );
            ledger.by_hand(&line.first(3), what);
            return true;
        }
        own_words.extend(of_user);
        ledger.recognise(&line.first(3));
        self.programs.push(Key::new(key, command, &words));
        true
    }

    /// The keys of the table, if there are any.
    pub(super) fn into_keys(self) -> Vec<Key> {
        let mut keys = self.programs;
        if let Some((user, words)) = self.user.filter(|_| !keys.is_empty()) {
            keys.push(Key::text("user", &user, &words));
        }
        keys
    }
}

/// `notify_fifo NAME [USER [GROUP]]`: the one pipe that xvip has, if `others` say no other yet.
pub(super) fn fifo(line: &Statement, others: &[Key], tools: Tools<'_>) -> Option<Key> {
    let ledger = tools.ledger;
    let path = line.word(1);
    if !others.is_empty() {
        let what =
            "xvip writes to one pipe, node.notify_fifo: let this one's reader read that as well";
        ledger.by_hand(&line.ids(), what);
        return None;
    }
    if !path.starts_with('/') {
        ledger.by_hand(&line.ids(), "write an absolute path as node.notify_fifo");
        return None;
    }
    let owner: Vec<_> = line.ids().into_iter().skip(2).collect();
    if !owner.is_empty() && line.word(2) != "root" {
        let names: Vec<_> = (2..4).map(|at| line.word(at)).collect();
        let what = format!(
            "xvip makes the pipe for root, and takes one that is there as it is: make it at boot by a line of \
             tmpfiles.d: p {path} 0640 {}",
            names.join(" ").trim_end()
        );
        ledger.by_hand(&owner, what);
    } else {
        ledger.none(&owner, "xvip makes the pipe for root");
    }
    ledger.recognise(&line.first(2));
    Some(Key::text("notify_fifo", path, &line.first(2)))
}

/// `notify_fifo_script PROGRAM [USER [GROUP]]`, which keepalived starts; `path` is the pipe's.
pub(super) fn fifo_script(line: &Statement, path: &str, tools: Tools<'_>) {
    let user = match line.word(2) {
        "" => String::new(),
        user => format!(" and User={user}"),
    };
    let start = match path {
        "" => line.word(1).to_owned(),
        path => format!("{} {path}", line.word(1)),
    };
    let what = format!(
        "xvip starts no reader: write a systemd unit with ExecStart={}{user}, and Restart=always",
        quoted(&start).trim_matches('"')
    );
    tools.ledger.by_hand(&line.ids(), what);
}
