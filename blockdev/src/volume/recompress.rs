//! What nobody has changed for long is compressed harder, while there is time and room. `docs/design/0021-recompression.md` has the rules.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::Engine;
use super::cleaner::Purpose;
use super::frame::{Effort, Group, ReducedFrame, compress};
use super::pace::control::Class;
use super::space::LeftTo;
use crate::env::compute;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{SegmentRecord, Stream};
use crate::report::Compression;
use crate::units::SegmentId;

/// Longest time between looks at what is cold.
const LOOK: Duration = Duration::from_secs(60);
/// A segment that lost more than one part in so many of its live data is not cold.
const CHANGED: u64 = 64;
/// Segments written anew before a checkpoint gives them back.
const ROUND: usize = 16;
/// Blocks that are tried first.
const SAMPLE: usize = 64;
/// For how long the processors are watched before a segment is begun.
const PROBE: Duration = Duration::from_millis(200);
/// The part of that time in which they must have had nothing to do.
const IDLE: f64 = 0.5;
/// What is compressed harder takes so much less of what it took at most, or is left alone: part in a hundred.
const WORTH: u64 = 95;

/// What is known of a segment of data.
struct Seen {
    id: SegmentId,
    live: u64,
    since: Duration,
    /// Nothing is to be gained.
    left_alone: bool,
    /// Looked at in this round.
    here: bool,
}

impl Seen {
    /// Whether so much is live now that it is not cold.
    fn has_changed(&self, live: u64) -> bool {
        live + live / CHANGED < self.live
    }
}

impl Engine {
    /// Whether cold data is compressed harder.
    pub(super) fn recompresses(&self) -> bool {
        self.config.recompress_after.is_some() && self.config.compression == Compression::Zstd
    }

    /// The task that compresses cold data harder.
    pub(super) async fn recompress_loop(self: Arc<Self>) {
        let Some(after) = self.config.recompress_after.filter(|_| self.recompresses()) else { return };
        let mut seen: FxHashMap<u64, Seen> = FxHashMap::default();
        loop {
            let timer = self.env.sleep(LOOK.min(after / 4).max(Duration::from_millis(5)));
            futures::future::select(Box::pin(self.recompress_wanted.notified()), timer).await;
            if self.is_dead() {
                return;
            }
            if let Err(e) = self.recompress_cold(&mut seen, after).await {
                match e.kind() {
                    ErrorKind::NoSpace | ErrorKind::Unavailable => {}
                    _ => tracing::error!(pool = self.name, error = %e, "compressing cold data harder stopped"),
                }
            }
        }
    }

    /// Notes which segments of host data there are, and since when they have been as they are.
    fn look_for_cold(&self, seen: &mut FxHashMap<u64, Seen>) {
        let now = self.env.now();
        seen.values_mut().for_each(|s| s.here = false);
        let state = self.state.read();
        let of_hosts = |s: &&SegmentRecord| s.sealed && s.stream != Stream::Meta && s.live > 0;
        for s in state.segments.iter().map(|s| &s.record).filter(of_hosts) {
            let fresh = || Seen { id: s.id, live: s.live, since: now, left_alone: false, here: true };
            let known = seen.entry(s.incarnation).or_insert_with(fresh);
            known.here = true;
            if known.has_changed(s.live) {
                *known = fresh();
            }
        }
        drop(state);
        seen.retain(|_, s| s.here);
    }

    async fn recompress_cold(self: &Arc<Self>, seen: &mut FxHashMap<u64, Seen>, after: Duration) -> Result<()> {
        loop {
            self.look_for_cold(seen);
            let mut written = 0;
            while written < ROUND && self.space().need() == 0.0 && self.gives_back() {
                let now = self.env.now();
                let cold = |(_, s): &(&u64, &mut Seen)| !s.left_alone && now.saturating_sub(s.since) >= after;
                let next = seen.iter_mut().filter(cold).min_by_key(|(incarnation, s)| (s.since, **incarnation));
                let Some((&incarnation, next)) = next else { break };
                if !self.processors_are_idle(PROBE.min(after)).await {
                    break;
                }
                let record = self.state.read().segments.get(next.id).map(|s| s.record.clone());
                let record = record.filter(|r| r.incarnation == incarnation && r.live > 0 && !next.has_changed(r.live));
                if record.as_ref().is_some_and(|r| !self.has_room_to_empty(r, 0, LeftTo::Others)) {
                    break;
                }
                // Whatever comes of it, it is not looked at again as long as it stays as it is.
                next.left_alone = true;
                let Some(record) = record else { continue };
                if !self.is_worth_recompressing(&record).await? || !self.back_pressure.begin(&record) {
                    continue;
                }
                let emptied = self.clean_segment(&record, Purpose::Tighter).await;
                self.back_pressure.end(&record);
                emptied?;
                self.counters.recompressed.fetch_add(record.live, Ordering::Relaxed);
                written += 1;
            }
            if written == 0 {
                return Ok(());
            }
            self.checkpoint().await?;
        }
    }

    /// Watches the processors for so long; true where nobody knows. What is done here itself does not count: it has ended.
    async fn processors_are_idle(&self, probe: Duration) -> bool {
        let before = self.env.processors();
        self.env.sleep(probe).await;
        let (Some(before), Some(now)) = (before, self.env.processors()) else { return true };
        now.idle_since(&before).is_none_or(|share| share >= IDLE)
    }

    /// Tries with what lies at the end of a segment.
    async fn is_worth_recompressing(self: &Arc<Self>, record: &SegmentRecord) -> Result<bool> {
        let _turn = self.turn(Class::Upkeep).await;
        let _pass = self.gate.enter();
        let (mut sample, mut at) = (Vec::new(), record.last_part);
        while at.len > 0 && sample.len() < SAMPLE {
            let Some(part) = self.read_part(record.id, at.offset).await else { break };
            sample.extend(self.live_of(record.id, &part.items).await?);
            at = part.previous;
        }
        let stored: u64 = sample.iter().map(|e| e.share()).sum();
        let content = self.fetch_blocks(&sample).await;
        let Ok(content) = content.into_iter().collect::<Result<Vec<Bytes>>>() else { return Ok(false) };
        let frames = self.compress_moved(content, Effort::High).await?;
        let harder: u64 = frames.iter().map(|f| f.stored.len() as u64).sum();
        Ok(stored > 0 && harder * 100 <= stored * WORTH)
    }

    /// Compresses blocks that are to be moved.
    pub(super) async fn compress_moved(&self, blocks: Vec<Bytes>, effort: Effort) -> Result<Vec<ReducedFrame>> {
        let group = |blocks: &[Bytes]| Group::blocks(blocks.to_vec(), false);
        let groups: Vec<Group> = blocks.chunks(effort.frame_blocks(&self.config)).map(group).collect();
        let compression = self.config.compression;
        let stopped = || Error::new(ErrorKind::Unavailable, format!("pool {} is stopped", self.name));
        compute(&self.env, move || compress(&groups, compression, effort)).await.ok_or_else(stopped)
    }
}
