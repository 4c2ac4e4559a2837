//! `acl`, `tcp-request connection` and `stick-table`: who may connect, and how fast. Rules count in
//! their order and the first that applies decides; xvip asks for the longest prefix that a source is
//! in. Which rule applies to a source depends on the prefixes that it is in, and with those on the
//! longest one: so a verdict for each prefix, and one for everybody else, says the same exactly.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    super::{
        document::Key,
        ledger::{Ledger, Word, WordId},
        plan::SourceRule,
    },
    parse::Line,
    time::time,
    words,
};

/// Why rules are left to somebody.
const IN_ORDER: &str = "rules count in their order, and one of them asks for more than the source: write \
                        service.allow, service.deny and service.source_limit";

/// What a frontend and its defaults say about who may connect.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    /// `acl NAME src ...`: the sources that it means; `None` where it is about something else.
    acls: BTreeMap<String, Option<Vec<Source>>>,
    acl_lines: Vec<(String, Line)>,
    chain: Vec<Rule>,
    table: Option<StickTable>,
}

/// A source in a condition, and the word that says it.
#[derive(Clone, Debug)]
struct Source {
    net: IpNet,
    word: WordId,
}

/// `stick-table ... store conn_rate(PERIOD)`
#[derive(Clone, Debug)]
struct StickTable {
    period: Option<Duration>,
    line: Line,
}

/// A `tcp-request connection` line.
#[derive(Clone, Debug)]
struct Rule {
    line: Line,
    act: Act,
}

#[derive(Clone, Debug)]
enum Act {
    /// `accept`, or what refuses, where its condition holds.
    Decide { accept: bool, when: When },
    /// Refuses a source that opened more connections than this in the table's period.
    Limit { most: u64 },
    /// `track-sc0 src`
    Count,
    /// One that decides by something else.
    Unclear,
    /// One that decides nothing.
    Other,
}

/// When a rule applies: one of the lists, all of its conditions.
#[derive(Clone, Debug)]
struct When {
    /// `unless`
    negated: bool,
    any: Vec<Vec<Condition>>,
}

#[derive(Clone, Debug)]
struct Condition {
    negated: bool,
    sources: Vec<Source>,
    /// `TRUE`
    always: bool,
}

impl Condition {
    /// Whether it holds for a source whose longest prefix this is; `None` is one in no prefix.
    fn holds(&self, longest: Option<&IpNet>) -> bool {
        let is_in = |source: &Source| longest.is_some_and(|net| source.net.contains(net));
        (self.always || self.sources.iter().any(is_in)) != self.negated
    }
}

impl When {
    fn holds(&self, longest: Option<&IpNet>) -> bool {
        let all = |conditions: &Vec<Condition>| conditions.iter().all(|c| c.holds(longest));
        self.any.iter().any(all) != self.negated
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        let conditions = self.any.iter().flatten();
        conditions.flat_map(|condition| &condition.sources)
    }
}

/// What becomes of them.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Verdicts for `service.allow` and `service.deny`.
    pub(super) rules: Vec<SourceRule>,
    /// `service.source_limit`
    pub(super) limit: Option<Key>,
}

impl Rules {
    /// `acl NAME CRITERION ...`
    pub(super) fn acl(&mut self, line: &Line, ledger: &Ledger) {
        ledger.recognise(&line.ids());
        let name = line.word(1).to_owned();
        let criterion = line.words().get(2..).unwrap_or_default();
        let sources = sources(criterion);
        // Several lines of one name mean any of them.
        let all = self.acls.entry(name.clone()).or_insert(Some(Vec::new()));
        match (all.as_mut(), sources) {
            (Some(all), Some(sources)) => all.extend(sources),
            _ => *all = None,
        }
        self.acl_lines.push((name, line.clone()));
    }

    /// `stick-table ...`
    pub(super) fn table(&mut self, line: &Line, ledger: &Ledger) {
        ledger.recognise(&line.ids());
        let data = line.words().iter().flat_map(|word| word.text.split(','));
        let mut periods =
            data.filter_map(|data| time(data.strip_prefix("conn_rate(")?.strip_suffix(')')?));
        let stored = periods.next();
        let of_sources = matches!(line.word(2), "ip" | "ipv6");
        self.table = Some(StickTable {
            period: stored.filter(|_| of_sources),
            line: line.clone(),
        });
    }

