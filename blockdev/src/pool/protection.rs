//! How long snapshots are kept, and what whoever manages the pool keeps in it. See `docs/design/0016-protection.md`.

use super::Pool;
use super::snapshots::{AT_ONCE, check_several, split};
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::Op;
use crate::format::volume::{Protection, SETTING_MAX, SETTING_NAME_MAX, Setting, VolumeRecord};
use crate::report::{Membership, SnapshotInfo};
use crate::units::VolumeId;
use crate::volume::Engine;

/// Longest time a snapshot is kept, in seconds: 100 years.
pub const KEPT_MAX_S: u64 = 100 * 365 * 86_400;
/// Most settings.
const SETTINGS_MAX: usize = 4096;

/// How snapshots are kept that are to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Seconds until they expire; they never do when None.
    pub expires_in_s: Option<u64>,
    /// Whether they cannot be deleted before that.
    pub secure: bool,
    /// The rule that takes them; 0 is none.
    pub rule: u32,
    /// The group they are taken of; 0 is none.
    pub group: u32,
    /// Whether applications are ready for them.
    pub quiesced: bool,
}

/// A change of how volumes are managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Managed {
    /// A setting: takes the place of one of the same name; without a value it goes.
    Setting(Setting),
    /// A volume is in this group from now on; 0 is none.
    Group(String, u32),
    /// A volume has this policy from now on; 0 is none.
    Policy(String, u32),
}

impl Kept {
    /// What the records of such snapshots say.
    pub(super) fn protection(&self, engine: &Engine) -> Result<Protection> {
        let expires_s = match self.expires_in_s {
            Some(seconds) => expiry(engine, seconds)?,
            None if self.secure => {
                return Err(Error::invalid("a secure snapshot must expire some time: say when"));
            }
            None => 0,
        };
        let Self { secure, rule, group, quiesced, .. } = *self;
        Ok(Protection { group, rule, expires_s, secure, quiesced, ..Protection::default() })
    }
}

/// So many seconds from now, by the pool's clock.
fn expiry(engine: &Engine, seconds: u64) -> Result<u64> {
    if seconds == 0 || seconds > KEPT_MAX_S {
        return Err(Error::invalid("a snapshot expires after 1 second to 100 years"));
    }
    Ok(engine.clock_s() + seconds)
}

impl Pool {
    /// Fails for a snapshot that cannot be deleted yet.
    pub(super) fn check_not_secure(&self, record: &VolumeRecord) -> Result<()> {
        let Protection { secure, expires_s, .. } = record.protection;
        let engine = &self.0.engine;
        let left = expires_s.saturating_sub(engine.clock_s());
        if !secure || left == 0 {
            return Ok(());
        }
        let name = engine.state.read().name_of(record);
        let message = format!("snapshot '{name}' is secure: nobody can delete it before it expires, in {}", span(left));
        Err(Error::new(ErrorKind::Busy, message))
    }

    /// Changes how long a snapshot is kept: `expires_in_s` from now, for ever when None; from now on its rule does not count it. One that is secure is
    /// kept no shorter than before, and stays secure.
    pub async fn keep_snapshot(&self, name: &str, expires_in_s: Option<u64>, secure: bool) -> Result<SnapshotInfo> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let _bound = engine.bind_clock();
        let record = self.snapshot_record(name)?;
        let before = record.protection;
        let held = before.secure && before.expires_s > engine.clock_s();
        let kept = Kept { expires_in_s, secure: secure || held, ..Kept::default() };
        let new = kept.protection(engine)?;
        if held && new.expires_s < before.expires_s {
            let left = span(before.expires_s - engine.clock_s());
            let message =
                format!("snapshot '{name}' is secure: it is kept for another {left}, which can be more but not less");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        let protection = Protection { expires_s: new.expires_s, secure: new.secure, rule: 0, ..before };
        self.commit_kept(vec![Op::PutVolume(VolumeRecord { protection, ..record })]).await?;
        self.snapshot_info(name).await
    }

