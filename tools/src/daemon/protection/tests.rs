//! Rules, policies and groups over a real pool in memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blockdev::disk::{Disk, MemoryDisk};
use blockdev::env::RealEnv;
use blockdev::error::ErrorKind;
use blockdev::pool::{CreateOptions, Kept, Pool, PoolConfig};
use blockdev::report::Tolerance;
use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::runtime::Handle;

use super::runner::{Now, Runs};
use super::*;
use crate::daemon::quiesce::Take;
use crate::wire::protection::{GroupChange, GroupClone, GroupCreate, PolicySpec, Schedule};
use crate::wire::snapshots::Quiesce;

type Disks = Vec<Arc<dyn Disk>>;

#[async_trait]
impl Take for Pool {
    fn engine(&self) -> &dyn Engine {
        self
    }

    async fn take(&self, names: &[String], kept: &Kept, _: &Quiesce, _: &str) -> Result<Vec<SnapshotInfo>> {
        self.create_snapshots(names, kept).await
    }
}

fn disks() -> Disks {
    (0..3).map(|i| Arc::new(MemoryDisk::new(format!("d{i}"), 64 << 20)) as Arc<dyn Disk>).collect()
}

async fn open(disks: &Disks) -> Pool {
    let env = RealEnv::new(Handle::current(), 1);
    Pool::open(env, disks.clone(), PoolConfig { memory: 32 << 20, ..PoolConfig::default() }).await.unwrap()
}

async fn pool(volumes: &[&str]) -> (Pool, Disks) {
    let disks = disks();
    let options = CreateOptions {
        name: "tank".into(),
        tolerance: Tolerance::Single,
        chunk_size: None,
        strip_size: Some(16 << 10),
        force: false,
    };
    Pool::create(RealEnv::new(Handle::current(), 1), disks.clone(), options).await.unwrap();
    let pool = open(&disks).await;
    for name in volumes {
        pool.create_volume(name, 1 << 20).await.unwrap();
    }
    (pool, disks)
}

fn hourly(name: &str) -> RuleSpec {
    let schedule = Schedule { every_min: Some(60), ..Schedule::default() };
    RuleSpec { name: name.into(), schedule, keep: Some(3), ..RuleSpec::default() }
}

fn policy(name: &str, rules: &[&str]) -> PolicySpec {
    PolicySpec { name: name.into(), rules: rules.iter().map(|r| (*r).to_owned()).collect() }
}

fn objects(pool: &Pool) -> Objects {
    Objects::load(pool)
}

/// So many minutes after an hour that is long past; clocks agree.
fn minute(minutes: u64) -> Now {
    let wall = Timestamp::from_second(1_800_000_000 / 3600 * 3600 + minutes as i64 * 60).unwrap();
    Now { wall, steady: Duration::from_secs(minutes * 60) }
}

fn names(pool: &Pool) -> Vec<String> {
    pool.snapshots(None).unwrap().into_iter().map(|s| s.name).collect()
}

/// A pool whose volume has a policy of one rule.
async fn protected(rule: &RuleSpec) -> (Pool, Disks) {
    let (pool, disks) = pool(&["data"]).await;
    objects(&pool).create_rule(&pool, rule).await.unwrap();
    objects(&pool).create_policy(&pool, &policy("gold", &[&rule.name])).await.unwrap();
    objects(&pool).assign(&pool, "data", Some("gold")).await.unwrap();
    (pool, disks)
}