    /// `tcp-request connection ...` or `tcp-request session ...`
    pub(super) fn request(&mut self, line: &Line, ledger: &Ledger) {
        ledger.recognise(&line.ids());
        let rest = line.words().get(3..).unwrap_or_default();
        let act = match line.word(2) {
            "accept" => self.decide(true, rest),
            "reject" | "silent-drop" => match connection_rate(rest) {
                Some(most) => Act::Limit { most },
                None => self.decide(false, rest),
            },
            track if track.starts_with("track-sc") && line.word(3) == "src" && rest.len() == 1 => {
                Act::Count
            }
            _ => Act::Other,
        };
        let line = line.clone();
        self.chain.push(Rule { line, act });
    }

    fn decide(&self, accept: bool, condition: &[Word]) -> Act {
        match self.when(condition) {
            Some(when) => Act::Decide { accept, when },
            None => Act::Unclear,
        }
    }

    /// `if CONDITION`, `unless CONDITION`, or nothing: always. `None` if it is about more than
    /// sources.
    fn when(&self, words: &[Word]) -> Option<When> {
        let negated = match words.first().map(|word| word.text.as_str()) {
            None => {
                let always = Condition {
                    negated: false,
                    sources: Vec::new(),
                    always: true,
                };
                return Some(When {
                    negated: false,
                    any: vec![vec![always]],
                });
            }
            Some("if") => false,
            Some("unless") => true,
            Some(_) => return None,
        };
        let mut any = vec![Vec::new()];
        let mut words = words.iter().skip(1);
        let mut not = false;
        while let Some(word) = words.next() {
            let text = word.text.as_str();
            if matches!(text, "or" | "||") {
                any.push(Vec::new());
                continue;
            }
            if text == "!" {
                not = !not;
                continue;
            }
            let (text, inverted) = match text.strip_prefix('!') {
                Some(text) => (text, true),
                None => (text, false),
            };
            let mut condition = if text == "{" {
                let inner = words.by_ref().take_while(|word| word.text != "}");
                let inner: Vec<_> = inner.cloned().collect();
                Condition {
                    negated: false,
                    sources: sources(&inner)?,
                    always: false,
                }
            } else {
                self.named(text)?
            };
            condition.negated = not != inverted;
            not = false;
            any.last_mut()?.push(condition);
        }
        any.iter()
            .all(|all| !all.is_empty())
            .then_some(When { negated, any })
    }

    /// An `acl` of this name, or one that haproxy defines.
    fn named(&self, name: &str) -> Option<Condition> {
        let (sources, always) = match name {
            "TRUE" => (Vec::new(), true),
            "FALSE" => (Vec::new(), false),
            _ => (self.acls.get(name)?.clone()?, false),
        };
        Some(Condition {
            negated: false,
            sources,
            always,
        })
    }

    /// What they come to for the services of the section; claims their words.
    pub(super) fn resolve(&self, ledger: &Ledger) -> Sources {
        let mut found = Sources::default();
        let is_unclear = |rule: &Rule| matches!(rule.act, Act::Unclear);
        let unclear = self.chain.iter().any(is_unclear);
        let mut used: Vec<WordId> = Vec::new();
        if unclear {
            for rule in &self.chain {
                match rule.act {
                    Act::Other => other(&rule.line, ledger),
                    _ => ledger.by_hand(&rule.line.ids(), IN_ORDER),
                }
            }
        } else {
            let verdicts = self.verdicts();
            for verdict in &verdicts.listed {
                used.extend(&verdict.words);
            }
            for (index, rule) in self.chain.iter().enumerate() {
                let before = self.chain.get(..index).unwrap_or_default();
                self.explain(rule, before, &verdicts, ledger, &mut found);
            }
            found.rules = verdicts.listed;
        }
        self.explain_acls(unclear, &used, ledger);
        if let Some(table) = &self.table
            && found.limit.is_none()
        {
            let what = "xvip keeps no table of sources: write service.source_limit for what it is there for";
            ledger.by_hand(&table.line.ids(), what);
        }
        found
    }

