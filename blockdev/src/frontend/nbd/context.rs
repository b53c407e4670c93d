//! Metadata contexts: what `BLOCK_STATUS` can tell about a range.

use std::sync::Arc;

use super::wire::{Descriptor, state};
use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::frontend::{BlockDevice, Extent};

/// A metadata context of an export.
pub trait MetaContext: Send + Sync + 'static {
    /// `namespace:leaf`, at most 4096 bytes of UTF-8. Namespaces of our own start with `x-`.
    fn name(&self) -> &str;

    /// At least one and at most `max` consecutive descriptors from `offset`, none of length 0, together at most `len`
    /// bytes. The range lies within the device and is not empty; `max` is at least 1.
    fn status(
        &self,
        device: &Arc<dyn BlockDevice>,
        offset: u64,
        len: u32,
        max: usize,
    ) -> BoxFuture<Result<Vec<Descriptor>>>;
}

/// `base:allocation`: which ranges are holes.
pub(super) struct BaseAllocation;

impl MetaContext for BaseAllocation {
    fn name(&self) -> &str {
        "base:allocation"
    }

    fn status(
        &self,
        device: &Arc<dyn BlockDevice>,
        offset: u64,
        len: u32,
        max: usize,
    ) -> BoxFuture<Result<Vec<Descriptor>>> {
        let extents = device.block_status(offset, len.into(), max);
        Box::pin(async move { Ok(allocation(offset, len, &extents.await?)) })
    }
}

/// Extents as descriptors. What lies before or behind the range is cut off, and a gap ends the answer.
fn allocation(offset: u64, len: u32, extents: &[Extent]) -> Vec<Descriptor> {
    let end = offset + u64::from(len);
    let mut at = offset;
    let mut out = Vec::with_capacity(extents.len());
    for extent in extents {
        let until = extent.offset.saturating_add(extent.len).min(end);
        if extent.offset > at || until <= at {
            break;
        }
        let flags = if extent.mapped { 0 } else { state::HOLE | state::ZERO };
        out.push(Descriptor { len: (until - at) as u32, flags });
        at = until;
    }
    out
}

/// Holds a context to its contract, so that a client is never sent a malformed chunk.
pub(super) fn check(descriptors: Vec<Descriptor>, len: u32, max: usize, name: &str) -> Result<Vec<Descriptor>> {
    let total: u64 = descriptors.iter().map(|d| u64::from(d.len)).sum();
    let sound = !descriptors.is_empty()
        && descriptors.len() <= max
        && descriptors.iter().all(|d| d.len != 0)
        && total <= u64::from(len);
    if !sound {
        let message = format!("the context {name} gave {} extents of {total} bytes for {len} bytes", descriptors.len());
        return Err(Error::new(ErrorKind::Io, message));
    }
    Ok(descriptors)
}

/// Whether a query of `LIST_META_CONTEXT` finds `name`: the name itself, or its beginning up to a colon.
pub(super) fn lists(query: &str, name: &str) -> bool {
    query == name || (query.ends_with(':') && name.starts_with(query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_become_descriptors_within_the_request() {
        let extent = |offset, len, mapped| Extent { offset, len, mapped };
        let hole = state::HOLE | state::ZERO;
        let extents = [extent(0, 100, true), extent(100, 50, false), extent(150, 1000, true)];
        let of = |offset, len, extents: &[Extent]| -> Vec<(u32, u32)> {
            allocation(offset, len, extents).into_iter().map(|d| (d.len, d.flags)).collect()
        };
        assert_eq!(of(0, 160, &extents), [(100, 0), (50, hole), (10, 0)]);
        assert_eq!(of(90, 20, &extents), [(10, 0), (10, hole)]);
        assert_eq!(of(0, 160, &extents[1..]), [], "a gap at the start");
        assert_eq!(of(0, 160, &[extents[0], extents[2]]), [(100, 0)]);
        assert_eq!(of(0, 160, &[extent(0, 0, true)]), []);
    }

    #[test]
    fn unsound_answers_are_refused() {
        let good = vec![Descriptor { len: 5, flags: 0 }];
        assert!(check(good.clone(), 5, 1, "x").is_ok());
        assert!(check(good.clone(), 4, 1, "x").is_err());
        assert!(check(vec![good[0]; 2], 50, 1, "x").is_err());
        assert!(check(vec![], 50, 1, "x").is_err());
        assert!(check(vec![Descriptor { len: 0, flags: 0 }], 50, 1, "x").is_err());
    }

    #[test]
    fn queries() {
        assert!(lists("base:", "base:allocation"));
        assert!(lists("base:allocation", "base:allocation"));
        assert!(!lists("base", "base:allocation"));
        assert!(!lists("", "base:allocation"));
        assert!(!lists("base:all", "base:allocation"));
        assert!(lists("x-a:b:", "x-a:b:c"));
    }
}
