//! The reaper: gives back, in the background, what versions alone hold that are being deleted.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::join_all;
use rustc_hash::FxHashMap;

use super::Engine;
use super::commit::Draft;
use super::damage::is_unreadable;
use super::state::State;
use crate::error::Result;
use crate::format::record::{Op, Record};
use crate::format::volume::VolumeRecord;
use crate::map::versions::Event;
use crate::map::{Miss, Need};
use crate::units::{Lba, VirtualBlock, VolumeId};

/// Blocks and pages given back by one record, about.
const RELEASES: usize = 512;
/// How often a page may be gone when it is looked for, because it was given back meanwhile.
const GONE_MAX: usize = 8;

/// Whether somebody is at work, and whether there is more to do than he knows of.
#[derive(Default)]
pub(crate) struct Reaper {
    running: bool,
    again: bool,
    /// The version that is being given back, how far that was when this began, and bytes that came back since.
    at_hand: Option<(VolumeId, u64, u64)>,
}

/// How far the deletion of versions is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reaping {
    /// Versions that are being deleted and can go.
    pub versions: usize,
    /// How much of the one at hand was looked at: 0 to 1.
    pub done: f64,
    /// Stored bytes of that one that are still to come back, as far as what came back so far tells.
    pub to_come: Option<u64>,
}

/// Map pages that could not be read.
type Unreadable = BTreeSet<VirtualBlock>;

/// What the next record does for a version.
enum Step {
    /// Lets go of what lies before a place.
    HandOver { to: u64, blocks: Vec<VirtualBlock> },
    /// Ends it.
    Drop,
    /// Nothing: it is gone, or several versions go on from it.
    Nothing,
}

/// What is found on the way through a deleted snapshot that several versions go on from.
enum Found {
    /// Entries that none of them sees.
    Event(Event),
    /// Nothing before this place; there is more behind it.
    Nothing(u64),
    /// The end.
    End,
}

impl Engine {
    /// Has somebody look for versions that are being deleted.
    pub fn reap(self: &Arc<Self>) {
        let mut reaper = self.reaper.lock();
        reaper.again = true;
        if std::mem::replace(&mut reaper.running, true) {
            return;
        }
        drop(reaper);
        let engine = self.clone();
        self.spawn(async move {
            loop {
                engine.reaper.lock().again = false;
                engine.reap_all().await;
                let mut reaper = engine.reaper.lock();
                if !reaper.again || engine.is_dead() {
                    reaper.running = false;
                    return;
                }
            }
        });
    }

    /// Whether versions are being deleted, and space may come back.
    pub fn is_reaping(&self) -> bool {
        self.reaper.lock().running
    }

    async fn reap_all(self: &Arc<Self>) {
        let mut failed = BTreeSet::new();
        while let Some(id) = self.next_to_reap(&failed) {
            if let Err(error) = self.reap_version(id).await {
                if self.is_dead() {
                    return;
                }
                tracing::error!(volume = id.0, %error, "a volume or snapshot could not be deleted; it is tried again later");
                let family = self.state.read().volumes.get(&id).map(|v| v.family);
                failed.extend(family);
            }
        }
        let kept: Vec<VolumeId> = {
            let state = self.state.read();
            let kept = state.volumes.values().filter(|v| v.deleting && !failed.contains(&v.family));
            kept.map(|v| v.id).collect()
        };
        for id in kept {
            let cleared = self.clear_version(id).await;
            if self.is_dead() {
                return;
            }
            if let Err(error) = cleared {
                tracing::warn!(volume = id.0, %error, "not all was given back that only a deleted snapshot holds");
            }
        }
    }

    /// A version that can go. One that was begun comes first: a floor must not depend on two. So where one could not be ended, its relatives wait.
    fn next_to_reap(&self, failed: &BTreeSet<VolumeId>) -> Option<VolumeId> {
        let state = self.state.read();
        let ready =
            |v: &VolumeRecord| v.deleting && !failed.contains(&v.family) && state.children(v.id).nth(1).is_none();
        let going = state.volumes.values().filter(|v| ready(v));
        going.max_by_key(|v| (v.handed > 0, v.id)).map(|v| v.id)
    }