    /// Claims the words of a rule that are not in a list of prefixes.
    fn explain(
        &self,
        rule: &Rule,
        before: &[Rule],
        verdicts: &Verdicts,
        ledger: &Ledger,
        found: &mut Sources,
    ) {
        let is_listed = |id: &WordId| verdicts.listed.iter().any(|v| v.words.contains(id));
        match &rule.act {
            Act::Decide { when, .. } => {
                let of_prefixes: Vec<_> = when.sources().map(|source| source.word).collect();
                let ids = rule.line.ids();
                let (prefixes, frame): (Vec<_>, Vec<_>) =
                    ids.into_iter().partition(|id| of_prefixes.contains(id));
                ledger.none(&frame, "what it comes to stands at its sources");
                let silent: Vec<_> = prefixes.into_iter().filter(|id| !is_listed(id)).collect();
                ledger.none(&silent, "as for everybody around it");
            }
            Act::Limit { most } => self.limit(rule, *most, before, ledger, found),
            Act::Count => ledger.none(&rule.line.ids(), "it counts for the rules around it"),
            Act::Unclear | Act::Other => other(&rule.line, ledger),
        }
    }

    /// So many connections in the table's period, as a rate per second.
    fn limit(&self, rule: &Rule, most: u64, before: &[Rule], ledger: &Ledger, found: &mut Sources) {
        // Rules before it that let some pass exempt them; xvip's limit is for all.
        let is_pass = |other: &Rule| matches!(&other.act, Act::Decide { accept: true, .. });
        let exempts = before.iter().any(is_pass);
        let period = self.table.as_ref().and_then(|table| table.period);
        let rate = period.and_then(|period| {
            let millis = u64::try_from(period.as_millis())
                .ok()
                .filter(|ms| *ms > 0)?;
            let rate = most.checked_mul(1000)?.div_ceil(millis);
            (most * 1000 >= millis && (1..=65_535).contains(&rate)).then_some(rate)
        });
        let burst = (1..=65_535).contains(&most).then_some(most);
        match (rate, burst, &self.table) {
            (Some(rate), Some(burst), Some(table)) if !exempts && found.limit.is_none() => {
                let mut words = rule.line.ids();
                words.extend(table.line.ids());
                let value = format!("{{ rate = {rate}, burst = {burst} }}");
                found.limit = Some(Key::new("source_limit", value, &words));
            }
            _ => {
                let what = "write service.source_limit: new flows per second that each source may open, with at \
                            least one, and for all sources alike";
                ledger.by_hand(&rule.line.ids(), what);
            }
        }
    }

    /// Claims `acl` lines.
    fn explain_acls(&self, unclear: bool, used: &[WordId], ledger: &Ledger) {
        for (name, line) in &self.acl_lines {
            let is_of_sources = self.acls.get(name).is_some_and(Option::is_some);
            let asked = self.chain.iter().any(|rule| {
                let words = rule.line.words().iter();
                words
                    .skip(3)
                    .any(|word| word.text.trim_start_matches('!') == *name)
            });
            if !asked || !is_of_sources || unclear {
                ledger.by_hand(&line.ids(), words::RULES);
                continue;
            }
            let (listed, frame): (Vec<_>, Vec<_>) =
                line.ids().into_iter().partition(|id| used.contains(id));
            ledger.none(&frame, "what it comes to stands at its sources");
            ledger.recognise(&listed);
        }
    }

