//! Data that nobody changes is compressed harder, once, where that gains something; what it is stays what it was.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use blockdev::disk::{Disk, MemoryDisk};
use blockdev::env::{Rng, SimScope};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::{Compression, Tolerance};
use bytes::Bytes;

use super::cut_short::noise;

const MIB: u64 = 1 << 20;
const PIECE: usize = 256 << 10;

/// Words of a small language, put together at random.
fn prose(seed: u64, len: usize) -> Bytes {
    let mut words = Rng::new(99);
    let word = |rng: &mut Rng| (0..rng.between(2, 9)).map(|_| b'a' + rng.below(26) as u8).collect::<Vec<u8>>();
    let vocabulary: Vec<Vec<u8>> = (0..3000).map(|_| word(&mut words)).collect();
    let mut rng = Rng::new(seed);
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        // Some are far more frequent than others.
        let among = 1 + rng.below(3000) as usize;
        out.extend_from_slice(&vocabulary[rng.index(among)]);
        out.push(b' ');
    }
    out.truncate(len);
    Bytes::from(out)
}

#[test]
fn what_stays_as_it_is_comes_to_take_less() {
    let scope = SimScope::new(1);
    let env = scope.env();
    let work = async {
        let disks: Vec<Arc<dyn Disk>> =
            (0..4).map(|i| Arc::new(MemoryDisk::new(format!("d{i}"), 48 * MIB)) as Arc<dyn Disk>).collect();
        let (tolerance, chunk_size, strip_size) = (Tolerance::Single, Some(256 << 10), Some(16 << 10));
        let options = CreateOptions { name: "tank".into(), tolerance, chunk_size, strip_size, force: false };
        Pool::create(env.clone(), disks.clone(), options).await.expect("created");
        let hour = Duration::from_secs(3600);
        let config = PoolConfig { memory: 16 << 20, recompress_after: Some(hour), ..PoolConfig::default() };
        let pool = Pool::open(env.clone(), disks.clone(), config.clone()).await.expect("opened");
        let fill = async |name: &str, content: fn(u64, usize) -> Bytes| {
            pool.create_volume(name, 16 * MIB).await.expect("a volume");
            let device = pool.open_volume(name).expect("a device");
            for at in (0..16 * MIB).step_by(PIECE) {
                device.write(at, content(at, PIECE), false).await.expect("written");
            }
            device.flush().await.expect("flushed");
        };
        fill("prose", prose).await;
        let stored = || pool.engine().space().used;
        let done = || pool.engine().counters.recompressed.load(Ordering::Relaxed);
        let (before, noise_before) = (stored(), done());
        env.sleep(hour / 2).await;
        assert_eq!((done(), noise_before), (0, 0), "not yet");
        // Nor while the processors have other work.
        scope.set_busy(true);
        env.sleep(hour).await;
        assert_eq!(done(), 0, "compressed beside other work");
        scope.set_busy(false);
        env.sleep(hour / 2).await;
        let after = stored();
        assert!(after * 100 < before * 92, "{before} bytes before, {after} after");
        let (all, again) = (done(), hour * 4);
        assert!(all > before / 2, "{all} of {before} bytes");
        env.sleep(again).await;
        assert_eq!(done(), all, "once");
        let device = pool.open_volume("prose").expect("a device");
        for at in (0..16 * MIB).step_by(PIECE) {
            assert_eq!(device.read(at, PIECE).await.expect("read"), prose(at, PIECE), "{at}");
        }
        // Where nothing is gained, nothing is moved.
        fill("noise", noise).await;
        env.sleep(hour * 3).await;
        assert_eq!(done(), all);
        let report = pool.check(Arc::new(|_, _| {})).await.expect("checked");
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        pool.close().await.expect("closed");
        drop((device, pool));

        // Nor where nobody asked for it.
        for config in [
            PoolConfig { recompress_after: None, ..config.clone() },
            PoolConfig { compression: Compression::Lz4, ..config.clone() },
        ] {
            let pool = Pool::open(env.clone(), disks.clone(), config).await.expect("opened");
            pool.create_volume("more", 4 * MIB).await.expect("a volume");
            let device = pool.open_volume("more").expect("a device");
            device.write(0, prose(7, 4 * MIB as usize), false).await.expect("written");
            env.sleep(hour * 3).await;
            assert_eq!(pool.engine().counters.recompressed.load(Ordering::Relaxed), 0);
            drop(device);
            pool.delete_volume("more", false).await.expect("deleted");
            pool.close().await.expect("closed");
        }
    };
    scope.run_until(work, 400_000_000).unwrap_or_else(|stall| panic!("{stall}"));
}
