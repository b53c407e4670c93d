//! Takes snapshots when rules are due, and deletes those that are to be kept no longer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::pool::Kept;
use blockdev::report::{Alert, Severity, SnapshotInfo};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use parking_lot::Mutex;

use super::{Duty, Objects, Target, retention, schedule};
use crate::daemon::engine::Engine;
use crate::daemon::quiesce::Take;
use crate::daemon::state::Appliance;
use crate::output::timestamp;
use crate::wire::events::Event;
use crate::wire::protection::{RuleSpec, Schedule};
use crate::wire::snapshots::Quiesce;

/// Pause between two looks at what is due.
const LOOK: Duration = Duration::from_secs(2);
/// Pause between two looks at what rules keep no longer.
const RETENTION: Duration = Duration::from_secs(60);
/// After a run that failed it is tried again after so long, twice as long each time, at most `RETRY_MAX`.
const RETRY: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// Snapshots that are deleted at once.
const BATCH: usize = 64;
/// Names of snapshots that are tried when there is one already.
const NAMES: u32 = 9;

/// One moment, by the machine's clock and by one that nobody sets.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// By the machine's clock.
    pub wall: Timestamp,
    /// Since some moment.
    pub steady: Duration,
}

/// What was done, and what could not be.
pub struct Runs {
    zone: TimeZone,
    begun: Instant,
    /// Held by whoever looks at what is due.
    pub turn: tokio::sync::Mutex<()>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    last: BTreeMap<(Target, u32), Timestamp>,
    failed: BTreeMap<(Target, u32), Failed>,
    /// Something was taken since what rules keep was looked at last.
    taken: bool,
    retained: Option<Duration>,
    /// Why nothing could be deleted last.
    put_off: Option<String>,
}

struct Failed {
    since: Timestamp,
    tries: u32,
    again: Duration,
    rule: String,
    why: String,
}

/// The name of a snapshot that a rule takes at a local time.
pub fn snapshot_name(spec: &RuleSpec, time: &str) -> String {
    let pattern = spec.pattern.as_deref().unwrap_or("{rule}-{time}");
    pattern.replace("{rule}", &spec.name).replace("{time}", time)
}

impl Runs {
    /// Nothing yet; times of day are those of a zone.
    pub fn new(zone: TimeZone) -> Self {
        Self { zone, begun: Instant::now(), turn: tokio::sync::Mutex::default(), table: Mutex::default() }
    }

    /// This moment.
    pub fn now(&self) -> Now {
        Now { wall: Timestamp::now(), steady: self.begun.elapsed() }
    }

    /// When a schedule is next.
    pub fn next_s(&self, schedule: &Schedule) -> Option<u64> {
        let next = schedule.next(Timestamp::now(), &self.zone)?;
        u64::try_from(next.as_second()).ok()
    }

    /// Whether it is known of all of them when they ran last.
    fn knows(&self, duties: &[Duty]) -> bool {
        let table = self.table.lock();
        duties.iter().all(|d| table.last.contains_key(&key(d)))
    }

    /// What is due now. Of duties that are new `snapshots` tell when they ran last.
    fn due(&self, duties: Vec<Duty>, snapshots: &[SnapshotInfo], now: Now) -> Vec<Duty> {
        let mut table = self.table.lock();
        let mut known: BTreeMap<(Target, u32), Timestamp> = BTreeMap::new();
        for duty in &duties {
            let taken = || {
                let own = snapshots.iter().filter(|s| s.rule_id == duty.rule && duty.target.has(s));
                own.filter_map(|s| Timestamp::from_second(i64::try_from(s.created_s).ok()?).ok()).max()
            };
            // Without a run it counts from when the policy was given: what was missed since then is made up for.
            let since = || Timestamp::from_second(i64::try_from(duty.since_s).ok()?).ok();
            let last = table.last.get(&key(duty)).copied().or_else(taken).or_else(since).unwrap_or(now.wall);
            // The machine's clock was set back: what lies ahead counts as now.
            known.insert(key(duty), last.min(now.wall));
        }
        table.failed.retain(|key, _| known.contains_key(key));
        let due = |d: &Duty| {
            let waits = table.failed.get(&key(d)).is_some_and(|f| f.again > now.steady);
            let last = known.get(&key(d)).copied().unwrap_or(now.wall);
            !waits && schedule::due(&d.spec.schedule, last, now.wall, &self.zone)
        };
        let due = duties.into_iter().filter(due).collect();
        table.last = known;
        due
    }

