//! The memory of an answer, in parts that are filled by whoever has what belongs there.

use bytes::BytesMut;

use crate::units::BLOCK_SIZE;

/// The memory of an answer of some blocks. Rooms of it are taken in their order, filled elsewhere and given back in any; the rest is zeroes.
pub struct Answer {
    parts: Vec<Part>,
    /// What lies behind the parts.
    rest: BytesMut,
    /// The first block of `rest`.
    next: usize,
    /// Blocks in all.
    count: usize,
}

struct Part {
    first: usize,
    blocks: usize,
    /// None while it is taken.
    room: Option<BytesMut>,
}

impl Answer {
    /// Room for `count` blocks.
    pub fn new(count: usize) -> Self {
        Self { parts: Vec::new(), rest: BytesMut::with_capacity(count * BLOCK_SIZE), next: 0, count }
    }

    /// Takes the room for some blocks, without content; behind all that was taken before, and within the answer.
    pub fn take(&mut self, first: usize, blocks: usize) -> BytesMut {
        if first > self.next {
            let gap = self.split(first - self.next);
            self.parts.push(Part { first: self.next, blocks: first - self.next, room: Some(gap) });
        }
        self.parts.push(Part { first, blocks, room: None });
        self.next = first + blocks;
        self.split(blocks)
    }

    fn split(&mut self, blocks: usize) -> BytesMut {
        let rest = self.rest.split_off(blocks * BLOCK_SIZE);
        std::mem::replace(&mut self.rest, rest)
    }

    /// Gives back the room that was taken for `first`, filled or not.
    pub fn give_back(&mut self, first: usize, room: BytesMut) {
        if let Ok(i) = self.parts.binary_search_by_key(&first, |part| part.first) {
            self.parts[i].room = Some(room);
        }
    }

    /// The answer as one; None while something of it is taken.
    pub fn whole(mut self) -> Option<BytesMut> {
        let end = Part { first: self.next, blocks: self.count - self.next, room: Some(self.rest) };
        self.parts.push(end);
        let mut out = BytesMut::new();
        for part in self.parts {
            let mut room = part.room?;
            room.resize(part.blocks * BLOCK_SIZE, 0);
            // They lie next to each other: nothing is copied.
            out.unsplit(room);
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rooms_come_back_in_any_order_and_nothing_moves() {
        let mut answer = Answer::new(10);
        let start = answer.rest.as_ptr();
        let mut rooms = [(1, 2), (3, 1), (6, 3)].map(|(first, blocks)| (first, blocks, answer.take(first, blocks)));
        rooms.reverse();
        for (first, blocks, mut room) in rooms {
            assert!(room.is_empty() && room.capacity() == blocks * BLOCK_SIZE);
            if first != 3 {
                room.resize(blocks * BLOCK_SIZE, first as u8);
            }
            answer.give_back(first, room);
        }
        let whole = answer.whole().unwrap();
        assert_eq!(whole.as_ptr(), start);
        let blocks: Vec<u8> = whole.chunks(BLOCK_SIZE).map(|block| block[BLOCK_SIZE - 1]).collect();
        assert_eq!(blocks, [0, 1, 1, 0, 0, 0, 6, 6, 6, 0]);
        assert_eq!(whole.len(), 10 * BLOCK_SIZE);
    }

    #[test]
    fn what_is_not_back_is_missed() {
        let mut answer = Answer::new(4);
        let room = answer.take(0, 4);
        assert_eq!(room.capacity(), 4 * BLOCK_SIZE);
        assert!(answer.whole().is_none());
        assert_eq!(Answer::new(2).whole().unwrap().to_vec(), [0; 2 * BLOCK_SIZE]);
    }
}
