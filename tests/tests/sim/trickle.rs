//! Hosts that write little and never ask for a flush.

use std::time::Duration;

use blockdev::env::SimScope;
use blockdev::pool::PoolConfig;

use super::cut_short::noise;
use super::harness::memory_pool;

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// Each write comes before the log interval has passed since the last one; the log is written in time nevertheless, and not at all when there is nothing.
#[test]
fn the_log_does_not_wait_for_a_pause() {
    let scope = SimScope::new(1);
    let env = scope.env();
    let work = async {
        let hour = Duration::from_secs(3600);
        let config = PoolConfig { checkpoint_interval: 2 * hour, ..PoolConfig::default() };
        let (interval, pause) = (config.log_interval, config.log_interval / 5);
        let pool = memory_pool(&env, 4, config).await;
        pool.create_volume("v", 16 * MIB).await.expect("a volume");
        let device = pool.open_volume("v").expect("a device");
        let entries = async || pool.stats().await.log_records;
        let before = entries().await;
        for n in 0..50u64 {
            device.write(n * BLOCK as u64, noise(n, BLOCK), false).await.expect("written");
            env.sleep(pause).await;
        }
        // Every so often, and not for each write.
        let written = entries().await - before;
        assert!((8..=12).contains(&written), "{written} times in ten intervals");
        env.sleep(2 * interval).await;
        let all = entries().await;
        env.sleep(hour).await;
        assert_eq!(entries().await, all, "nothing was written");
        pool.close().await.expect("closed");
        drop((device, pool));
    };
    scope.run_until(work, 10_000_000).unwrap_or_else(|stall| panic!("{stall}"));
}
