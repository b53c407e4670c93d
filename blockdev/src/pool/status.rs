//! What a pool tells about itself: status, alerts, counters.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::Pool;
use crate::redundancy::array::Member;
use crate::report::{Alert, DiskInfo, DiskState, PoolStats, PoolStatus, Reduction, Redundancy};
use crate::segment::table::SegmentTable;
use crate::units::VolumeId;
use crate::volume::recovery::OLDER_STATE;
use crate::volume::scrub::ERRORS_MANY;
use crate::volume::shares::{DIRECTORY_MEMORY, PAGE_MEMORY};
use crate::volume::space::Space;

impl Pool {
    pub(super) fn disk_info(&self, member: &Member, segments: &SegmentTable) -> DiskInfo {
        let info = member.info();
        let behind = segments.behind(member.id);
        let is_used = segments.is_used(member.id);
        let state = match info.state {
            DiskState::Online if behind > 0 => DiskState::Stale,
            DiskState::Online if member.errors_of_late(self.0.engine.env.now()) >= ERRORS_MANY => DiskState::Degraded,
            DiskState::Failed | DiskState::Missing if member.is_given_up() && is_used => DiskState::Rebuilding,
            state => state,
        };
        DiskInfo {
            state,
            allocated: segments.allocated(member.id) * u64::from(self.0.engine.array.geometry.chunk_size),
            behind,
            ..info
        }
    }

    /// Alerts about single disks and volumes.
    fn alerts_of_parts(&self, disks: &[DiskInfo]) -> Vec<Alert> {
        let engine = &self.0.engine;
        let mut out = Vec::new();
        let mut add = |object: String, severity: &str, code: &str, message: String| {
            out.push(Alert { severity: severity.into(), code: code.into(), object, message });
        };
        let disk = |id: u16| format!("disk/{id}");
        let wanted = "once it works again, 'ashlar disk rescan' takes it back";
        let declared = |d: &DiskInfo| engine.array.members().iter().any(|m| m.id.0 == d.id && m.is_declared_failed());
        for d in disks {
            let name = if d.path.is_empty() { d.uuid.to_string() } else { d.path.clone() };
            let name = format!("disk {} ({name})", d.id);
            let why = d.reason.as_deref().unwrap_or_default();
            let gone = engine.array.members().into_iter().find(|m| m.id.0 == d.id).map(|m| m.state());
            match if d.state == DiskState::Rebuilding { gone.unwrap_or_default() } else { d.state } {
                DiskState::Online | DiskState::Degraded | DiskState::Rebuilding => {}
                DiskState::Removing => add(
                    disk(d.id),
                    "info",
                    "disk.removing",
                    format!("what lies on {name} is being moved to the others; then it is let go"),
                ),
                DiskState::Failing if declared(d) => add(
                    disk(d.id),
                    "warning",
                    "disk.failing",
                    format!(
                        "{name} was declared failed, and serves because too many others are gone: what lies on it is being moved to the \
                         others; replace it (`ashlar disk replace`)"
                    ),
                ),
                DiskState::Failing => add(
                    disk(d.id),
                    "warning",
                    "disk.failing",
                    format!(
                        "{name} makes too many errors: what lies on it is being moved to the others; replace it (`ashlar disk replace`)"
                    ),
                ),
                DiskState::Stale => add(
                    disk(d.id),
                    "warning",
                    "disk.stale",
                    format!(
                        "{name} lacks about {} MiB that were written while it was away: they are read from the other disks, and \
                         survive fewer failures",
                        d.behind.div_ceil(1 << 20)
                    ),
                ),
                _ if engine.array.members().iter().any(|m| m.id.0 == d.id && m.is_empty()) => {
                    add(disk(d.id), "warning", "disk.replace", format!("{name} is gone ({why}): replace it"))
                }
                DiskState::Failed if why.starts_with(OLDER_STATE) => {
                    add(disk(d.id), "critical", "disk.failed", format!("{name} is not used: it {why}"))
                }
                DiskState::Failed if declared(d) => add(
                    disk(d.id),
                    "warning",
                    "disk.failed",
                    format!(
                        "{name} is not used ({why}): replace it (`ashlar disk replace`), or take it back (`ashlar disk keep {}`)",
                        d.id
                    ),
                ),
                DiskState::Failed => add(
                    disk(d.id),
                    "critical",
                    "disk.failed",
                    format!("{name} failed and is not used ({why}): {wanted}"),
                ),
                DiskState::Missing => {
                    add(disk(d.id), "critical", "disk.missing", format!("{name} is missing ({why}): {wanted}"))
                }
            }
        }
        let now = engine.env.now();
        let many = |m: &&std::sync::Arc<Member>| {
            m.errors_of_late(now) >= ERRORS_MANY && m.online().is_some() && !m.is_leaving()
        };
        for d in engine.array.members().iter().filter(many) {
            let count = d.errors_of_late(now).round();
            let info = d.info();
            add(
                disk(d.id.0),
                "warning",
                "disk.errors",
                format!(
                    "disk {} ({}) made about {count} errors of late: plan to replace it (`ashlar disk replace`)",
                    d.id, info.path
                ),
            );
        }
        let silent = engine.array.members();
        for d in silent.iter().filter(|m| m.is_unresponsive(now)).map(|m| m.info()) {
            add(
                disk(d.id),
                "critical",
                "disk.unresponsive",
                format!(
                    "disk {} ({}) does not answer, and the pool cannot do without it: requests wait for it; look after its cable, \
                     controller and power",
                    d.id, d.path
                ),
            );
        }
        for d in engine.array.members().iter().filter(|m| m.is_stalled()).map(|m| m.info()) {
            add(
                disk(d.id),
                "critical",
                "disk.no_space",
                format!(
                    "the file system that holds disk {} ({}) is full: writes wait until there is space again",
                    d.id, d.path
                ),
            );
        }
        let broken: Vec<(VolumeId, String)> =
            engine.broken.lock().iter().map(|(id, broken)| (*id, broken.why.clone())).collect();
        for (id, why) in broken {
            let name = engine.state.read().volumes.get(&id).map_or_else(|| id.to_string(), |v| v.name.clone());
            add(
                format!("volume/{name}"),
                "critical",
                "volume.read_only",
                format!("volume {name} takes no writes: {why}"),
            );
        }
        out
    }

