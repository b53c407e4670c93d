use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;

/// The fingerprint of block number `n` (SplitMix64, twice).
fn fp(n: u64) -> u128 {
    let mix = |x: u64| {
        let mut z = x.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x1234_5678_9ABC_DEF1);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    u128::from(mix(n)) << 64 | u128::from(mix(!n))
}

fn block(n: u64) -> VirtualBlock {
    VirtualBlock(n + 1)
}

fn list(n: u64) -> ListId {
    ListId::new(SegmentId((n / 8) as u32), (n % 8) as u32)
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 += 1;
        fp(self.0) as u64 % n
    }
}

/// The first so many blocks from `from` whose fingerprints are hooks.
fn hook_blocks(index: &DedupeIndex, from: u64, count: usize) -> Vec<u64> {
    (from..).filter(|&n| index.key(fp(n)).is_hook()).take(count).collect()
}

#[test]
fn list_ids_take_apart() {
    let id = ListId::new(SegmentId(7), 9);
    assert_eq!((id.0, id.segment(), id.part()), (7 << 32 | 9, SegmentId(7), 9));
    let last = ListId::new(SegmentId(u32::MAX), u32::MAX - 1);
    assert_eq!((last.segment(), last.part()), (SegmentId(u32::MAX), u32::MAX - 1));
}

#[test]
fn one_fingerprint_in_sixty_four_is_a_hook() {
    let index = DedupeIndex::new(0);
    let hooks = (0..640_000).filter(|&n| index.key(fp(n)).is_hook()).count();
    assert!((9_500..10_500).contains(&hooks), "{hooks}");
}

#[test]
fn recent_blocks_are_found_replaced_and_removed() {
    let mut index = DedupeIndex::new(1 << 20);
    assert_eq!(index.lookup(fp(1)), Lookup::Miss);
    index.insert_recent(fp(1), block(10));
    assert_eq!(index.lookup(fp(1)), Lookup::Recent(block(10)));
    index.insert_recent(fp(1), block(11));
    assert_eq!(index.lookup(fp(1)), Lookup::Recent(block(11)));
    index.remove(fp(1), block(10));
    assert_eq!(index.lookup(fp(1)), Lookup::Recent(block(11)), "only that very pair is forgotten");
    index.remove(fp(1), block(11));
    assert_eq!(index.lookup(fp(1)), Lookup::Miss);
    index.insert_recent(fp(2), VirtualBlock::NONE);
    index.insert_recent(fp(3), VirtualBlock(1 << 48));
    assert_eq!((index.lookup(fp(2)), index.lookup(fp(3))), (Lookup::Miss, Lookup::Miss));
}

#[test]
fn the_window_agrees_with_a_map() {
    let mut window = Window::new(64 << 10);
    let key = |n: u64| DedupeIndex::new(0).key(fp(n));
    let keys: Vec<Key> = (0..window.capacity() as u64 / 3).map(key).collect();
    let mut model: HashMap<Key, VirtualBlock> = HashMap::new();
    let mut random = Random(1);
    for step in 0..100_000 {
        let key = keys[random.below(keys.len() as u64) as usize];
        match random.below(4) {
            0 => {
                let old = model.remove(&key).unwrap_or(block(0));
                window.remove(key, old);
            }
            1 | 2 => {
                model.insert(key, block(step));
                window.insert(key, block(step));
            }
            _ => assert_eq!(window.get(key), model.get(&key).copied(), "a third full, nothing is lost: step {step}"),
        }
    }
    assert!(model.len() > keys.len() / 2);
}

#[test]
fn the_window_keeps_the_new_and_loses_the_old() {
    let mut window = Window::new(1 << 20);
    let capacity = window.capacity() as u64;
    let index = DedupeIndex::new(0);
    let total = 5 * capacity;
    (0..total).for_each(|n| window.insert(index.key(fp(n)), block(n)));
    let kept = |from: u64, to: u64| {
        let hits = (from..to).filter(|&n| window.get(index.key(fp(n))).inspect(|&b| assert_eq!(b, block(n))).is_some());
        hits.count() as f64 / (to - from) as f64
    };
    assert_eq!(kept(total - capacity / 8, total), 1.0);
    assert!(kept(total - capacity / 2, total - capacity / 8) > 0.99);
    assert!(kept(total - 3 * capacity, total - 2 * capacity) < 0.01);
}

