use bytes::Bytes;

use crate::env::Rng;
use crate::env::sim::SimScope;
use crate::pool::test_support::empty_pool;
use crate::report::VolumeInfo;

/// Bytes that a map leaf covers.
const LEAF: u64 = 2 << 20;

fn noise(seed: u64, len: usize) -> Bytes {
    let mut data = vec![0; len];
    Rng::new(seed).fill(&mut data);
    Bytes::from(data)
}

/// Nothing is assumed of the rest from a part: what is shared lies in other leaves than what is not, far apart in a thin volume.
#[test]
fn unique_data_of_a_sparse_volume_is_counted() {
    let scope = SimScope::new(3);
    let work = async {
        let pool = empty_pool(scope.env()).await;
        for name in ["a", "b"] {
            pool.create_volume(name, 1 << 40).await.unwrap();
        }
        let (a, b) = (pool.open_volume("a").unwrap(), pool.open_volume("b").unwrap());
        // Six leaves next to each other: the first of its own, the others also in the other volume.
        for i in 0..6 {
            let data = noise(i, 64 << 10);
            a.write(i * LEAF, data.clone(), false).await.unwrap();
            if i > 0 {
                b.write((900 << 30) + i * LEAF, data, false).await.unwrap();
            }
        }
        // One block four times.
        let twice = noise(99, 4096).repeat(4);
        a.write(500 << 30, twice.into(), false).await.unwrap();
        a.flush().await.unwrap();
        b.flush().await.unwrap();
        let kib = |info: &VolumeInfo| (info.mapped >> 10, info.unique.unwrap() >> 10, info.estimated);
        let (a, b) = (pool.volume_info("a").await.unwrap(), pool.volume_info("b").await.unwrap());
        assert_eq!(kib(&a), (6 * 64 + 16, 64, false));
        assert_eq!(kib(&b), (5 * 64, 0, false));
        // Half of what is shared, and three of four equal blocks; noise is stored as it is, but for what frames take.
        let saved = (5 * 32 + 12) << 10;
        assert!(a.savings.unwrap().abs_diff(saved) < 8 << 10, "{a:?}");
        assert!(b.savings.unwrap().abs_diff((5 * 32) << 10) < 8 << 10, "{b:?}");
        // Beyond what is counted it estimates, and says so; leaves that stand alone weigh no more than those that do not.
        let large = pool.open_volume("b").unwrap();
        for i in 0..600 {
            // Next to each other: what is also in the other volume.
            large.write(i * LEAF, noise(1, 64 << 10), false).await.unwrap();
        }
        for i in 0..60 {
            large.write((10 << 30) + i * (5 << 30), noise(1000 + i, 64 << 10), false).await.unwrap();
        }
        large.flush().await.unwrap();
        let info = pool.volume_info("b").await.unwrap();
        let truth = 60 * (64 << 10);
        assert!(info.estimated, "{info:?}");
        assert!(info.unique.unwrap().abs_diff(truth) < truth / 4, "{info:?}");
        pool.close().await.unwrap();
    };
    scope.run_until(work, 100_000_000).unwrap_or_else(|stall| panic!("{stall}"));
}