    fn alerts(&self, disks: &[DiskInfo], redundancy: &Redundancy) -> Vec<Alert> {
        let engine = &self.0.engine;
        let mut out = self.alerts_of_parts(disks);
        let mut add = |severity: &str, code: &str, message: String| {
            out.push(Alert { severity: severity.into(), code: code.into(), object: "pool".into(), message });
        };
        if engine.array.is_mixed() {
            add(
                "info",
                "pool.mixed",
                "data moves between resiliency sets: until that is done failures in all of them count together".into(),
            );
        }
        if engine.array.guaranteed().drives() < engine.array.tolerance().drives() {
            add(
                "info",
                "pool.tolerance",
                "the tolerance is being raised: until all data has followed the old one holds".into(),
            );
        }
        if engine.config.read_only {
            add(
                "warning",
                "pool.read_only",
                format!(
                    "pool {} is open for reading only: it may be older than what was written last, and what cannot be read is listed by `ashlar pool damage`",
                    engine.name
                ),
            );
        }
        if let Some(e) = engine.failure() {
            add("critical", "pool.failed", format!("pool {} takes no writes: {e}", engine.name));
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let spare = engine.spare();
        if spare.free < spare.wanted {
            add(
                "warning",
                "pool.spare",
                format!(
                    "{} MiB of the {} MiB that a rebuild may need are free: delete volumes, discard data or add drives",
                    mib(spare.free),
                    mib(spare.wanted)
                ),
            );
        }
        let damaged = engine.state.read().segments.iter().filter(|s| s.extent.damaged.load(Ordering::Acquire)).count();
        if damaged > 0 {
            add(
                "critical",
                "pool.damaged",
                "some data cannot be read and redundancy does not give it back: `ashlar pool damage` lists it; write it again, from a \
                 backup say"
                    .into(),
            );
        }
        if let Some(rebuild) = engine.rebuild_progress().filter(|r| r.waiting > 0) {
            add(
                "critical",
                "pool.rebuild.no_room",
                format!(
                    "{} MiB wait for a disk with room to be rebuilt on: delete volumes, discard data or add drives",
                    mib(rebuild.waiting)
                ),
            );
        }
        if redundancy.lost > 0 {
            add(
                "critical",
                "pool.data.unreadable",
                format!(
                    "{} MiB lie in segments that have lost more disks than they can do without, and cannot all be read: bring the \
                     disks back that are missing or failed",
                    mib(redundancy.lost)
                ),
            );
        }
        if redundancy.none > 0 {
            add(
                "critical",
                "pool.redundancy.none",
                format!("{} MiB survive no further failure of a disk", mib(redundancy.none)),
            );
        }
        if redundancy.reduced > 0 {
            add(
                "warning",
                "pool.redundancy.reduced",
                format!("{} MiB survive fewer failures of disks than the pool tolerates", mib(redundancy.reduced)),
            );
        }
        out.extend(engine.set_alerts());
        out.extend(engine.space_alerts());
        out
    }

    /// The pool at a glance.
    pub async fn status(&self) -> PoolStatus {
        let engine = &self.0.engine;
        let space = engine.space();
        let disks = self.disks();
        let redundancy = engine.state.read().segments.redundancy(&engine.array);
        let alerts = self.alerts(&disks, &redundancy);
        let hurt = engine.hurt_segments().len() as u64;
        let now = engine.env.now();
        let waits = engine.array.members().iter().any(|m| m.is_stalled() || m.is_unresponsive(now));
        let health = if engine.failure().is_some() {
            "failed"
        } else if redundancy.lost > 0 || hurt > 0 || waits {
            "critical"
        } else if redundancy.none + redundancy.reduced > 0
            || engine.is_restoring()
            || disks.iter().any(|d| !matches!(d.state, DiskState::Online | DiskState::Degraded))
        {
            "degraded"
        } else {
            "healthy"
        };
        // Both look at the state themselves.
        let (rebuild, spare, scrub) = (engine.rebuild_progress(), engine.spare(), engine.scrub_progress());
        let reaping = engine.reaping();
        let provisioned = engine.provisioned();
        let state = engine.state.read();
        let layout = state.segments.width(&engine.array).map_or("-".into(), |w| format!("{}+{}", w.data, w.parity));
        let volumes = || state.volumes.values().filter(|v| !v.deleting && !v.is_snapshot());
        PoolStatus {
            name: engine.name.clone(),
            uuid: engine.uuid,
            health: health.into(),
            tolerance: engine.array.guaranteed(),
            tolerance_wanted: engine.array.tolerance(),
            sets: engine.array.sets().values().collect::<BTreeSet<_>>().len(),
            mixed: engine.array.is_mixed(),
            rebuild,
            scrub,
            damaged_segments: hurt,
            spare,
            layout,
            epoch: engine.epoch.0 >> 32,
            raw: disks.iter().map(|d| d.size).sum(),
            usable: space.usable,
            used: space.used,
            available: space.available(),
            reserved: state.reserved(),
            set_aside: space.set_aside,
            provisioned,
            reduction: reduction(
                state.referenced_bytes,
                state.unique_bytes,
                state.stored_bytes,
                &engine.counters.zero_bytes,
            ),
            volumes: volumes().count(),
            snapshots: state.volumes.values().filter(|v| !v.deleting && v.is_snapshot()).count(),
            deleting: reaping.versions,
            deleting_done: reaping.done,
            deleting_to_come: reaping.to_come,
            redundancy,
            disks,
            alerts,
        }
    }

    /// All disks.
    pub fn disks(&self) -> Vec<DiskInfo> {
        let engine = &self.0.engine;
        let state = engine.state.read();
        engine.array.members().iter().map(|m| self.disk_info(m, &state.segments)).collect()
    }

    /// Counters and where memory goes.
    pub async fn stats(&self) -> PoolStats {
        let engine = &self.0.engine;
        let space = engine.space();
        let held_back_to = engine.held_back_to(&space);
        let Space { free_segments, segment, .. } = space;
        let c = &engine.counters;
        let get = |v: &std::sync::atomic::AtomicU64| v.load(Ordering::Relaxed);
        // One lock after the other: none is waited for under another.
        let open: usize = engine.appenders.read().values().map(|a| a.memory()).sum();
        let index = engine.index.lock().memory_used();
        let queued = engine.log_queue.lock().memory();
        let (write_buffer, frames) = (engine.intake.memory(), engine.frames.memory());
        let state = engine.state.read();
        let memory = [
            ("write buffer", write_buffer),
            ("map pages", state.maps.pages.len() * PAGE_MEMORY + state.maps.pages.ghost_memory()),
            ("block table pages", state.table.pages.len() * PAGE_MEMORY + state.table.pages.ghost_memory()),
            ("directory pages", state.table.directory.len() * DIRECTORY_MEMORY),
            ("frame cache", frames),
            ("dedupe index", index),
            ("open segments", open),
            ("log queue", queued),
        ];
        let capacity = state.segments.len() as u64 * segment;
        PoolStats {
            uptime_s: (engine.env.now() - engine.opened).as_secs_f64(),
            host_read: get(&c.host_read_bytes),
            host_written: get(&c.host_write_bytes),
            host_reads: get(&c.host_reads),
            host_writes: get(&c.host_writes),
            host_flushes: get(&c.host_flushes),
            host_latency: engine.host_latency(),
            background_share: engine.background_share(),
            disk_written: get(&engine.array.written),
            disk_read: get(&engine.array.read),
            write_amplification: (get(&c.host_write_bytes) > 0)
                .then(|| get(&engine.array.written) as f64 / get(&c.host_write_bytes) as f64),
            dedupe_hits: get(&c.dedupe_hits),
            dedupe_misses: get(&c.dedupe_misses),
            log_records: get(&engine.log.entries),
            log_replayed: get(&c.log_replayed),
            recovery_s: get(&c.recovery_us) as f64 / 1e6,
            checkpoints: get(&c.checkpoints),
            cleaner_moved: get(&c.cleaner_moved),
            rebuilt: get(&c.rebuilt),
            cleaner_segments: get(&c.cleaner_segments),
            cleaner_cleaned: get(&c.cleaner_cleaned),
            cleaner_s: get(&c.cleaner_us) as f64 / 1e6,
            recompressed: get(&c.recompressed),
            held_back_to,
            segments_free: free_segments,
            segments_used: state.segments.len() as u64,
            dead: capacity.saturating_sub(state.segments.live()),
            fragmentation: capacity.saturating_sub(state.segments.live()) as f64 / capacity.max(1) as f64,
            memory: memory.into_iter().map(|(k, v)| (k.to_string(), v as u64)).collect(),
            memory_budget: engine.config.memory,
        }
    }
}

fn reduction(logical: u64, unique: u64, stored: u64, zeroes: &std::sync::atomic::AtomicU64) -> Reduction {
    let ratio = |a: u64, b: u64| (b > 0).then(|| a as f64 / b as f64);
    Reduction {
        logical,
        unique,
        stored,
        zeroes_written: zeroes.load(Ordering::Relaxed),
        dedupe_ratio: ratio(logical, unique),
        compression_ratio: ratio(unique, stored),
        total_ratio: ratio(logical, stored),
    }
}

#[cfg(test)]
mod tests;
