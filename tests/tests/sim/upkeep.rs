//! What a pool does and tells by itself: scrubs by the calendar, a spare that is used up.

use std::sync::Arc;
use std::time::Duration;

use blockdev::env::{Env, SimScope};
use blockdev::pool::PoolConfig;

use super::cut_short::noise;
use super::harness::memory_pool;

const MIB: u64 = 1 << 20;

#[test]
fn scrubs_come_by_the_calendar() {
    let scope = SimScope::new(1);
    let env: Arc<dyn Env> = scope.env();
    let work = async {
        let day = Duration::from_secs(24 * 3600);
        let pool = memory_pool(&env, 6, PoolConfig { scrub_interval: 7 * day, ..PoolConfig::default() }).await;
        pool.create_volume("v", 16 * MIB).await.expect("a volume");
        let device = pool.open_volume("v").expect("a device");
        device.write(0, noise(1, 4 << 20), false).await.expect("written");
        device.flush().await.expect("flushed");
        let begun = async || pool.status().await.scrub.begun_s;
        let mut last = begun().await;
        env.sleep(7 * day).await;
        for week in 1..=4 {
            env.sleep(day / 8).await;
            let scrub = pool.status().await.scrub;
            assert!(scrub.complete && !scrub.running && scrub.done >= 4 << 20, "week {week}: {scrub:?}");
            assert!(scrub.begun_s > last, "week {week}: {scrub:?}, before {last:?}");
            last = scrub.begun_s;
            env.sleep(3 * day).await;
            assert_eq!(begun().await, last, "week {week}: too early");
            env.sleep(4 * day - day / 8).await;
        }
        pool.close().await.expect("closed");
        drop((device, pool));
    };
    scope.run_until(work, 400_000_000).unwrap_or_else(|stall| panic!("{stall}"));
}

#[test]
fn a_spare_that_is_used_up_is_told() {
    let scope = SimScope::new(2);
    let env: Arc<dyn Env> = scope.env();
    let work = async {
        let pool = memory_pool(&env, 6, PoolConfig::default()).await;
        pool.create_volume("v", 1 << 30).await.expect("a volume");
        let device = pool.open_volume("v").expect("a device");
        let alerts = async || pool.status().await.alerts.into_iter().map(|a| a.code).collect::<Vec<_>>();
        let told = async || alerts().await.contains(&"pool.spare".to_owned());
        let mut at = 0;
        while device.write(at, noise(at, 1 << 20), false).await.is_ok() {
            at += MIB;
            assert!(at < 1 << 30, "never full");
        }
        assert!(!told().await, "the spare is there: {:?}", alerts().await);
        pool.fail_disk(3).await.expect("declared failed");
        let mut left = 2000;
        while pool.status().await.redundancy.none > 0 || pool.status().await.rebuild.is_some() {
            env.sleep(Duration::from_millis(100)).await;
            left -= 1;
            assert!(left > 0, "the rebuild does not end: {:?}", pool.status().await);
        }
        assert!(told().await, "{:?}", alerts().await);
        // Room for another one is made.
        device.discard(0, at / 2).await.expect("discarded");
        device.flush().await.expect("flushed");
        let mut left = 2000;
        while told().await {
            env.sleep(Duration::from_millis(100)).await;
            left -= 1;
            assert!(left > 0, "not even when half is discarded: {:?}", pool.status().await);
        }
        pool.close().await.expect("closed");
        drop((device, pool));
    };
    scope.run_until(work, 100_000_000).unwrap_or_else(|stall| panic!("{stall}"));
}