    async fn reap_version(self: &Arc<Self>, id: VolumeId) -> Result<()> {
        let (mut unreadable, places) = (Unreadable::new(), self.config.reap_places);
        let begun = self.state.read().volumes.get(&id).map_or(0, |v| v.handed);
        self.reaper.lock().at_hand = Some((id, begun, 0));
        loop {
            // Hosts' commits come in between.
            tokio::task::yield_now().await;
            let _turn = self.turn(self.cleaning()).await;
            self.check_alive()?;
            self.wait_for_log().await?;
            self.checkpoint_if_due();
            // Pages are loaded before the lock is taken.
            let step = self.ask_past(&mut unreadable, |s, lost| next_step(s, id, places, lost)).await?;
            if let Step::HandOver { blocks, .. } = step {
                self.preload_entries(&blocks).await;
            }
            let mut committer = self.committer.lock().await;
            let _pass = self.gate.enter();
            let mut freed = 0;
            let op = match self.ask_past(&mut unreadable, |s, lost| next_step(s, id, places, lost)).await? {
                Step::Nothing => return Ok(()),
                Step::Drop => Op::DropVolume(id),
                Step::HandOver { to, blocks } => {
                    freed = self.held_by(&blocks).await.unwrap_or(0);
                    Op::HandOver { volume: id, to: Lba(to), blocks }
                }
            };
            let end = matches!(op, Op::DropVolume(_));
            let record = Record { ops: vec![op], ..Record::default() };
            self.commit(&mut committer, Draft { record, ..Draft::default() }).await?;
            if let Some((_, _, so_far)) = &mut self.reaper.lock().at_hand {
                *so_far += freed;
            }
            if end {
                self.broken.lock().remove(&id);
                return Ok(());
            }
        }
    }

    /// Stored bytes that only this version holds: what comes back when it is deleted. Costs as much as it differs from those beside it.
    pub async fn held(&self, id: VolumeId) -> Result<u64> {
        let (mut unreadable, mut from, mut held) = (Unreadable::new(), 0, 0);
        loop {
            self.check_alive()?;
            let event = self.ask_past(&mut unreadable, |s, lost| s.next_event(id, from, lost)).await?;
            let Some(event) = event else { return Ok(held) };
            from = event.end;
            let blocks: Vec<VirtualBlock> =
                event.entries.into_iter().map(|(_, block)| block).chain(event.pages).collect();
            self.preload_entries(&blocks).await;
            let _pass = self.gate.enter();
            held += self.held_by(&blocks).await?;
        }
    }

    /// Stored bytes of those of these blocks, named once for each reference, that nothing else refers to. The caller has a pass.
    async fn held_by(&self, blocks: &[VirtualBlock]) -> Result<u64> {
        let mut references: FxHashMap<VirtualBlock, u64> = FxHashMap::default();
        blocks.iter().for_each(|block| *references.entry(*block).or_default() += 1);
        self.with_state(|s| {
            let mut held = 0;
            for (block, count) in &references {
                let entry = s.table.entry(*block)?;
                held += if u64::from(entry.refcount) <= *count { entry.share() } else { 0 };
            }
            Ok(held)
        })
        .await
    }

    /// How far the deletion of versions is.
    pub fn reaping(&self) -> Reaping {
        let at_hand = self.reaper.lock().at_hand;
        let state = self.state.read();
        let going = || state.volumes.values().filter(|v| v.deleting && state.children(v.id).nth(1).is_none());
        let done = going().map(|v| v.handed as f64 / v.blocks.max(1) as f64).fold(0.0, f64::max).min(1.0);
        let to_come = at_hand.and_then(|(id, begun, freed)| {
            let v = going().find(|v| v.id == id)?;
            let seen = v.handed.checked_sub(begun).filter(|seen| *seen > 0)?;
            Some((freed as f64 / seen as f64 * v.blocks.saturating_sub(v.handed) as f64) as u64)
        });
        Reaping { versions: going().count(), done, to_come }
    }

