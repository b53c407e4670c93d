//! The log writer: makes committed records durable, many at a time.
//!
//! Rule: an entry is written only when everything its records refer to is durable, or in the log itself. Whole stripes are
//! waited for and flushed; what lies in unfinished stripes goes into the entry.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::{Durable, Engine};
use crate::error::Result;
use crate::planted::{self, Bug};
use crate::segment::appender::Appender;
use crate::units::{SegmentId, Seqno};

/// Committed records are written to the log when they have this many bytes, even if no host asks for it.
const QUEUE_BYTES: usize = 128 << 10;

/// Something the log writer must do, in order.
pub enum Queued {
    /// A committed record.
    Record {
        /// Its number.
        number: u64,
        /// Newest host operation in it.
        seqno: Seqno,
        /// Encoded.
        encoded: Vec<u8>,
        /// How far open segments were filled when it was committed.
        ends: Vec<(Arc<Appender>, u32)>,
    },
    /// A checkpoint begins here: answer with the extent that later records will go to.
    Mark(oneshot::Sender<u64>),
}

/// Records that wait for the log.
#[derive(Default)]
pub struct LogQueue {
    items: VecDeque<Queued>,
    bytes: usize,
    committed: Durable,
    marks: usize,
    /// What hosts wait for, in order.
    targets: VecDeque<Durable>,
}

impl LogQueue {
    /// A queue behind a recovery that ended with these numbers.
    pub fn new(committed: Durable) -> Self {
        Self { committed, ..Self::default() }
    }

    /// Appends.
    pub fn push(&mut self, item: Queued) {
        match &item {
            Queued::Record { number, seqno, encoded, .. } => {
                self.bytes += encoded.len();
                self.committed.record = *number;
                self.committed.seqno = self.committed.seqno.max(seqno.0);
            }
            Queued::Mark(_) => self.marks += 1,
        }
        self.items.push_back(item);
    }

    /// Whether the log should be written now.
    fn is_due(&mut self) -> bool {
        let reached = |t: &Durable| t.seqno <= self.committed.seqno && t.record <= self.committed.record;
        let n = self.targets.iter().take_while(|t| reached(t)).count();
        self.targets.drain(..n);
        n > 0 || self.marks > 0 || self.bytes >= QUEUE_BYTES
    }

    /// Takes records of at most `bytes`, or one mark.
    fn take(&mut self, bytes: usize) -> Vec<Queued> {
        let (mut out, mut taken) = (Vec::new(), 0);
        while let Some(item) = self.items.pop_front() {
            match &item {
                Queued::Record { encoded, .. } if out.is_empty() || taken + encoded.len() <= bytes => {
                    taken += encoded.len();
                    out.push(item);
                }
                Queued::Mark(_) if out.is_empty() => {
                    self.marks -= 1;
                    return vec![item];
                }
                _ => {
                    self.items.push_front(item);
                    break;
                }
            }
        }
        self.bytes -= taken;
        out
    }

    /// Bytes waiting.
    pub fn memory(&self) -> usize {
        self.bytes
    }
}

impl Engine {
    /// Completes when all operations taken in before the call are durable.
    pub async fn flush(self: &Arc<Self>) -> Result<()> {
        let target = self.intake.hurry();
        if planted::active(Bug::FlushAnswersEarly) {
            return Ok(());
        }
        self.wait_durable(Durable { seqno: target.0, record: 0 }).await?;
        // What a failed disk lacks must be on record before anybody relies on the others: it might come back after a crash.
        while self.noted_failures.load(Ordering::Acquire) < self.array.failures() {
            self.checkpoint().await?;
        }
        Ok(())
    }

    /// Completes when a record is durable.
    pub(super) async fn wait_durable_record(&self, record: u64) -> Result<()> {
        self.wait_durable(Durable { seqno: 0, record }).await
    }

    /// Completes when all up to `target` is durable.
    pub(super) async fn wait_durable(&self, target: Durable) -> Result<()> {
        let mut durable = self.durable.subscribe();
        let reached = |d: &Durable| d.seqno >= target.seqno && d.record >= target.record;
        if reached(&durable.borrow_and_update()) {
            return Ok(());
        }
        self.want_durable(target);
        loop {
            if reached(&durable.borrow_and_update()) {
                return Ok(());
            }
            self.check_alive()?;
            if durable.changed().await.is_err() {
                return self.check_alive();
            }
        }
    }

    /// Has the log written as soon as all up to `target` is committed.
    pub(super) fn want_durable(&self, target: Durable) {
        self.log_queue.lock().targets.push_back(target);
        self.log_wake.notify_one();
    }

    /// The task that writes the log: when somebody waits for it, when there is enough, and when the oldest record has waited for long enough.
    pub(super) async fn write_log(self: Arc<Self>) {
        // Since when there have been records.
        let mut since = None;
        loop {
            if self.is_dead() {
                return;
            }
            let (is_due, is_empty) = {
                let mut queue = self.log_queue.lock();
                (queue.is_due(), queue.items.is_empty())
            };
            let wake = self.log_wake.notified();
            if !is_due && is_empty {
                since = None;
                wake.await;
                continue;
            }
            let now = self.env.now();
            let waited = now.saturating_sub(*since.get_or_insert(now));
            if !is_due && waited < self.config.log_interval {
                let timer = self.env.sleep(self.config.log_interval - waited);
                tokio::pin!(wake);
                futures::future::select(wake, timer).await;
                continue;
            }
            since = None;
            if let Err(e) = self.write_all_queued().await {
                self.fail(e.context("writing the log"));
                return;
            }
        }
    }