    /// What the rules decide for every prefix in them, where that is not what they decide for
    /// those around it.
    fn verdicts(&self) -> Verdicts {
        let mut words: BTreeMap<IpNet, Vec<WordId>> = BTreeMap::new();
        for rule in &self.chain {
            if let Act::Decide { when, .. } = &rule.act {
                for source in when.sources() {
                    words.entry(source.net).or_default().push(source.word);
                }
            }
        }
        let verdict = |longest: Option<&IpNet>| {
            let decided = self.chain.iter().find_map(|rule| match &rule.act {
                Act::Decide { accept, when } if when.holds(longest) => Some(*accept),
                _ => None,
            });
            decided.unwrap_or(true)
        };
        let others = verdict(None);
        let mut listed: Vec<SourceRule> = Vec::new();
        // Shorter prefixes before those inside of them.
        let mut nets: Vec<_> = words.iter().collect();
        nets.sort_by_key(|(net, _)| (net.prefix_len(), **net));
        for (net, words) in nets {
            let allowed = verdict(Some(net));
            let around = nets_around(&listed, net).unwrap_or(others);
            if allowed != around {
                listed.push(SourceRule {
                    net: *net,
                    allowed,
                    words: words.clone(),
                });
            }
        }
        for everybody in [
            IpNet::from(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
            IpNet::from(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
        ] {
            add_everybody(&mut listed, everybody, others);
        }
        Verdicts { listed }
    }
}

/// Says what holds for those in no prefix of a family, where xvip would take the other thing for
/// granted: with an `allow` nobody else may connect, without one everybody may.
fn add_everybody(listed: &mut Vec<SourceRule>, everybody: IpNet, others: bool) {
    let of_family = |rule: &&SourceRule| rule.net.addr().is_ipv4() == everybody.addr().is_ipv4();
    let any_allow = listed.iter().filter(of_family).any(|rule| rule.allowed);
    let is_there = listed.iter().any(|rule| rule.net == everybody);
    if others == any_allow && !is_there {
        listed.insert(
            0,
            SourceRule {
                net: everybody,
                allowed: others,
                words: Vec::new(),
            },
        );
    }
}

/// What is decided for the longest prefix around one.
fn nets_around(listed: &[SourceRule], net: &IpNet) -> Option<bool> {
    let around = listed.iter().filter(|rule| rule.net.contains(net));
    let longest = around.max_by_key(|rule| rule.net.prefix_len())?;
    Some(longest.allowed)
}

/// What is decided for sources.
#[derive(Debug)]
struct Verdicts {
    listed: Vec<SourceRule>,
}

/// `src [FLAG]... PREFIX...`
fn sources(criterion: &[Word]) -> Option<Vec<Source>> {
    let mut words = criterion.iter();
    if words.next()?.text != "src" {
        return None;
    }
    let mut sources = Vec::new();
    while let Some(word) = words.next() {
        match word.text.as_str() {
            "--" | "-i" | "-n" => {}
            "-m" if words.next().is_some_and(|method| method.text == "ip") => {}
            text => sources.push(Source {
                net: prefix(text)?,
                word: word.id,
            }),
        }
    }
    (!sources.is_empty()).then_some(sources)
}

/// `ADDRESS[/LENGTH]`, or with a mask in place of the length.
fn prefix(text: &str) -> Option<IpNet> {
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(net.trunc());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.into());
    }
    let (address, mask) = text.split_once('/')?;
    let net = Ipv4Net::with_netmask(address.parse().ok()?, mask.parse().ok()?).ok()?;
    Some(IpNet::from(net).trunc())
}

/// `if { src_conn_rate gt N }` and its kin: the most that is let through.
fn connection_rate(condition: &[Word]) -> Option<u64> {
    let texts: Vec<_> = condition.iter().map(|word| word.text.as_str()).collect();
    let ["if", "{", fetch, operator, number, "}"] = texts.as_slice() else {
        return None;
    };
    let name = fetch.split_once('(').map_or(*fetch, |(name, _)| name);
    if !matches!(
        name,
        "src_conn_rate" | "sc_conn_rate" | "sc0_conn_rate" | "sc1_conn_rate" | "sc2_conn_rate"
    ) {
        return None;
    }
    let number = number.parse::<u64>().ok()?;
    match *operator {
        "gt" => Some(number),
        "ge" => number.checked_sub(1),
        _ => None,
    }
}

