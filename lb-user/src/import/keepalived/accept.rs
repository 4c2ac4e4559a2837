//! `accept`, `no_accept`, and strict mode, which implies the latter: one key, `vrrp.accept`.

use super::{
    super::{
        document::Key,
        ledger::{Ledger, WordId},
    },
    Context, globals,
    parse::Statement,
};

/// What xvip makes of the rest of strict mode.
const STRICT: &str = "xvip always follows RFC 9568";

/// What the lines of an instance say.
#[derive(Debug, Default)]
pub(super) struct Accept {
    /// The last of `accept` and `no_accept`.
    said: Option<(bool, Vec<WordId>)>,
    strict: Strict,
}

/// What `strict_mode` says.
#[derive(Debug, Default)]
enum Strict {
    /// Nothing: `vrrp_strict` of the globals counts.
    #[default]
    Unsaid,
    Off,
    On(Vec<WordId>),
}

impl Accept {
    /// Reads one of these lines.
    pub(super) fn read(&mut self, statement: &Statement, ledger: &Ledger) {
        if statement.keyword() == "strict_mode" {
            self.strict = globals::switched_on(statement, ledger).map_or(Strict::Off, Strict::On);
            return;
        }
        let words = statement.first(1);
        // The last one counts.
        ledger.recognise(&words);
        self.said = Some((statement.keyword() == "accept", words));
    }

    /// The words that say strict mode, where it is on.
    pub(super) fn strict<'a>(&'a self, context: &'a Context<'_>) -> Option<&'a Vec<WordId>> {
        match &self.strict {
            Strict::Unsaid => context.globals.strict.as_ref(),
            Strict::Off => None,
            Strict::On(words) => Some(words),
        }
    }

    /// Strict mode changes what an instance does that says nothing, and keeps version 2 from accepting
    /// at all (its RFC 3768 has no such mode).
    pub(super) fn key(&self, version: u8, context: &Context<'_>) -> Option<Key> {
        let strict = self.strict(context);
        let key =
            |accepts: bool, words: &[WordId]| Some(Key::new("accept", accepts.to_string(), words));
        match (&self.said, strict) {
            (Some((true, said)), Some(strict)) if version == 2 => {
                let why = "keepalived ignores it in strict mode with version 2";
                context.ledger.none(said, why);
                key(false, strict)
            }
            (Some((accepts, said)), strict) => {
                let strict = strict.map_or(&[][..], Vec::as_slice);
                context.ledger.none(strict, STRICT);
                key(*accepts, said)
            }
            (None, Some(strict)) => key(false, strict),
            (None, None) => None,
        }
    }
}
