//! `ashlar rule`.

use hyper::Method;

use super::Global;
use super::volume::done;
use crate::client::segment;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, duration, pairs, show, timestamp};
use crate::values::parse_span;
use crate::wire::protection::{Day, Rule, RuleSpec, Schedule};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a rule: when snapshots are taken, and for how long they are kept
    ///
    /// It does nothing by itself: it is part of policies (`ashlar policy create`), which volumes and groups have. Times of day are those of the
    /// daemon's time zone (`timezone` in the configuration). What was missed while the machine was off is made up for once.
    #[command(
        after_help = "Examples:\n  ashlar rule create hourly --every 1h --keep 24\n  ashlar rule create nightly --at 02:30 --days mon tue wed thu fri --for 14d\n  ashlar rule create vault --at 03:00 --days sun --for 90d --secure   # nobody can delete these"
    )]
    Create {
        /// Letters, digits, `.`, `_`, `-`; at most 63
        name: String,
        #[command(flatten)]
        says: Says,
    },
    /// All rules
    #[command(visible_alias = "ls")]
    List,
    /// One rule in full
    Show {
        /// The rule
        name: String,
    },
    /// Change what a rule says; what is not named stays
    #[command(
        after_help = "Snapshots that are there expire when they were to; how many are kept counts for them, too."
    )]
    Set {
        /// The rule
        name: String,
        /// A new name
        #[arg(long)]
        rename: Option<String>,
        #[command(flatten)]
        says: Says,
    },
    /// Delete a rule that is part of no policy; its snapshots stay until they expire
    #[command(visible_alias = "rm")]
    Delete {
        /// The rule
        name: String,
    },
}

/// What a rule says.
#[derive(Debug, clap::Args)]
pub struct Says {
    /// Every so often, counted from midnight: 5m 10m 15m 20m 30m 1h 2h 3h 4h 6h 8h 12h 24h
    #[arg(long, value_name = "INTERVAL", value_parser = parse_span, conflicts_with = "at")]
    every: Option<u64>,
    /// At these times of day
    #[arg(long, value_name = "HH:MM", num_args = 1..)]
    at: Vec<String>,
    /// On these days only; `all` for every day
    #[arg(long, value_name = "DAY", num_args = 1.., value_parser = parse_day)]
    days: Vec<Days>,
    /// How many are kept of each volume; older ones are deleted; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    keep: Option<u32>,
    /// For how long they are kept, such as 12h, 7d, 4w; 0 for no limit
    #[arg(long = "for", value_name = "TIME", value_parser = parse_span)]
    keep_for: Option<u64>,
    /// Nobody can delete them before that: no user, no command, no rule
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    secure: Option<bool>,
    /// How they are called: {rule} and {time} stand for the rule's name and the local time
    #[arg(long, value_name = "PATTERN")]
    names: Option<String>,
    /// Freeze file systems that are mounted on the volumes' devices on this machine meanwhile
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    freeze: Option<bool>,
    /// Run this program of the daemon's `hooks_dir` before and after; `none` for none
    #[arg(long, value_name = "NAME")]
    hook: Option<String>,
}

/// One day of the week, or all.
#[derive(Clone, Copy, Debug)]
pub enum Days {
    All,
    One(Day),
}

fn parse_day(text: &str) -> Result<Days, String> {
    use clap::ValueEnum;
    if text == "all" {
        return Ok(Days::All);
    }
    Day::from_str(text, true)
        .map(Days::One)
        .map_err(|_| format!("'{text}' is no day: mon, tue, wed, thu, fri, sat, sun or all"))
}

impl Says {
    /// What a rule says then.
    fn change(self, mut spec: RuleSpec) -> CommandResult<RuleSpec> {
        let days = spec.schedule.days.clone();
        if let Some(every) = self.every {
            if every % 60 != 0 {
                return Err(Failure::usage("an interval is a number of minutes or hours, such as 15m or 1h"));
            }
            let every = u32::try_from(every / 60).unwrap_or(u32::MAX);
            spec.schedule = Schedule { every_min: Some(every), at: Vec::new(), days };
        } else if !self.at.is_empty() {
            spec.schedule = Schedule { every_min: None, at: self.at, days };
        }
        if !self.days.is_empty() {
            let mut days: Vec<Day> = Vec::new();
            for day in self.days {
                match day {
                    Days::All => days.clear(),
                    Days::One(day) => days.push(day),
                }
            }
            days.sort_unstable();
            days.dedup();
            spec.schedule.days = days;
        }
        let limit = |new: Option<u64>, old: Option<u64>| new.map_or(old, |n| (n > 0).then_some(n));
        spec.keep = limit(self.keep.map(u64::from), spec.keep.map(u64::from)).map(|n| n as u32);
        spec.keep_for_s = limit(self.keep_for, spec.keep_for_s);
        spec.secure = self.secure.unwrap_or(spec.secure);
        spec.pattern = self.names.or(spec.pattern);
        spec.quiesce.freeze = self.freeze.unwrap_or(spec.quiesce.freeze);
        spec.quiesce.hook = self.hook.or(spec.quiesce.hook).filter(|name| name != "none");
        Ok(spec)
    }
}