/// A rule that decides nothing.
fn other(line: &Line, ledger: &Ledger) {
    match line.word(2) {
        "expect-proxy" | "expect-netscaler-cip" => ledger.by_hand(
            &line.ids(),
            "xvip reads no PROXY header: the server gets it as it comes",
        ),
        _ => ledger.by_hand(&line.ids(), words::RULES),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::Input, parse},
        *,
    };

    /// `allow`, `deny` and the limit of the lines of a frontend, and whether somebody must look.
    fn resolved(lines: &str) -> (Vec<String>, Vec<String>, Option<String>, bool) {
        let ledger = Ledger::default();
        let input = Input {
            name: "h".to_owned(),
            text: format!("frontend f\n{lines}"),
        };
        let sections = parse::parse(&input, &BTreeMap::new(), &ledger).unwrap();
        ledger.recognise(&sections[0].head.ids());
        let mut rules = Rules::default();
        for line in &sections[0].lines {
            match line.keyword() {
                "acl" => rules.acl(line, &ledger),
                "stick-table" => rules.table(line, &ledger),
                _ => rules.request(line, &ledger),
            }
        }
        let found = rules.resolve(&ledger);
        let of = |allowed: bool| -> Vec<String> {
            let rules = found.rules.iter().filter(|rule| rule.allowed == allowed);
            rules.map(|rule| rule.net.to_string()).collect()
        };
        let limit = found.limit.as_ref().map(|key| format!("{key:?}"));
        (of(true), of(false), limit, ledger.report().needs_hand())
    }

    fn lists(lines: &str) -> (Vec<String>, Vec<String>) {
        let (allow, deny, _, by_hand) = resolved(lines);
        assert!(!by_hand, "{lines}");
        (allow, deny)
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    /// The first rule that applies decides, as in haproxy.
    #[test]
    fn rules_become_prefixes() {
        for (lines, allow, deny) in [
            (
                "tcp-request connection reject if { src 203.0.113.0/24 }",
                &[][..],
                &["203.0.113.0/24"][..],
            ),
            (
                "acl inside src 10.0.0.0/8 192.0.2.1\n\
                 tcp-request connection reject if !inside",
                &["10.0.0.0/8", "192.0.2.1/32"],
                &["::/0"],
            ),
            (
                "tcp-request connection accept if { src 10.0.0.0/255.0.0.0 }\n\
                 tcp-request connection reject",
                &["10.0.0.0/8"],
                &["::/0"],
            ),
            // The hole in what is denied: everybody else still may.
            (
                "acl good src 10.1.0.0/16\nacl bad src 10.0.0.0/8\n\
                 tcp-request connection reject if bad !good",
                &["0.0.0.0/0", "10.1.0.0/16"],
                &["10.0.0.0/8"],
            ),
            // The other way round the second rule is never asked.
            (
                "tcp-request connection reject if { src 10.0.0.0/8 }\n\
                 tcp-request connection accept if { src 10.1.0.0/16 }",
                &[],
                &["10.0.0.0/8"],
            ),
            (
                "tcp-request session accept if { src 10.0.0.0/8 } or { src fd00::/8 }\n\
                 tcp-request session silent-drop if TRUE",
                &["10.0.0.0/8", "fd00::/8"],
                &[],
            ),
            (
                "tcp-request connection reject unless { src -m ip -- 10.0.0.0/8 }",
                &["10.0.0.0/8"],
                &["::/0"],
            ),
            (
                "tcp-request connection accept if { src 10.0.0.0/8 }",
                &[],
                &[],
            ),
            ("tcp-request connection reject", &[], &["::/0", "0.0.0.0/0"]),
        ] {
            assert_eq!(lists(lines), (strings(allow), strings(deny)), "{lines}");
        }
    }

    /// What asks for more than the source is left to somebody, with all rules around it.
    #[test]
    fn other_rules_need_somebody() {
        for lines in [
            "tcp-request connection reject if { dst_port 5 }",
            "tcp-request connection accept if { src 10.0.0.0/8 }\n\
             tcp-request connection reject if { src -f /etc/bad.lst }",
            "acl a src 10.0.0.0/8\nacl a dst_port 5\ntcp-request connection reject if a",
            "tcp-request connection reject if { src 10.0.0.0/8 } or",
            "tcp-request connection reject if nobody",
            "tcp-request connection set-mark 1",
        ] {
            let (allow, deny, limit, by_hand) = resolved(lines);
            assert!(by_hand, "{lines}");
            assert_eq!((allow.len(), deny.len(), limit), (0, 0, None), "{lines}");
        }
    }

    /// A rate of connections per source.
    #[test]
    fn a_rate_becomes_a_limit() {
        let table = "stick-table type ip size 100k expire 30s store conn_cur,conn_rate(3s)\n";
        let limit = |lines: &str| {
            let (_, _, limit, by_hand) = resolved(&format!("{table}{lines}"));
            assert_eq!(limit.is_none(), by_hand, "{lines}");
            limit
        };
        let found = limit(
            "tcp-request connection reject if { src_conn_rate gt 20 }\n\
             tcp-request connection track-sc0 src",
        );
        assert!(found.unwrap().contains("{ rate = 7, burst = 20 }"));
        let found = limit(
            "tcp-request connection track-sc0 src\n\
             tcp-request connection reject if { sc0_conn_rate ge 31 }",
        );
        assert!(found.unwrap().contains("{ rate = 10, burst = 30 }"));
        // Less than one in a second, some who are exempt, and what is no rate.
        for lines in [
            "tcp-request connection reject if { src_conn_rate gt 2 }",
            "tcp-request connection accept if { src 10.0.0.0/8 }\n\
             tcp-request connection reject if { src_conn_rate gt 20 }",
            "tcp-request connection reject if { src_conn_cur gt 20 }",
        ] {
            assert_eq!(limit(lines), None, "{lines}");
        }
    }
}