    /// Takes the snapshots of a duty.
    async fn take(&self, taker: &dyn Take, duty: &Duty, now: Timestamp) -> Result<Vec<SnapshotInfo>> {
        let (keep_for_s, secure) = (duty.spec.keep_for_s, duty.spec.secure);
        let group = match duty.target {
            Target::Group(number, _) => number,
            Target::Volume(_) => 0,
        };
        let kept = Kept { expires_in_s: keep_for_s, secure, rule: duty.rule, group, ..Kept::default() };
        let time = now.to_zoned(self.zone.clone()).strftime("%Y%m%d-%H%M%S").to_string();
        let name = snapshot_name(&duty.spec, &time);
        let mut tries = 1;
        loop {
            let name = if tries == 1 { name.clone() } else { format!("{name}-{tries}") };
            let names: Vec<String> = duty.volumes.iter().map(|volume| format!("{volume}@{name}")).collect();
            match taker.engine().check_snapshots(&names).await {
                // Somebody took one of this name, or clocks were set back: the hour is there twice.
                Err(e) if e.kind() == ErrorKind::AlreadyExists && tries < NAMES => tries += 1,
                Err(e) => return Err(e),
                Ok(()) => return taker.take(&names, &kept, &duty.spec.quiesce, &duty.spec.name).await,
            }
        }
    }

    /// Takes the snapshots of a duty, remembers how that went, and gives the event that tells of it.
    pub async fn run(
        &self,
        taker: &dyn Take,
        duty: &Duty,
        now: impl Fn() -> Now,
    ) -> (Result<Vec<SnapshotInfo>>, Option<Event>) {
        let begun = now().wall;
        let taken = self.take(taker, duty, begun).await;
        let (key, rule, policy) = (key(duty), &duty.spec.name, &duty.policy);
        let mut table = self.table.lock();
        let event = match &taken {
            Ok(all) => {
                table.last.insert(key.clone(), begun);
                table.failed.remove(&key);
                table.taken = true;
                let names: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
                let message = format!("{} taken by rule '{rule}' of policy '{policy}'", told(&names));
                Some(Event::new(Severity::Info, "snapshot.created", duty.target.object(), message))
            }
            Err(e) => {
                let before = table.failed.get(&key).map(|f| (f.since, f.tries));
                let (since, tries) = before.unwrap_or((begun, 0));
                let pause = RETRY.saturating_mul(1 << tries.min(10)).min(RETRY_MAX);
                let failed = Failed {
                    since,
                    tries: tries + 1,
                    again: now().steady + pause,
                    rule: format!("rule '{rule}' of policy '{policy}'"),
                    why: e.to_string(),
                };
                let message = format!("no snapshot could be taken by {}: {e}", failed.rule);
                table.failed.insert(key, failed);
                let event = Event::new(Severity::Warning, "snapshot.failed", duty.target.object(), message);
                before.is_none().then_some(event)
            }
        };
        (taken, event)
    }

    /// Deletes what is kept no longer, runs everything that is due, one after another; gives the events that tell of it. `now` is asked for each.
    pub async fn look(&self, taker: &dyn Take, now: impl Fn() -> Now) -> Vec<Event> {
        let engine = taker.engine();
        let objects = Objects::load(engine);
        let mut events = Vec::new();
        events.extend(self.tidy(engine, &objects, now()).await);
        let mut duties = objects.duties();
        // What waits for nobody first.
        duties.sort_by_key(|d| d.spec.quiesce != Quiesce::default());
        let snapshots = match self.knows(&duties) {
            true => Vec::new(),
            false => engine.snapshots(None).await.unwrap_or_default(),
        };
        for duty in self.due(duties, &snapshots, now()) {
            events.extend(self.run(taker, &duty, &now).await.1);
        }
        if self.table.lock().taken {
            events.extend(self.tidy(engine, &objects, now()).await);
        }
        events
    }

