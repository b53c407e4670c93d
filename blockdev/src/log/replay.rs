//! Reading the log back after a crash.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::future::join_all;

use super::Mirror;
use crate::error::Result;
use crate::format::cursor::{Get, counter};
use crate::format::record::{ENTRY_ALIGN, Entry};
use crate::planted::{self, Bug};
use crate::redundancy::array::DiskArray;
use crate::units::{Epoch, Uuid};

/// What is left of the log behind a checkpoint.
#[derive(Default)]
pub struct Replay {
    /// Intact entries without a gap, in order.
    pub entries: Vec<Entry>,
    /// Slots that hold extents of the epoch from the checkpoint on.
    pub extents: BTreeMap<u64, Vec<Mirror>>,
    /// First extent number that was never used.
    pub next_extent: u64,
    /// Bit per disk of which something could not be read.
    pub unread: u128,
}

/// Pool, epoch and extent number in the header at the start of a slot, unverified.
fn peek(block: &[u8]) -> Option<(Uuid, Epoch, u64)> {
    let mut get = Get(block);
    get.take(8).ok()?;
    Some((get.uuid().ok()?, Epoch(get.u64().ok()?), counter(get.u64().ok()?, "log: extent").ok()?))
}

/// Finds and reads all entries of `pool` and `epoch` in extents from `start` on. The union of all mirrors counts: an entry that one
/// mirror lost is taken from another. Ends at the first gap.
///
/// Disks in the bit set `unseen` are left out: an earlier recovery may have gone on without them, and must not be contradicted by an
/// entry that only they hold.
pub async fn read(
    array: &DiskArray,
    (pool, epoch): (Uuid, Epoch),
    start: u64,
    first_record: u64,
    unseen: u128,
) -> Result<Replay> {
    let geometry = array.geometry;
    let mut online = array.online();
    online.retain(|m| unseen.checked_shr(m.id.0.into()).unwrap_or(0) & 1 == 0);
    let errors_before: Vec<u64> = online.iter().map(|m| m.read_errors()).collect();
    let slots = online.iter().flat_map(|m| (0..geometry.log_extents).map(move |s| (m.id, s)));
    let heads = join_all(slots.map(|(disk, slot)| async move {
        let head = array.read_disk(disk, geometry.log_extent(slot), ENTRY_ALIGN).await.ok()?;
        let (owner, found, extent) = peek(&head)?;
        ((owner, found) == (pool, epoch) && extent >= start).then_some((extent, (disk, slot)))
    }))
    .await;
    let mut out = Replay { next_extent: start, ..Replay::default() };
    for (extent, mirror) in heads.into_iter().flatten() {
        out.extents.entry(extent).or_default().push(mirror);
        out.next_extent = out.next_extent.max(extent + 1);
    }

    let mut entries: BTreeMap<u64, Entry> = BTreeMap::new();
    for (&extent, mirrors) in &out.extents {
        let ours = |e: &Entry| (e.pool, e.epoch, e.extent) == (pool, epoch, extent);
        let reads = mirrors.iter().map(|&(disk, slot)| read_slot(array, disk, slot));
        let copies: Vec<Bytes> = join_all(reads).await.into_iter().flatten().collect();
        for copy in &copies {
            let mut at = 0;
            // Where this copy is damaged another one may tell where the next entry starts.
            let mut starts: BTreeSet<usize> = BTreeSet::from([0]);
            while let Some(next) = starts.range(at..).next().copied() {
                at = next;
                match Entry::read(&copy[at..], !planted::active(Bug::TornRecordAccepted)) {
                    Ok((entry, len)) if ours(&entry) => {
                        entries.entry(entry.number).or_insert(entry);
                        starts.insert(at + len);
                        at += len;
                    }
                    _ => {
                        let known = copies.iter().filter_map(|c| Entry::decode(&c[at..]).ok());
                        let intact = known.into_iter().find(|(e, _)| ours(e));
                        match intact {
                            Some((_, len)) => {
                                starts.insert(at + len);
                                at += len;
                            }
                            None => break,
                        }
                    }
                }
                if at >= copy.len() {
                    break;
                }
            }
        }
    }

    let mut record = first_record;
    let mut number = None;
    for (n, entry) in entries {
        let follows = number.is_none_or(|last| n == last + 1);
        let records = entry.records.first().is_none_or(|r| r.number == record);
        if !follows || !records {
            break;
        }
        number = Some(n);
        record += entry.records.len() as u64;
        out.entries.push(entry);
    }
    let unread = online.iter().zip(errors_before).filter(|(m, before)| m.read_errors() > *before);
    out.unread = unread.fold(0, |bits, (m, _)| bits | 1u128.checked_shl(m.id.0.into()).unwrap_or(0));
    Ok(out)
}

async fn read_slot(array: &DiskArray, disk: crate::units::DiskId, slot: u32) -> Option<Bytes> {
    let geometry = array.geometry;
    let (base, size) = (geometry.log_extent(slot), geometry.log_extent_size as usize);
    if let Ok(data) = array.read_disk(disk, base, size).await {
        return Some(data);
    }
    // A latent error somewhere in the extent: what can be read is read block by block.
    let mut out = vec![0; size];
    for (i, block) in out.chunks_exact_mut(ENTRY_ALIGN).enumerate() {
        if let Ok(data) = array.read_disk(disk, base + (i * ENTRY_ALIGN) as u64, ENTRY_ALIGN).await {
            block.copy_from_slice(&data);
        }
    }
    Some(Bytes::from(out))
}
