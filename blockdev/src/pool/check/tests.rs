use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;

use super::*;
use crate::env::Rng;
use crate::env::sim::SimScope;
use crate::pool::Pool;
use crate::pool::test_support::empty_pool;

const VOLUME: u64 = 64 << 20;

/// A pool with two volumes that share half of what they hold, a few blocks in each of several leaves of their maps.
async fn pool(env: Arc<dyn Env>) -> Pool {
    let pool = empty_pool(env).await;
    for (volume, seeds) in [("a", 0..4u64), ("b", 2..6)] {
        pool.create_volume(volume, VOLUME).await.unwrap();
        let device = pool.open_volume(volume).unwrap();
        for seed in seeds {
            let mut data = vec![0; 512 << 10];
            Rng::new(seed).fill(&mut data);
            device.write(seed * (8 << 20), Bytes::from(data), false).await.unwrap();
        }
    }
    pool
}

/// What a check finds that counts so many references at a time; and how often it showed how far it was, with the last figure.
async fn checked(pool: &Pool, at_once: u64) -> (CheckReport, usize, u64) {
    let engine = pool.engine();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    engine.pins.fetch_add(1, Ordering::AcqRel);
    engine.flush().await.unwrap();
    engine.checkpoint().await.unwrap();
    let progress: Progress = Arc::new(move |done, total| note.lock().push((done, total)));
    let report = check_counting(&engine.env, &engine.array, engine.uuid, at_once, progress).await.unwrap();
    engine.pins.fetch_sub(1, Ordering::AcqRel);
    let seen = std::mem::take(&mut *seen.lock());
    assert!(seen.is_sorted(), "progress goes backwards: {seen:?}");
    let (done, total) = *seen.last().unwrap();
    assert!(seen.iter().all(|&(d, t)| d <= t && t == total), "progress goes beyond its end: {seen:?}");
    assert_eq!(done, total, "the end is not reached");
    (report, seen.len(), total)
}

fn text(report: &CheckReport) -> String {
    serde_json::to_string(report).unwrap()
}

#[test]
fn counting_in_ranges_finds_what_counting_at_once_finds() {
    let scope = SimScope::new(7);
    let work = async {
        let pool = pool(scope.env()).await;
        let (whole, shown, total) = checked(&pool, COUNTED_AT_ONCE).await;
        assert!(whole.is_clean(), "{}", text(&whole));
        assert_eq!((whole.volumes, whole.mapped_blocks), (2, 2 * 4 * 128));
        let table = total - whole.mapped_blocks;
        assert!(table > 768 && table.is_multiple_of(128), "{table}");
        for at_once in [1, 128, 300, 640, table, u64::MAX >> 1] {
            let (ranges, often, steps) = checked(&pool, at_once).await;
            assert_eq!(text(&ranges), text(&whole), "{at_once} at a time");
            let passes = table.div_ceil(at_once.next_multiple_of(128));
            assert_eq!(steps, passes * whole.mapped_blocks + table, "{at_once} at a time");
            assert!(often >= shown, "{at_once} at a time");
        }

        // One reference too many in the first and in the last page that is in use, and a volume that holds more than it says.
        let engine = pool.engine();
        let wrong: Vec<VirtualBlock> = {
            let mut used = Vec::new();
            for block in (1..table).map(VirtualBlock) {
                let entry = engine.with_state(|s| s.table.entry(block)).await.unwrap();
                if entry.kind == BlockKind::Data && entry.refcount > 0 {
                    used.push(block);
                }
            }
            vec![used[0], used[used.len() - 1]]
        };
        for &block in &wrong {
            engine.with_state_mut(|s| Ok(s.table.update(block, |e| e.refcount += 1)?)).await.unwrap();
        }
        engine.state.write().volumes.values_mut().for_each(|v| v.mapped -= 5);
        // Something for the next checkpoint.
        pool.set_attachment("a", Some("nbd".into())).await.unwrap();
        let (whole, ..) = checked(&pool, COUNTED_AT_ONCE).await;
        let codes: Vec<&str> = whole.findings.iter().map(|f| f.code.as_str()).collect();
        assert_eq!(
            codes,
            ["volume.mapped", "volume.mapped", "refcount.high", "refcount.high", "pool.reduction"],
            "{}",
            text(&whole)
        );
        for (finding, block) in whole.findings[2..].iter().zip(&wrong) {
            assert!(finding.message.contains(&format!("virtual block {block}:")), "{}", finding.message);
        }
        for at_once in [128, 512] {
            let (ranges, ..) = checked(&pool, at_once).await;
            assert_eq!(text(&ranges), text(&whole), "{at_once} at a time");
        }
        pool.close().await.unwrap();
    };
    scope.run_until(work, 50_000_000).unwrap();
}
