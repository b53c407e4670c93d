//! What changed between two versions of a volume.

use super::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::map::diff::Difference;
use crate::report::ChangedRange;
use crate::units::{BLOCK_BYTES, VolumeId};

impl Engine {
    /// Ranges in `offset..end`, bytes, in which `to` differs from `from`, at most `max`; and where to go on when there may be more. What hosts were
    /// answered before counts. Costs as much as was changed, whatever the size.
    pub async fn changes(
        self: &std::sync::Arc<Self>,
        [from, to]: [VolumeId; 2],
        (offset, end): (u64, u64),
        max: usize,
    ) -> Result<(Vec<ChangedRange>, Option<u64>)> {
        if self.intake.waiting().0 > 0 || self.intake.memory() > 0 {
            self.flush().await?;
        }
        let (mut at, last) = (offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        let mut out: Vec<ChangedRange> = Vec::new();
        while at < last {
            // One pass for each step: checkpoints wait for passes.
            let _pass = self.gate.enter();
            let found = self
                .with_state(|s| match (s.live(from), s.live(to)) {
                    (Some(from), Some(to)) => s.maps.next_difference(from, to, at, last).map(Some),
                    _ => Ok(None),
                })
                .await?;
            let gone = || Error::new(ErrorKind::NotFound, "one of the two was deleted meanwhile");
            let (run, mapped) = match found.ok_or_else(gone)? {
                Difference::Run(run, mapped) => (run, mapped),
                Difference::NotBefore(next) => {
                    at = next;
                    continue;
                }
                Difference::None => return Ok((out, None)),
            };
            let start = (run.start * BLOCK_BYTES).max(offset);
            let stop = (run.end * BLOCK_BYTES).min(end);
            let full = out.len() >= max;
            match out.last_mut().filter(|r| r.mapped == mapped && r.offset + r.len == start) {
                Some(range) => range.len += stop - start,
                None if full => return Ok((out, Some(start))),
                None => out.push(ChangedRange { offset: start, len: stop - start, mapped }),
            }
            at = run.end;
        }
        Ok((out, None))
    }
}