    /// Writes what is queued, an entry at a time.
    async fn write_all_queued(&self) -> Result<()> {
        let limit = self.array.geometry.log_extent_size as usize / 4;
        loop {
            let group = self.log_queue.lock().take(limit);
            if group.is_empty() {
                return Ok(());
            }
            let mut reached = *self.durable.borrow();
            let mut records = Vec::with_capacity(group.len());
            let mut all_ends: BTreeMap<SegmentId, (Arc<Appender>, u32)> = BTreeMap::new();
            for item in group {
                match item {
                    Queued::Mark(answer) => {
                        let _ = answer.send(self.log.rotate());
                    }
                    Queued::Record { number, seqno, encoded, ends } => {
                        reached.record = number;
                        reached.seqno = reached.seqno.max(seqno.0);
                        records.push(encoded);
                        for (appender, end) in ends {
                            let slot = all_ends.entry(appender.extent.segment).or_insert((appender, 0));
                            slot.1 = slot.1.max(end);
                        }
                    }
                }
            }
            if !records.is_empty() {
                self.write_entry(&records, &all_ends).await?;
                self.durable.send_replace(reached);
                self.let_go(reached.seqno);
            }
        }
    }

    async fn write_entry(&self, records: &[Vec<u8>], ends: &BTreeMap<SegmentId, (Arc<Appender>, u32)>) -> Result<()> {
        let inline = self.settle(ends).await?;
        // Before anything is logged that a failed disk may lack, the others must say that it is gone: it might come back after a crash.
        self.label_absent().await?;
        let durable: Vec<(SegmentId, u32)> = ends.iter().map(|(&s, (a, _))| (s, a.flushed())).collect();
        let inline: Vec<(SegmentId, u32, &[u8])> = inline.iter().map(|(s, o, d)| (*s, *o, &d[..])).collect();
        let records: Vec<&[u8]> = records.iter().map(|r| &r[..]).collect();
        let wait = || {
            self.checkpoint_wanted.notify_one();
            !self.is_dead()
        };
        self.log.write(&durable, &inline, &records, wait).await?;
        for (appender, end) in ends.values() {
            appender.set_logged(*end);
        }
        self.retire_appenders();
        if self.log.fullness() > 0.4 {
            self.checkpoint_wanted.notify_one();
        }
        Ok(())
    }

    /// Makes everything durable that the appenders hold up to the given ends, except unfinished stripes; returns their bytes.
    async fn settle(&self, ends: &BTreeMap<SegmentId, (Arc<Appender>, u32)>) -> Result<Vec<(SegmentId, u32, Vec<u8>)>> {
        let mut inline = Vec::new();
        let mut settled: Vec<SegmentId> = Vec::new();
        while settled.len() < ends.len() {
            let open = || ends.values().filter(|(a, _)| !settled.contains(&a.extent.segment));
            let mut dirty = false;
            for (appender, end) in open() {
                let full = end / appender.stripe_size() * appender.stripe_size();
                appender.wait_completed(full, || self.is_dead()).await;
                self.check_alive_for_log()?;
                dirty |= appender.flushed() < full;
            }
            if dirty {
                self.flush_disks(ends.values().map(|(a, _)| a)).await?;
            }
            let mut done = Vec::new();
            for (appender, end) in open() {
                let segment = appender.extent.segment;
                match appender.unlogged(*end) {
                    Some((from, data)) => {
                        if !planted::active(Bug::TailNotLogged) {
                            inline.push((segment, from, data));
                        }
                        done.push(segment);
                    }
                    None if appender.is_safe(*end) => done.push(segment),
                    // Its stripe was completed just now: it needs a flush after all.
                    None => self.flush_disks(std::iter::once(appender)).await?,
                }
            }
            settled.extend(done);
        }
        Ok(inline)
    }

    fn check_alive_for_log(&self) -> Result<()> {
        match self.failure() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Flushes all disks; what was complete before is on stable storage afterwards.
    pub(super) async fn flush_disks<'a>(&self, appenders: impl Iterator<Item = &'a Arc<Appender>>) -> Result<()> {
        let complete: Vec<(&Arc<Appender>, u32)> = appenders.map(|a| (a, a.completed())).collect();
        if !planted::active(Bug::DataNotFlushed) {
            self.array.flush().await?;
        }
        for (appender, upto) in complete {
            appender.set_flushed(upto);
        }
        Ok(())
    }

    /// Forgets appenders of sealed segments that are wholly on stable storage.
    pub(super) fn retire_appenders(&self) {
        let finished: Vec<Arc<Appender>> =
            self.appenders.read().values().filter(|a| a.is_finished()).cloned().collect();
        if finished.is_empty() {
            return;
        }
        let mut state = self.state.write();
        let mut appenders = self.appenders.write();
        for a in finished {
            appenders.remove(&a.extent.segment);
            if let Some(s) = state.segments.get_mut(a.extent.segment)
                && s.record.incarnation == a.extent.incarnation
            {
                s.record.written = a.filled();
            }
        }
    }
}