fn path(name: &str) -> String {
    format!("/v1/rules/{}", segment(name))
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    let format = global.output;
    match command {
        Command::Create { name, says } => {
            let spec = says.change(RuleSpec { name, ..RuleSpec::default() })?;
            let rule: Rule = super::talk(client.call(Method::POST, "/v1/rules", Some(&spec)))?;
            show(format, &rule, |r| {
                format!("rule {} created: {}, {}", r.spec.name, r.spec.schedule.describe(), kept(&r.spec))
            })?;
        }
        Command::List => {
            let rules: Vec<Rule> = super::talk(client.get("/v1/rules"))?;
            show(format, &rules, |all| list(all))?;
        }
        Command::Show { name } => {
            let rule: Rule = super::talk(client.get(&path(&name)))?;
            show(format, &rule, describe)?;
        }
        Command::Set { name, rename, says } => {
            let rule = super::talk(async {
                let now: Rule = client.get(&path(&name)).await?;
                let mut spec = says.change(now.spec)?;
                spec.name = rename.unwrap_or(spec.name);
                client.call::<Rule>(Method::PUT, &path(&name), Some(&spec)).await
            })?;
            show(format, &rule, |r| {
                format!("rule {}: {}, {}", r.spec.name, r.spec.schedule.describe(), kept(&r.spec))
            })?;
        }
        Command::Delete { name } => {
            super::talk(client.send::<()>(Method::DELETE, &path(&name)))?;
            done(format, "rule", &name, "deleted")?;
        }
    }
    Ok(Exit::Ok)
}

/// What is kept, in words.
fn kept(spec: &RuleSpec) -> String {
    let count = spec.keep.map(|n| format!("the newest {n}"));
    let time = spec.keep_for_s.map(|s| format!("for {}", duration(s as f64)));
    let words: Vec<String> = [count, time].into_iter().flatten().collect();
    format!("{}{}", words.join(", "), if spec.secure { ", secure" } else { "" })
}

fn list(rules: &[Rule]) -> String {
    if rules.is_empty() {
        return "no rules; make one with `ashlar rule create NAME --every 1h --keep 24`".into();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("WHEN", Align::Left),
        ("KEPT", Align::Left),
        ("NEXT", Align::Left),
        ("POLICIES", Align::Left),
    ]);
    for r in rules {
        table.row([r.spec.name.clone(), r.spec.schedule.describe(), kept(&r.spec), next(r), policies(r)]);
    }
    table.render(0)
}

fn next(rule: &Rule) -> String {
    rule.next_s.map_or_else(|| "-".into(), timestamp)
}

fn policies(rule: &Rule) -> String {
    if rule.policies.is_empty() { "-".into() } else { rule.policies.join(" ") }
}

/// How applications are made ready.
fn quiesced(spec: &RuleSpec) -> String {
    let hook = spec.quiesce.hook.as_ref().map(|name| format!("hook {name}"));
    let freeze = spec.quiesce.freeze.then(|| "file systems frozen".to_owned());
    let words: Vec<String> = [hook, freeze].into_iter().flatten().collect();
    if words.is_empty() { "no".into() } else { words.join(", ") }
}

fn describe(rule: &Rule) -> String {
    pairs(
        &[
            ("name", rule.spec.name.clone()),
            ("when", rule.spec.schedule.describe()),
            ("kept", kept(&rule.spec)),
            ("names", rule.spec.pattern.clone().unwrap_or_else(|| "{rule}-{time}".into())),
            ("quiesced", quiesced(&rule.spec)),
            ("next", next(rule)),
            ("policies", policies(rule)),
        ],
        0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says() -> Says {
        Says {
            every: None,
            at: vec![],
            days: vec![],
            keep: None,
            keep_for: None,
            secure: None,
            names: None,
            freeze: None,
            hook: None,
        }
    }

    #[test]
    fn what_is_not_named_stays() {
        let spec = Says { every: Some(3600), keep: Some(24), keep_for: Some(86_400), secure: Some(true), ..says() };
        let spec = spec.change(RuleSpec::default()).unwrap();
        assert_eq!(spec.schedule.describe(), "every 1 h");
        assert_eq!(kept(&spec), "the newest 24, for 1 d 0 h, secure");
        let same = says().change(spec.clone()).unwrap();
        assert_eq!(same, spec);
        let days = vec![parse_day("sun").unwrap(), parse_day("mon").unwrap(), parse_day("mon").unwrap()];
        let other = Says { at: vec!["02:30".into()], days, keep: Some(0), secure: Some(false), ..says() };
        let other = other.change(spec).unwrap();
        assert_eq!(other.schedule.describe(), "at 02:30 on mon, sun");
        assert_eq!(kept(&other), "for 1 d 0 h");
        let all = Says { days: vec![Days::All], ..says() }.change(other).unwrap();
        assert_eq!(all.schedule.describe(), "at 02:30");
        assert!(Says { every: Some(90), ..says() }.change(RuleSpec::default()).is_err());
        assert!(parse_day("someday").is_err());
    }

    #[test]
    fn rules_are_listed() {
        let schedule = Schedule { every_min: Some(15), ..Schedule::default() };
        let spec = RuleSpec { name: "often".into(), schedule, keep: Some(4), ..RuleSpec::default() };
        let rule = Rule { spec, policies: vec!["gold".into()], next_s: Some(0) };
        let text = list(std::slice::from_ref(&rule));
        let line = text.lines().nth(1).unwrap_or_default();
        assert_eq!(line, "often  every 15 min  the newest 4  1970-01-01 00:00:00Z  gold");
        assert!(describe(&rule).contains("{rule}-{time}"));
        assert!(list(&[]).contains("rule create"));
    }
}