    /// Says how snapshots are kept that were just taken, all at once. None of them may be secure yet.
    pub async fn confirm_snapshots(&self, names: &[String], kept: &Kept) -> Result<Vec<SnapshotInfo>> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        check_several("snapshots are kept", names)?;
        let _bound = engine.bind_clock();
        let protection = kept.protection(engine)?;
        let mut ops = Vec::with_capacity(names.len());
        for name in names {
            let record = self.snapshot_record(name)?;
            self.check_not_secure(&record)?;
            ops.push(Op::PutVolume(VolumeRecord { protection, ..record }));
        }
        self.commit_kept(ops).await?;
        names.iter().map(|name| Ok(self.describe(&self.record(name)?))).collect()
    }

    /// The record of a snapshot.
    fn snapshot_record(&self, name: &str) -> Result<VolumeRecord> {
        split(name)?;
        self.record(name)
    }

    /// Commits what says when snapshots expire, with the time of that.
    pub(super) async fn commit_kept(&self, mut ops: Vec<Op>) -> Result<()> {
        let engine = &self.0.engine;
        ops.insert(0, Op::Clock(engine.clock_s()));
        engine.commit_ops(ops).await
    }

    /// Deletes snapshots that have expired and are not attached, at most `max`, first those that did first. Gives their names.
    pub async fn delete_expired(&self, max: usize) -> Result<Vec<String>> {
        if self.0.engine.state.read().expiring.is_empty() {
            return Ok(Vec::new());
        }
        self.delete_where(max, |now| {
            let state = self.0.engine.state.read();
            let expired = state.expiring.range(..=(now, VolumeId(u32::MAX))).filter_map(|(_, id)| state.live(*id));
            expired.filter(|s| s.attachment.is_empty()).take(max.min(AT_ONCE)).cloned().collect()
        })
        .await
    }

    /// Deletes snapshots if they are still those that were meant: of this identity, taken by this rule, neither secure nor attached. Gives the names
    /// of those that were.
    pub async fn delete_of_rule(&self, meant: &[(u32, u32)]) -> Result<Vec<String>> {
        self.delete_where(meant.len(), |now| {
            let state = self.0.engine.state.read();
            let found = meant.iter().filter_map(|(id, rule)| {
                let s = state.live(VolumeId(*id))?;
                let held = s.protection.secure && s.protection.expires_s > now;
                let meant = s.is_snapshot() && s.protection.rule == *rule && s.attachment.is_empty() && !held;
                meant.then(|| s.clone())
            });
            found.take(AT_ONCE).collect()
        })
        .await
    }

    /// Deletes what is chosen while nothing else is changed; the time of the pool's clock is given.
    async fn delete_where(&self, max: usize, choose: impl FnOnce(u64) -> Vec<VolumeRecord>) -> Result<Vec<String>> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let chosen = choose(engine.clock_s());
        if chosen.is_empty() || max == 0 {
            return Ok(Vec::new());
        }
        let names = {
            let state = engine.state.read();
            chosen.iter().map(|s| state.name_of(s)).collect()
        };
        self.delete_records(chosen).await?;
        Ok(names)
    }

    /// Changes how volumes are managed, all at once.
    pub async fn manage(&self, changes: Vec<Managed>) -> Result<()> {
        let engine = &self.0.engine;
        engine.check_writable()?;
        let _turn = self.0.administration.lock().await;
        let ops = self.managed(changes)?;
        engine.commit_ops(ops).await
    }

    /// What says so in the log.
    pub(super) fn managed(&self, changes: Vec<Managed>) -> Result<Vec<Op>> {
        if changes.len() > AT_ONCE {
            return Err(Error::invalid(format!("at most {AT_ONCE} changes are made at once, not {}", changes.len())));
        }
        // By volume: two changes of one must not each leave the other out.
        let mut records: Vec<VolumeRecord> = Vec::new();
        let mut ops = Vec::new();
        for change in changes {
            let (volume, group, policy) = match change {
                Managed::Setting(setting) => {
                    self.check_setting(&setting)?;
                    ops.push(Op::Set(setting));
                    continue;
                }
                Managed::Group(volume, group) => (volume, Some(group), None),
                Managed::Policy(volume, policy) => (volume, None, Some(policy)),
            };
            let now_s = self.0.engine.env.wall_clock_s();
            let record = self.volume_record(&volume)?;
            let i = records.iter().position(|r| r.id == record.id).unwrap_or_else(|| {
                records.push(record);
                records.len() - 1
            });
            let protection = &mut records[i].protection;
            protection.group = group.unwrap_or(protection.group);
            if let Some(policy) = policy {
                (protection.policy, protection.since_s) = (policy, if policy == 0 { 0 } else { now_s });
            }
        }
        ops.extend(records.into_iter().map(Op::PutVolume));
        Ok(ops)
    }

    fn check_setting(&self, setting: &Setting) -> Result<()> {
        let Setting { name, value } = setting;
        if name.is_empty() || name.len() > SETTING_NAME_MAX || value.len() > SETTING_MAX {
            return Err(Error::invalid(format!(
                "setting '{name}': a name has 1 to {SETTING_NAME_MAX} bytes, a value at most {SETTING_MAX}"
            )));
        }
        if value.is_empty() {
            return Ok(());
        }
        let settings = self.0.engine.state.read().settings.clone();
        if settings.len() >= SETTINGS_MAX && !settings.contains_key(name) {
            let message = format!("pool {} has {SETTINGS_MAX} settings, the most there can be", self.0.engine.name);
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        self.check_catalogue_bytes(name.len() + value.len())
    }

    /// What whoever manages the pool keeps in it, by name, where that begins with `prefix`.
    pub fn settings(&self, prefix: &str) -> Vec<Setting> {
        let settings = self.0.engine.state.read().settings.clone();
        let below = settings.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        below.map(|(name, value)| Setting { name: name.clone(), value: value.clone() }).collect()
    }

    /// Which group and policy volumes have, by name.
    pub fn memberships(&self) -> Vec<Membership> {
        let state = self.0.engine.state.read();
        let volumes = state.volumes.values().filter(|v| !v.is_snapshot() && !v.deleting);
        let described = volumes.map(|v| {
            let Protection { group, policy, since_s, .. } = v.protection;
            Membership { volume: v.name.clone(), group, policy, since_s }
        });
        let mut out: Vec<Membership> = described.collect();
        out.sort_by(|a, b| a.volume.cmp(&b.volume));
        out
    }
}

/// A time for people.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