#[test]
fn hooks_name_the_newest_list_with_the_fingerprint() {
    let mut index = DedupeIndex::new(1 << 20);
    index.add_list(list(1), (0..1000).map(fp));
    index.add_list(list(2), (1000..2000).map(fp));
    index.add_list(list(3), (500..1500).map(fp));
    let hooks: BTreeSet<u64> = hook_blocks(&index, 0, 60).into_iter().filter(|&n| n < 2000).collect();
    assert!(hooks.len() > 10);
    for n in 0..2000 {
        let expected = match n {
            _ if !hooks.contains(&n) => Lookup::Miss,
            0..500 => Lookup::Hook(list(1)),
            500..1500 => Lookup::Hook(list(3)),
            _ => Lookup::Hook(list(2)),
        };
        assert_eq!(index.lookup(fp(n)), expected, "{n}");
    }
}

#[test]
fn lists_after_a_hook_are_read_ahead_once() {
    let mut index = DedupeIndex::new(16 << 20);
    let hooks = hook_blocks(&index, 0, 3);
    let other = (0..).find(|n| !hooks.contains(n)).unwrap();
    let ahead = |index: &mut DedupeIndex, n: u64| {
        let mut out = Vec::new();
        index.read_ahead(fp(n), &mut out);
        out
    };
    index.add_list(list(1), [fp(hooks[0])].into_iter());
    assert_eq!(ahead(&mut index, hooks[0]), []);
    index.add_list(list(2), std::iter::empty());
    index.add_list(list(3), [fp(hooks[1])].into_iter());
    assert_eq!(ahead(&mut index, hooks[1]), [], "it is the newest");
    assert_eq!(ahead(&mut index, hooks[2]), [], "its list is not known");
    assert_eq!(ahead(&mut index, other), [], "it is no hook");
    assert_eq!(ahead(&mut index, hooks[0]), [list(2), list(3)]);
    assert_eq!(ahead(&mut index, hooks[0]), [], "they are being loaded");
    assert!(index.is_loading(list(2)) && !index.is_loading(list(1)));
    index.cache_list(list(2), vec![]);
    assert!(!index.is_loading(list(2)));
    (4..10).for_each(|n| index.add_list(list(n), std::iter::empty()));
    assert_eq!(ahead(&mut index, hooks[0]), [list(4), list(5)], "as many as there is room for");
}

#[test]
fn a_loaded_list_answers_and_is_not_asked_for_again() {
    let mut index = DedupeIndex::new(1 << 20);
    let hooks = hook_blocks(&index, 0, 2);
    index.add_list(list(1), hooks.iter().map(|&n| fp(n)));
    assert_eq!(index.lookup(fp(hooks[0])), Lookup::Hook(list(1)));
    index.cache_list(list(1), vec![(fp(hooks[0]), block(1)), (fp(hooks[0] + 1), block(2))]);
    assert_eq!(index.lookup(fp(hooks[0])), Lookup::Recent(block(1)));
    assert_eq!(index.lookup(fp(hooks[0] + 1)), Lookup::Recent(block(2)));
    assert_eq!(index.lookup(fp(hooks[1])), Lookup::Miss, "the loaded list does not have it");
    index.insert_recent(fp(hooks[0]), block(3));
    assert_eq!(index.lookup(fp(hooks[0])), Lookup::Recent(block(3)), "recent blocks go first");
    index.remove(fp(hooks[0] + 1), block(2));
    assert_eq!(index.lookup(fp(hooks[0] + 1)), Lookup::Miss);
}

#[test]
fn a_segment_given_back_takes_its_lists_along_until_it_is_used_anew() {
    let mut index = DedupeIndex::new(1 << 20);
    let hooks = hook_blocks(&index, 0, 4);
    let (old, other) = (ListId::new(SegmentId(5), 0), ListId::new(SegmentId(6), 0));
    index.add_list(old, [fp(hooks[0]), fp(hooks[1])].into_iter());
    index.add_list(other, [fp(hooks[2])].into_iter());
    index.cache_list(old, vec![(fp(hooks[1]), block(1))]);
    index.drop_lists_of_segment(SegmentId(5));
    assert_eq!(index.lookup(fp(hooks[0])), Lookup::Miss);
    assert_eq!(index.lookup(fp(hooks[1])), Lookup::Miss);
    assert_eq!(index.lookup(fp(hooks[2])), Lookup::Hook(other));
    index.add_list(old, [fp(hooks[3])].into_iter());
    assert_eq!(index.lookup(fp(hooks[3])), Lookup::Hook(old));
    assert_eq!(index.lookup(fp(hooks[0])), Lookup::Miss, "what the segment held before is gone for good");
    index.drop_lists_of_segment(SegmentId(5));
    assert_eq!(index.lookup(fp(hooks[3])), Lookup::Miss);
}