    /// Deletes what is kept no longer.
    async fn tidy(&self, engine: &dyn Engine, objects: &Objects, now: Now) -> Option<Event> {
        let mut gone = engine.delete_expired(BATCH).await.unwrap_or_else(|e| self.put_off(&e));
        let look = {
            let mut table = self.table.lock();
            let look = table.taken || table.retained.is_none_or(|at| now.steady >= at + RETENTION);
            if look {
                (table.taken, table.retained) = (false, Some(now.steady));
            }
            look
        };
        if look {
            let all = engine.snapshots(None).await.unwrap_or_default();
            let now_s = u64::try_from(now.wall.as_second()).unwrap_or(0);
            for some in retention::surplus(&all, |rule| objects.keeps(rule), now_s).chunks(BATCH) {
                gone.extend(engine.delete_of_rule(some).await.unwrap_or_else(|e| self.put_off(&e)));
            }
        }
        let names: Vec<&str> = gone.iter().map(String::as_str).collect();
        let message = format!("{} deleted: expired, or more than their rule keeps", told(&names));
        (!names.is_empty()).then(|| Event::new(Severity::Info, "snapshot.expired", "pool", message))
    }

    /// Nothing was deleted, and it is tried again every few seconds: the log is told when the reason is another one.
    fn put_off(&self, e: &Error) -> Vec<String> {
        let why = e.to_string();
        let mut table = self.table.lock();
        if table.put_off.as_ref() != Some(&why) {
            tracing::warn!(error = why, "deleting snapshots that are kept no longer");
            table.put_off = Some(why);
        }
        Vec::new()
    }

    /// What is wrong.
    pub fn alerts(&self, engine: &dyn Engine) -> Vec<Alert> {
        let alert = |code: &str, object: String, message: String| {
            let (severity, code) = ("warning".into(), code.into());
            Alert { severity, code, object, message }
        };
        let mut out: Vec<Alert> = Vec::new();
        for ((target, _), failed) in &self.table.lock().failed {
            let since = timestamp(u64::try_from(failed.since.as_second()).unwrap_or(0));
            let message = format!("no snapshot by {} since {since}: {}; it is tried again", failed.rule, failed.why);
            out.push(alert("snapshot.failed", target.object(), message));
        }
        for (name, why) in Objects::load(engine).unreadable() {
            let message = format!(
                "setting '{name}' cannot be read ({why}): nothing is done by it; a newer version may have made it"
            );
            out.push(alert("setting.unreadable", "pool".into(), message));
        }
        out
    }
}

impl Objects {
    /// How many snapshots a rule keeps of each volume.
    fn keeps(&self, rule: u32) -> Option<u32> {
        self.rules.all.get(&rule)?.keep
    }
}

fn key(duty: &Duty) -> (Target, u32) {
    (duty.target.clone(), duty.rule)
}

/// Snapshots in a sentence.
fn told(names: &[&str]) -> String {
    const TOLD: usize = 8;
    let some = names[..names.len().min(TOLD)].join(", ");
    match names.len() {
        1 => format!("snapshot '{some}' was"),
        n if n > TOLD => format!("{n} snapshots ({some}, …) were"),
        n => format!("{n} snapshots ({some}) were"),
    }
}

/// Looks at what is due until the daemon ends.
pub async fn keep_running(appliance: Arc<Appliance>) {
    loop {
        let app = appliance.clone();
        // A task of its own: what was begun is done to its end when the daemon stops meanwhile.
        let looked = tokio::spawn(async move {
            let _turn = app.runs.turn.lock().await;
            for event in app.runs.look(&*app, || app.runs.now()).await {
                app.record(event);
            }
        });
        if let Err(e) = looked.await {
            tracing::error!(error = %e, "looking for what rules are due");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Takes snapshots by all rules of a policy now; goes on after what fails, and then tells it.
pub async fn run_policy(app: &Appliance, name: &str) -> Result<Vec<SnapshotInfo>> {
    let objects = app.objects();
    objects.policy(name)?;
    let (mut out, mut failed) = (Vec::new(), None);
    for duty in objects.duties().iter().filter(|d| d.policy == name) {
        let (taken, event) = app.runs.run(app, duty, || app.runs.now()).await;
        if let Some(event) = event {
            app.record(event);
        }
        match taken {
            Ok(taken) => out.extend(taken),
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    match failed {
        None => Ok(out),
        Some(e) if out.is_empty() => Err(e),
        Some(e) => {
            let names: Vec<&str> = out.iter().map(|s| s.name.as_str()).collect();
            Err(e.context(format!("{} taken, but not all", told(&names))))
        }
    }
}
