//! Memory of the process for large transfers: handed out in pieces, never given back to the system.
//!
//! Large buffers that come and go cost the system a page fault for every page. These do not, and the ring has the kernel map them
//! once for all ([`whole`]) instead of looking up every page of every transfer.

use std::alloc::{Layout, alloc_zeroed};
use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::IO_ALIGN;

/// Bytes of the smallest piece.
pub(super) const PIECE_MIN: usize = 64 << 10;
/// A piece of order `n` has `PIECE_MIN << n` bytes; that of the highest order is the whole arena.
const ORDERS: usize = 9;
/// Bytes of the arena, 16 MiB: 24 stripes of 4 + 2 columns on their way to disk, with room for reads.
const SIZE: usize = PIECE_MIN << (ORDERS - 1);

/// Unused pieces by order, each by its place in units of [`PIECE_MIN`]: a binary buddy system (K. C. Knowlton, 1965).
struct Free([BTreeSet<u16>; ORDERS]);

impl Free {
    fn new() -> Self {
        let mut free = Self(Default::default());
        free.0[ORDERS - 1].insert(0);
        free
    }

    fn take(&mut self, order: usize) -> Option<u16> {
        let mut from = (order..ORDERS).find(|&o| !self.0[o].is_empty())?;
        let place = self.0[from].pop_first()?;
        while from > order {
            from -= 1;
            self.0[from].insert(place + (1 << from));
        }
        Some(place)
    }

    fn put(&mut self, mut place: u16, mut order: usize) {
        while order < ORDERS - 1 && self.0[order].remove(&(place ^ (1 << order))) {
            place &= !(1 << order);
            order += 1;
        }
        self.0[order].insert(place);
    }
}

struct Arena {
    start: NonNull<u8>,
    free: Mutex<Free>,
}

// SAFETY: the memory lives as long as the process; `free` sees to it that no two pieces overlap.
unsafe impl Send for Arena {}
// SAFETY: as above; the pointer itself never changes.
unsafe impl Sync for Arena {}

/// None when the system had no memory for it.
fn arena() -> Option<&'static Arena> {
    static ARENA: OnceLock<Option<Arena>> = OnceLock::new();
    let make = || {
        let layout = Layout::from_size_align(SIZE, IO_ALIGN).ok()?;
        // SAFETY: the layout has a size above 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Arena { start, free: Mutex::new(Free::new()) })
    };
    ARENA.get_or_init(make).as_ref()
}

/// All of the arena, for the kernel to map.
pub(super) fn whole() -> Option<(NonNull<u8>, usize)> {
    Some((arena()?.start, SIZE))
}

/// A piece of the arena that nobody else has. Its content is that of whoever had it before.
#[derive(Debug)]
pub(super) struct Piece {
    start: NonNull<u8>,
    place: u16,
    order: usize,
}

// SAFETY: a piece is the only way to its memory.
unsafe impl Send for Piece {}
// SAFETY: shared references allow only reading.
unsafe impl Sync for Piece {}

impl Piece {
    /// A piece of at least `len` bytes, aligned to [`IO_ALIGN`]; none when the arena has none left.
    pub(super) fn take(len: usize) -> Option<Self> {
        let order = len.div_ceil(PIECE_MIN).checked_next_power_of_two()?.trailing_zeros() as usize;
        if order >= ORDERS {
            return None;
        }
        let arena = arena()?;
        let place = arena.free.lock().take(order)?;
        // SAFETY: places that `Free` gives out lie within the arena.
        let start = unsafe { arena.start.add(usize::from(place) * PIECE_MIN) };
        Some(Self { start, place, order })
    }

    /// Where its bytes are; all of them are initialised.
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(arena) = arena() {
            arena.free.lock().put(self.place, self.order);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Rng;

    #[test]
    fn pieces_never_overlap_and_come_back_whole() {
        let mut free = Free::new();
        let mut rng = Rng::new(5);
        let mut used: Vec<(u16, usize)> = Vec::new();
        for _ in 0..20_000 {
            if rng.below(2) == 0 {
                let order = rng.below(ORDERS as u64 - 2) as usize;
                let Some(place) = free.take(order) else { continue };
                let range = |(p, o): (u16, usize)| p..p + (1 << o);
                let new = range((place, order));
                assert!(new.end <= 1 << (ORDERS - 1) && place.is_multiple_of(1 << order));
                assert!(used.iter().all(|&u| range(u).end <= new.start || new.end <= range(u).start));
                used.push((place, order));
            } else if !used.is_empty() {
                let (place, order) = used.swap_remove(rng.below(used.len() as u64) as usize);
                free.put(place, order);
            }
        }
        used.into_iter().for_each(|(place, order)| free.put(place, order));
        assert_eq!(free.take(ORDERS - 1), Some(0));
        assert_eq!(free.take(0), None);
    }

    #[test]
    fn what_is_larger_than_the_arena_is_not_to_be_had() {
        assert!(Piece::take(SIZE + 1).is_none());
        assert!(Piece::take(usize::MAX).is_none());
    }
}