#[test]
fn many_segments_given_back_are_all_remembered() {
    let mut index = DedupeIndex::new(4 << 20);
    let count = 5000;
    let hooks = hook_blocks(&index, 0, 2 * count);
    let id = |i: usize| ListId::new(SegmentId(i as u32), 3);
    (0..count).for_each(|i| index.add_list(id(i), [fp(hooks[i])].into_iter()));
    let before = index.memory_used();
    for i in (0..count).filter(|i| i % 3 != 0) {
        index.drop_lists_of_segment(SegmentId(i as u32));
        if i % 3 == 1 {
            index.add_list(id(i), [fp(hooks[count + i])].into_iter());
        }
    }
    assert_eq!(index.memory_used(), before);
    for i in 0..count {
        let kept = i % 3 == 0;
        assert_eq!(index.lookup(fp(hooks[i])), if kept { Lookup::Hook(id(i)) } else { Lookup::Miss }, "{i}");
        let anew = i % 3 == 1;
        assert_eq!(index.lookup(fp(hooks[count + i])), if anew { Lookup::Hook(id(i)) } else { Lookup::Miss }, "{i}");
    }
}

#[test]
fn a_full_hook_table_and_a_full_ring_lose_the_oldest() {
    let mut hooks = Hooks::new(256 << 10);
    let index = DedupeIndex::new(0);
    let per_list = 8;
    let lists = 4 * hooks.capacity() as u64 / per_list;
    for n in 0..lists {
        hooks.begin_list(list(n));
        (0..per_list).for_each(|i| hooks.insert(index.key(fp(n * per_list + i))));
    }
    let kept = |from: u64, to: u64| {
        let found = (from * per_list..to * per_list)
            .filter(|&n| hooks.get(index.key(fp(n))).inspect(|&id| assert_eq!(id, list(n / per_list))).is_some());
        found.count() as f64 / ((to - from) * per_list) as f64
    };
    let full = hooks.capacity() as u64 / per_list;
    assert!(kept(lists - full / 2, lists) > 0.99);
    assert!(kept(lists - full * 9 / 10, lists - full / 2) > 0.85);
    assert!(kept(0, lists - 2 * full) < 0.01);
    // Lists without hooks push the others out of the ring.
    (0..hooks.lists() as u64).for_each(|n| hooks.begin_list(list(lists + n)));
    assert!((0..lists * per_list).all(|n| hooks.get(index.key(fp(n))).is_none()));
}

#[test]
fn list_numbers_may_wrap() {
    let mut hooks = Hooks::new(64 << 10);
    let index = DedupeIndex::new(0);
    hooks.set_newest(u32::MAX - 3);
    for n in 0..8 {
        hooks.begin_list(list(8 * n));
        hooks.insert(index.key(fp(n)));
    }
    for n in 0..8 {
        assert_eq!(hooks.get(index.key(fp(n))), Some(list(8 * n)));
        assert_eq!(hooks.after(index.key(fp(n))).next(), (n < 7).then(|| list(8 * n + 8)));
    }
    hooks.drop_segment(list(8).segment());
    hooks.drop_segment(list(48).segment());
    (1000..3000).for_each(|segment| hooks.drop_segment(SegmentId(segment)));
    for n in 0..8 {
        let gone = n == 1 || n == 6;
        assert_eq!(hooks.get(index.key(fp(n))), (!gone).then(|| list(8 * n)), "{n}");
    }
}