#[tokio::test]
async fn snapshots_are_taken_when_they_are_due_and_only_the_newest_kept() {
    let (pool, _) = protected(&hourly("hourly")).await;
    let runs = Runs::new(TimeZone::UTC);
    // The policy was given long before: what was missed since is made up for once.
    assert_eq!(runs.look(&pool, || minute(20)).await.len(), 1);
    let mut taken = 1;
    for at in 21..6 * 60 + 30 {
        let events = runs.look(&pool, || minute(at)).await;
        let new = events.iter().filter(|e| e.kind == "snapshot.created").count();
        assert_eq!(new, usize::from(at % 60 == 0), "at minute {at}");
        taken += new;
        assert_eq!(names(&pool).len(), taken.min(3), "at minute {at}");
    }
    assert_eq!(
        names(&pool),
        ["data@hourly-20270115-120000", "data@hourly-20270115-130000", "data@hourly-20270115-140000"]
    );
    let deleted = runs.look(&pool, || minute(7 * 60)).await;
    assert!(deleted.iter().any(|e| e.kind == "snapshot.expired" && e.message.contains("data@hourly-20270115-120000")));
    // What somebody took is none of the rule's.
    pool.create_snapshots(&["data@mine".into()], &Kept::default()).await.unwrap();
    for at in 8..14 {
        runs.look(&pool, || minute(at * 60)).await;
    }
    assert!(names(&pool).contains(&"data@mine".to_owned()) && names(&pool).len() == 4, "{:?}", names(&pool));
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_once() {
    let (pool, disks) = protected(&hourly("hourly")).await;
    // As a run at a quarter past the present hour: records have the machine's time.
    let here = Runs::new(TimeZone::UTC).now();
    let duty = objects(&pool).duties().remove(0);
    Runs::new(TimeZone::UTC).run(&pool, &duty, || here).await.0.unwrap();
    pool.close().await.unwrap();
    let pool = open(&disks).await;
    // Another process, three days later.
    let runs = Runs::new(TimeZone::UTC);
    let later =
        |s: i64| Now { wall: here.wall + jiff::SignedDuration::from_secs(s), steady: Duration::from_secs(s as u64) };
    let day = 86_400;
    assert_eq!(runs.look(&pool, || later(3 * day)).await.iter().filter(|e| e.kind == "snapshot.created").count(), 1);
    assert!(runs.look(&pool, || later(3 * day + 1)).await.is_empty());
    assert_eq!(names(&pool).len(), 2);
    // Somebody sets the clock back by a day: it goes on from there.
    assert!(runs.look(&pool, || later(2 * day)).await.is_empty());
    assert_eq!(runs.look(&pool, || later(2 * day + 3600)).await.len(), 1);
    assert_eq!(names(&pool).len(), 3);
}

#[tokio::test]
async fn a_policy_that_was_just_given_waits_for_its_time() {
    let (pool, disks) = protected(&hourly("hourly")).await;
    let runs = Runs::new(TimeZone::UTC);
    let here = runs.now();
    let next = runs.next_s(&hourly("").schedule).unwrap();
    assert!(runs.look(&pool, || here).await.is_empty());
    // The daemon was down when its time came, and it had never run.
    pool.close().await.unwrap();
    let pool = open(&disks).await;
    let runs = Runs::new(TimeZone::UTC);
    let then = Now { wall: Timestamp::from_second(next as i64 + 60).unwrap(), ..here };
    assert_eq!(runs.look(&pool, || then).await.len(), 1);
    assert_eq!(names(&pool).len(), 1);
}

#[tokio::test]
async fn what_fails_is_told_once_and_tried_again_later_and_later() {
    let (pool, _) = protected(&hourly("hourly")).await;
    let runs = Runs::new(TimeZone::UTC);
    runs.look(&pool, || minute(1)).await;
    // All names that it would try are taken.
    let taken: Vec<String> = (1..=9).map(|n| if n == 1 { String::new() } else { format!("-{n}") }).collect();
    for at in [60, 61, 63] {
        let time = minute(at).wall.strftime("%Y%m%d-%H%M%S").to_string();
        let names: Vec<String> = taken.iter().map(|n| format!("data@hourly-{time}{n}")).collect();
        pool.create_snapshots(&names[..1], &Kept::default()).await.unwrap();
        for name in &names[1..] {
            pool.create_snapshots(std::slice::from_ref(name), &Kept::default()).await.unwrap();
        }
    }
    let told = runs.look(&pool, || minute(60)).await;
    assert!(told.len() == 1 && told[0].kind == "snapshot.failed" && told[0].object == "volume/data", "{told:?}");
    let alerts = runs.alerts(&pool);
    assert!(alerts.len() == 1 && alerts[0].message.contains("rule 'hourly' of policy 'gold'"), "{alerts:?}");
    assert!(alerts[0].message.contains("exists already"), "{alerts:?}");
    // After a minute, after two more; neither is told of again.
    for at in [61, 62, 63] {
        assert!(runs.look(&pool, || minute(at)).await.is_empty(), "minute {at}");
    }
    assert!(runs.look(&pool, || minute(66)).await.is_empty());
    let healed = runs.look(&pool, || minute(67)).await;
    assert!(healed.iter().any(|e| e.kind == "snapshot.created"), "{healed:?}");
    assert!(runs.alerts(&pool).is_empty());
    assert!(names(&pool).contains(&"data@hourly-20270115-090700".to_owned()), "{:?}", names(&pool));
}

#[tokio::test]
async fn secure_snapshots_outlive_their_rule() {
    let spec = RuleSpec { keep: Some(1), keep_for_s: Some(3600), secure: true, ..hourly("vault") };
    let (pool, _) = protected(&spec).await;
    let runs = Runs::new(TimeZone::UTC);
    for at in [1, 60, 120, 180] {
        runs.look(&pool, || minute(at)).await;
    }
    assert_eq!(names(&pool).len(), 4, "more than are to be kept");
    objects(&pool).assign(&pool, "data", None).await.unwrap();
    objects(&pool).delete_policy(&pool, "gold").await.unwrap();
    objects(&pool).delete_rule(&pool, "vault").await.unwrap();
    for name in names(&pool) {
        let refused = pool.delete_snapshot(&name).await.unwrap_err();
        assert!(refused.kind() == ErrorKind::Busy && refused.to_string().contains("secure"), "{refused}");
    }
    assert_eq!(pool.delete_volume("data", true).await.unwrap_err().kind(), ErrorKind::Busy);
    // The number of the rule that is gone is not given to another one.
    objects(&pool).create_rule(&pool, &hourly("new")).await.unwrap();
    assert_eq!(pool.settings("rule/")[0].name, "rule/2");
}

#[tokio::test]
async fn nonsense_is_refused() {
    let (pool, _) = pool(&["data", "logs"]).await;
    let refused = |e: Error| e.to_string();
    for (spec, why) in [
        (RuleSpec { name: "a b".into(), ..hourly("") }, "cannot be the name"),
        (RuleSpec { keep: None, ..hourly("r") }, "--keep"),
        (RuleSpec { keep: Some(0), ..hourly("r") }, "1 to"),
        (RuleSpec { keep_for_s: Some(0), ..hourly("r") }, "1 second"),
        (RuleSpec { secure: true, ..hourly("r") }, "--for"),
        (RuleSpec { pattern: Some("x".into()), ..hourly("r") }, "{time}"),
        (RuleSpec { pattern: Some("x/{time}".into()), ..hourly("r") }, "cannot be the name"),
        (RuleSpec { pattern: Some("x".repeat(60) + "{time}"), ..hourly("r") }, "cannot be the name"),
        (RuleSpec { schedule: Schedule { every_min: Some(7), ..Schedule::default() }, ..hourly("r") }, "divide a day"),
    ] {
        let e = refused(objects(&pool).create_rule(&pool, &spec).await.unwrap_err());
        assert!(e.contains(why), "{spec:?}: {e}");
    }
    objects(&pool).create_rule(&pool, &hourly("r")).await.unwrap();
    assert!(refused(objects(&pool).create_rule(&pool, &hourly("r")).await.unwrap_err()).contains("exists already"));
    assert!(
        refused(objects(&pool).create_policy(&pool, &policy("p", &["x"])).await.unwrap_err()).contains("no rule 'x'")
    );
    assert!(objects(&pool).create_policy(&pool, &policy("p", &[])).await.is_err());
    assert!(objects(&pool).create_policy(&pool, &policy("p", &["r", "r"])).await.is_err());
    objects(&pool).create_policy(&pool, &policy("p", &["r"])).await.unwrap();
    assert!(refused(objects(&pool).delete_rule(&pool, "r").await.unwrap_err()).contains("part of p"));
    objects(&pool).assign(&pool, "data", Some("p")).await.unwrap();
    assert!(refused(objects(&pool).delete_policy(&pool, "p").await.unwrap_err()).contains("volume data"));
    assert!(objects(&pool).assign(&pool, "nothing", Some("p")).await.is_err());
    let group = |volumes: &[&str]| GroupCreate {
        name: "g".into(),
        volumes: volumes.iter().map(|v| (*v).to_owned()).collect(),
        policy: None,
    };
    let e = refused(objects(&pool).create_group(&pool, &group(&["data"])).await.unwrap_err());
    assert!(e.contains("has policy 'p'"), "{e}");
    assert!(objects(&pool).create_group(&pool, &group(&["logs", "logs"])).await.is_err());
    assert!(objects(&pool).create_group(&pool, &group(&["logs", "nothing"])).await.is_err());
    assert!(
        pool.settings("group/").is_empty() && pool.memberships().iter().all(|m| m.group == 0),
        "nothing was changed"
    );
    objects(&pool).create_group(&pool, &group(&["logs"])).await.unwrap();
    assert!(refused(objects(&pool).assign(&pool, "logs", Some("p")).await.unwrap_err()).contains("--group g"));
    assert!(refused(pool.delete_volume("logs", true).await.unwrap_err()).contains("in a group"));
}

#[tokio::test]
async fn a_rule_that_cannot_be_read_is_told_of_and_left_alone() {
    let (pool, _) = protected(&hourly("hourly")).await;
    let newer = Setting { name: "rule/1".into(), value: br#"{"name":"hourly","wind":"north"}"#.to_vec() };
    pool.manage(vec![Managed::Setting(newer.clone())]).await.unwrap();
    let runs = Runs::new(TimeZone::UTC);
    for at in [1, 60, 120] {
        assert!(runs.look(&pool, || minute(at)).await.is_empty());
    }
    let alerts = runs.alerts(&pool);
    assert!(
        alerts.len() == 1 && alerts[0].code == "setting.unreadable" && alerts[0].message.contains("wind"),
        "{alerts:?}"
    );
    objects(&pool).create_rule(&pool, &hourly("hourly")).await.unwrap();
    assert_eq!(pool.settings("rule/"), [newer, pool.settings("rule/2").remove(0)]);
}

async fn write(pool: &Pool, volume: &str, byte: u8) {
    pool.open_volume(volume).unwrap().write(0, Bytes::from(vec![byte; 4096]), true).await.unwrap();
}

async fn first(pool: &Pool, volume: &str) -> u8 {
    pool.open_volume(volume).unwrap().read(0, 4096).await.unwrap()[0]
}

#[tokio::test]
async fn a_group_goes_back_and_is_cloned_as_one() {
    let (pool, disks) = pool(&["data", "logs", "other"]).await;
    let volumes = vec!["data".to_owned(), "logs".to_owned()];
    objects(&pool).create_group(&pool, &GroupCreate { name: "db".into(), volumes, policy: None }).await.unwrap();
    for (volume, byte) in [("data", 1), ("logs", 2), ("other", 3)] {
        write(&pool, volume, byte).await;
    }
    let (names_of, kept) = objects(&pool).group_names("db", "monday", Kept::default(), &[]).unwrap();
    pool.create_snapshots(&names_of, &kept).await.unwrap();
    for (volume, byte) in [("data", 11), ("logs", 12), ("other", 13)] {
        write(&pool, volume, byte).await;
    }
    pool.close().await.unwrap();
    let pool = open(&disks).await;
    objects(&pool).restore_group(&pool, "db", "monday", Some("before")).await.unwrap();
    assert_eq!((first(&pool, "data").await, first(&pool, "logs").await, first(&pool, "other").await), (1, 2, 13));
    let all = pool.snapshots(None).unwrap();
    let snapshots = objects(&pool).group_snapshots("db", &all).unwrap();
    let listed: Vec<(&str, usize)> = snapshots.iter().map(|s| (s.name.as_str(), s.snapshots.len())).collect();
    assert_eq!(listed, [("db@before", 2), ("db@monday", 2)]);
    // A clone of what it was before; then a member without a snapshot, and all are left as they are.
    let wanted = GroupClone { name: "test".into(), pattern: "{group}-{volume}".into() };
    objects(&pool).clone_group(&pool, "db", "before", &wanted).await.unwrap();
    assert_eq!((first(&pool, "test-data").await, first(&pool, "test-logs").await), (11, 12));
    let all = pool.snapshots(None).unwrap();
    assert_eq!(objects(&pool).group("test", &all).unwrap().volumes, ["test-data", "test-logs"]);
    let change = GroupChange { add: vec!["other".into()], ..GroupChange::default() };
    objects(&pool).change_group(&pool, "db", &change).await.unwrap();
    let refused = objects(&pool).restore_group(&pool, "db", "before", None).await.unwrap_err();
    assert!(refused.to_string().contains("no snapshot of other"), "{refused}");
    // One is attached: none goes back.
    let change = GroupChange { remove: vec!["other".into()], ..GroupChange::default() };
    objects(&pool).change_group(&pool, "db", &change).await.unwrap();
    pool.set_attachment("logs", Some("nbd".into())).await.unwrap();
    let refused = objects(&pool).restore_group(&pool, "db", "before", None).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    assert_eq!((first(&pool, "data").await, first(&pool, "logs").await), (1, 2));
    objects(&pool).delete_group(&pool, "db").await.unwrap();
    assert_eq!(pool.memberships().iter().filter(|m| m.group != 0).count(), 2, "those of the other group");
    assert_eq!(names(&pool).len(), 4, "snapshots stay");
}