    /// Gives back what none of the versions sees that go on from a deleted snapshot. Ends early when there is more urgent work.
    async fn clear_version(self: &Arc<Self>, id: VolumeId) -> Result<()> {
        let (mut unreadable, mut from, places) = (Unreadable::new(), 0, self.config.reap_places);
        loop {
            tokio::task::yield_now().await;
            let _turn = self.turn(self.cleaning()).await;
            self.check_alive()?;
            if self.reaper.lock().again {
                return Ok(());
            }
            let event = match self.ask_past(&mut unreadable, |s, lost| next_clearing(s, id, from, places, lost)).await?
            {
                Found::Event(event) => event,
                Found::Nothing(to) => {
                    from = to;
                    continue;
                }
                Found::End => return Ok(()),
            };
            from = event.end;
            let blocks: Vec<VirtualBlock> = event.entries.iter().map(|(_, block)| *block).collect();
            self.preload_entries(&blocks).await;
            self.wait_for_log().await?;
            self.checkpoint_if_due();
            let mut committer = self.committer.lock().await;
            let _pass = self.gate.enter();
            // Again: they may see less by now.
            let found = self.ask_past(&mut unreadable, |s, lost| next_clearing(s, id, event.end - 1, 1, lost)).await?;
            let Found::Event(event) = found else { continue };
            let slots = event.entries.iter().map(|(slot, _)| *slot).collect();
            let ops = vec![Op::Clear { volume: id, lba: Lba(event.end - 1), slots }];
            let record = Record { ops, ..Record::default() };
            match self.commit(&mut committer, Draft { record, ..Draft::default() }).await {
                // The place of the leaf cannot be changed; others can.
                Err(e) if is_unreadable(&e) && !self.is_dead() => {}
                other => drop(other?),
            }
        }
    }

    /// Makes what is needed resident to give blocks back, all of it at the same time. What cannot be read is left for the commit to report.
    async fn preload_entries(&self, blocks: &[VirtualBlock]) {
        // The directory page, then the page of the table.
        for _ in 0..2 {
            let missing: BTreeSet<Miss> = {
                let state = self.state.read();
                blocks.iter().filter_map(|block| state.table.lacks(*block)).collect()
            };
            if missing.is_empty() {
                return;
            }
            join_all(missing.into_iter().map(|miss| self.load(miss))).await;
        }
    }

    /// As [`Self::with_state`]; map pages that cannot be read are put on a list, and `ask` has to do without them.
    async fn ask_past<T>(
        &self,
        unreadable: &mut Unreadable,
        ask: impl Fn(&State, &dyn Fn(VirtualBlock) -> bool) -> Need<T>,
    ) -> Result<T> {
        let mut gone = 0;
        loop {
            // What is looked for stays where it is meanwhile.
            let _pass = self.gate.enter();
            let answer = ask(&self.state.read(), &|block| unreadable.contains(&block));
            let miss = match answer {
                Ok(answer) => return Ok(answer),
                Err(miss) => miss,
            };
            let Err(e) = self.load(miss).await else { continue };
            let Miss::Map(block) = miss else { return Err(e) };
            if !is_unreadable(&e) {
                return Err(e);
            }
            if self.was_given_back(miss) && gone < GONE_MAX {
                gone += 1;
            } else if !unreadable.insert(block) {
                return Err(e);
            }
        }
    }

    /// Whether a map page is gone that something referred to a moment ago.
    pub(super) fn was_given_back(&self, miss: Miss) -> bool {
        let Miss::Map(block) = miss else { return false };
        self.state.read().table.entry(block).is_ok_and(|entry| entry.refcount == 0)
    }
}

fn next_step(state: &State, id: VolumeId, places: usize, lost: &dyn Fn(VirtualBlock) -> bool) -> Need<Step> {
    let going = state.volumes.get(&id).filter(|v| v.deleting && state.children(id).nth(1).is_none());
    let Some(version) = going else { return Ok(Step::Nothing) };
    let (mut to, mut blocks) = (version.handed, Vec::new());
    for _ in 0..places {
        let Some(event) = state.next_event(id, to, lost)? else {
            // What came before is a record of its own: the floor of its child must not sink by two things at once.
            return Ok(if blocks.is_empty() { Step::Drop } else { Step::HandOver { to, blocks } });
        };
        to = event.end;
        blocks.extend(event.entries.into_iter().map(|(_, block)| block));
        blocks.extend(event.pages);
        if blocks.len() >= RELEASES {
            break;
        }
    }
    Ok(Step::HandOver { to, blocks })
}

/// Looks at so many places behind `from`.
fn next_clearing(
    state: &State,
    id: VolumeId,
    mut from: u64,
    places: usize,
    lost: &dyn Fn(VirtualBlock) -> bool,
) -> Need<Found> {
    if state.volumes.get(&id).is_none_or(|v| !v.deleting || state.children(id).nth(1).is_none()) {
        return Ok(Found::End);
    }
    for _ in 0..places {
        match state.next_event(id, from, lost)? {
            None => return Ok(Found::End),
            Some(event) if !event.entries.is_empty() => return Ok(Found::Event(event)),
            Some(event) => from = event.end,
        }
    }
    Ok(Found::Nothing(from))
}