#[test]
fn loaded_lists_agree_with_a_model() {
    let mut lists = LoadedLists::new(16 << 10);
    let index = DedupeIndex::new(0);
    // Which list each key was last loaded with; a key leaves when that list leaves.
    let mut model: BTreeMap<Key, (u64, VirtualBlock)> = BTreeMap::new();
    let mut used: Vec<u64> = Vec::new();
    let mut random = Random(7);
    let (mut found, mut evicted) = (0, 0);
    for step in 0..20_000 {
        let n = random.below(40);
        match random.below(20) {
            0 => {
                let keys: Vec<(Key, VirtualBlock)> =
                    (0..random.below(100)).map(|i| (index.key(fp(n * 60 + i)), block(step * 100 + i))).collect();
                lists.insert(list(n), keys.clone());
                model.retain(|_, (of, _)| *of != n);
                used.retain(|&m| m != n);
                used.push(n);
                model.extend(keys.into_iter().map(|(key, block)| (key, (n, block))));
                // What the room did not suffice for must be the lists unused for longest.
                while used.len() > 1 && !lists.contains(list(used[0])) {
                    let oldest = used.remove(0);
                    model.retain(|_, (of, _)| *of != oldest);
                    evicted += 1;
                }
                assert!(used.iter().all(|&m| lists.contains(list(m))), "not the oldest left: step {step}");
            }
            1 if random.below(8) == 0 => {
                lists.drop_segment(list(n).segment());
                let gone = |m: u64| list(m).segment() == list(n).segment();
                model.retain(|_, (of, _)| !gone(*of));
                used.retain(|&m| !gone(m));
            }
            2 => {
                let key = index.key(fp(n * 60 + random.below(60)));
                if let Some((_, block)) = model.remove(&key) {
                    lists.remove(key, VirtualBlock(block.0 + 1));
                    assert_eq!(lists.get(key), Some(block));
                    lists.remove(key, block);
                    model.insert(key, (u64::MAX, VirtualBlock::NONE));
                }
                if let Some((of, _)) = model.get(&key)
                    && *of == u64::MAX
                {
                    // The look-up above counted as use of its list, which the model does not know any more.
                    model.remove(&key);
                    used = lists.by_use().into_iter().map(|id| (0..40).find(|&m| list(m) == id).unwrap()).collect();
                }
                assert_eq!(lists.get(key), None);
            }
            _ => {
                let key = index.key(fp(n * 60 + random.below(60)));
                let expected = model.get(&key).copied();
                assert_eq!(lists.get(key), expected.map(|(_, block)| block), "step {step}");
                if let Some((of, _)) = expected {
                    used.retain(|&m| m != of);
                    used.push(of);
                    found += 1;
                }
            }
        }
        assert_eq!(lists.by_use(), used.iter().map(|&m| list(m)).collect::<Vec<_>>());
        assert!(lists.memory_used() <= 16 << 10);
    }
    assert!(found > 1000 && evicted > 100, "{found} found, {evicted} evicted");
}

#[test]
fn a_list_longer_than_all_room_is_kept_in_part() {
    let mut index = DedupeIndex::new(0);
    let before = index.memory_used();
    index.cache_list(list(1), (0..100_000).map(|n| (fp(n), block(n))).collect());
    assert!(index.memory_used() <= before.max(BUDGET_MIN) + before / 16);
    assert_eq!(index.lookup(fp(0)), Lookup::Recent(block(0)));
    index.cache_list(list(2), (200_000..300_000).map(|n| (fp(n), block(n))).collect());
    assert_eq!(index.lookup(fp(0)), Lookup::Miss);
    assert_eq!(index.lookup(fp(200_000)), Lookup::Recent(block(200_000)));
}

/// Fixed overhead of the structures themselves, beyond the budget.
const SLACK: usize = 32 << 10;

#[test]
fn memory_stays_within_the_budget_whatever_comes() {
    for budget in [0, 1 << 20, 3 << 20, 10_000_000] {
        let mut index = DedupeIndex::new(budget);
        let total: u64 = if budget == 3 << 20 { 10_000_000 } else { 300_000 };
        for n in 0..total {
            // Numbers as fingerprints: this is about quantity, and the key is mixed anyway.
            let fingerprint = u128::from(n);
            index.insert_recent(fingerprint, block(n));
            if n % 512 == 511 {
                let id = list(n / 512);
                index.add_list(id, (n - 511..=n).map(u128::from));
                if n % 2048 == 2047 {
                    index.cache_list(id, (n - 511..=n).map(|n| (u128::from(n), block(n))).collect());
                }
                if n % 5 == 0 {
                    index.drop_lists_of_segment(SegmentId((n / 9000) as u32));
                }
            }
        }
        let (used, allowed) = (index.memory_used(), budget.max(BUDGET_MIN) + SLACK);
        assert!(used <= allowed, "{used} of {allowed}");
        assert!(used >= budget.max(BUDGET_MIN) / 10 * 8, "the budget is used: {used} of {budget}");
        let newest = u128::from(total - 1);
        assert_eq!(index.lookup(newest), Lookup::Recent(block(total - 1)));
    }
}

#[test]
fn a_hundred_mebibytes_have_room_for_the_hooks_of_a_tebibyte() {
    let index = DedupeIndex::new(100 << 20);
    let blocks_of_2_tib = (2u64 << 40) / crate::units::BLOCK_BYTES;
    assert!(index.hooks.capacity() as u64 >= blocks_of_2_tib / HOOK_SAMPLING);
    assert!(index.hooks.lists() as u64 >= blocks_of_2_tib / 512, "for lists of 512 blocks");
    assert!(index.memory_used() <= (100 << 20) + SLACK);
}

/// A caller with lists on disk: looks up a batch, loads what the hooks name and what follows, looks up again.
struct Store {
    index: DedupeIndex,
    lists: HashMap<ListId, Vec<(u128, VirtualBlock)>>,
    loads: usize,
}

impl Store {
    const PART: usize = 512;

    fn write_stream(&mut self, from: u64, blocks: u64) {
        for n in from..from + blocks {
            self.index.insert_recent(fp(n), block(n));
            if (n + 1).is_multiple_of(Self::PART as u64) {
                let entries: Vec<_> = (n + 1 - Self::PART as u64..=n).map(|n| (fp(n), block(n))).collect();
                let id = list(n / Self::PART as u64);
                self.index.add_list(id, entries.iter().map(|&(f, _)| f));
                self.lists.insert(id, entries);
            }
        }
    }

    fn load(&mut self, id: ListId) {
        self.loads += 1;
        self.index.cache_list(id, self.lists[&id].clone());
    }

    /// How many of these blocks are found where they are.
    fn found(&mut self, batch: &[u64]) -> usize {
        for &n in batch {
            let answer = self.index.lookup(fp(n));
            if let Lookup::Hook(id) = answer {
                self.load(id);
            }
            if answer != Lookup::Miss {
                let mut ahead = Vec::new();
                self.index.read_ahead(fp(n), &mut ahead);
                ahead.into_iter().for_each(|next| self.load(next));
            }
        }
        batch.iter().filter(|&&n| self.index.lookup(fp(n)) == Lookup::Recent(block(n))).count()
    }
}

#[test]
fn a_copy_of_an_old_stream_is_found_through_hooks() {
    let mut store = Store { index: DedupeIndex::new(2 << 20), lists: HashMap::new(), loads: 0 };
    // The window holds 16 Ki blocks: the first stream is forgotten by the time it comes again.
    let (old, between) = (40_960, 204_800);
    store.write_stream(0, old);
    store.write_stream(old, between);
    let recent = (0..old).filter(|&n| matches!(store.index.lookup(fp(n)), Lookup::Recent(_))).count();
    assert!(recent < 100, "{recent} still in the window");
    for batch in [64, 256] {
        store.loads = 0;
        // From the middle of a list to the middle of another, in order.
        let copy: Vec<u64> = (1000..40_000).collect();
        let found: usize = copy.chunks(batch).map(|blocks| store.found(blocks)).sum();
        assert!(found as f64 / copy.len() as f64 > 0.99, "{found} of {} in batches of {batch}", copy.len());
        assert!(store.loads <= 2 * copy.len() / Store::PART, "{} loads", store.loads);
        // Push the loaded lists out again.
        (200..480).for_each(|n| store.load(list(n)));
    }
    // New data costs neither loads nor false hits.
    store.loads = 0;
    let found: usize = (1 << 40..(1 << 40) + 50_000u64).collect::<Vec<_>>().chunks(256).map(|b| store.found(b)).sum();
    assert_eq!((found, store.loads), (0, 0));
}

#[test]
fn truncated_fingerprints_collide() {
    let mut index = DedupeIndex::new(1 << 20);
    index.set_truncation(Some(8));
    (0..10_000).for_each(|n| index.insert_recent(fp(n), block(n)));
    let answers: BTreeSet<u64> = (20_000..30_000)
        .map(|n| match index.lookup(fp(n)) {
            Lookup::Recent(block) => block.0,
            other => panic!("every fingerprint has been seen: {other:?}"),
        })
        .collect();
    assert_eq!(answers.len(), 256);
    // Hooks and lists obey as well.
    let mut index = DedupeIndex::new(1 << 20);
    index.set_truncation(Some(10));
    index.add_list(list(1), (0..10_000).map(fp));
    let hits = (20_000..30_000).filter(|&n| index.lookup(fp(n)) == Lookup::Hook(list(1))).count();
    assert!((40..400).contains(&hits), "about one in 64: {hits}");
    index.set_truncation(Some(128));
    assert_eq!((20_000..30_000).filter(|&n| index.lookup(fp(n)) != Lookup::Miss).count(), 0);
    index.set_truncation(None);
    assert_eq!((0..10_000).filter(|&n| index.lookup(fp(n)) != Lookup::Miss).count(), 0);
    index.set_truncation(Some(0));
    index.insert_recent(1, block(5));
    assert_eq!(index.lookup(2), Lookup::Recent(block(5)));
}
