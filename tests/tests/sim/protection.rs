//! What snapshots expire by: the pool's clock, across lives in which the machine's shows anything.

use std::time::Duration;

use blockdev::env::sim::{SimEnv, SimScope};
use blockdev::error::ErrorKind;
use blockdev::pool::{Kept, Pool};

use super::harness::{Appliance, Faults, Scenario, check};

const DAY_S: u64 = 86_400;
/// When it all begins.
const BEGIN_S: u64 = 1_800_000_000;

/// One life of the pool in which the machine's clock begins at `wall_s`; it ends by a crash.
fn life<F: Future<Output = ()>>(appliance: &mut Appliance, seed: u64, wall_s: u64, work: impl FnOnce(Pool) -> F) {
    let scope = SimScope::from(SimEnv::starting_at(seed, wall_s));
    appliance.attach(&scope);
    let (disks, mut config) = (appliance.all_disks(), appliance.scenario.config.clone());
    config.checkpoint_interval = Duration::from_secs(3600);
    let env = scope.env();
    let work = async {
        let pool = Pool::open(env, disks, config).await.expect("opened");
        work(pool).await;
    };
    scope.run_until(work, 30_000_000).expect("done");
    scope.kill_all_tasks();
    appliance.cut_power();
}

async fn sleep(pool: &Pool, seconds: u64) {
    pool.engine().env.sleep(Duration::from_secs(seconds)).await;
}

#[test]
fn nobody_makes_a_secure_snapshot_expire_by_setting_the_clock() {
    let scenario = Scenario { volumes: 1, faults: Faults::None, ..Scenario::random(21) };
    let mut appliance = Appliance::new(scenario).expect("made");
    let kept = Kept { expires_in_s: Some(10 * DAY_S), secure: true, ..Kept::default() };
    life(&mut appliance, 1, BEGIN_S, |pool| async move {
        pool.create_snapshots(&["v0@vault".into()], &kept).await.expect("taken");
        let shorter = pool.keep_snapshot("v0@vault", Some(DAY_S), false).await.expect_err("shorter");
        assert_eq!(shorter.kind(), ErrorKind::Busy, "{shorter}");
        pool.keep_snapshot("v0@vault", None, false).await.expect_err("never, but secure");
        assert_eq!(pool.engine().clock_s(), pool.engine().env.wall_clock_s());
    });
    // Ten years ahead, long ago, twenty years ahead: eight days in all.
    for (seed, wall_s, days) in [(2, BEGIN_S + 3650 * DAY_S, 3), (3, 0, 1), (4, BEGIN_S + 7300 * DAY_S, 4)] {
        life(&mut appliance, seed, wall_s, |pool| async move {
            for _ in 0..days {
                sleep(&pool, DAY_S).await;
                assert!(pool.delete_expired(10).await.expect("looked").is_empty());
                let refused = pool.delete_snapshot("v0@vault").await.expect_err("secure");
                assert!(refused.to_string().contains("before it expires"), "{refused}");
                pool.delete_volume("v0", true).await.expect_err("secure");
            }
            check(&pool, false).await.expect("sound");
        });
    }
    // Two are left, and what each crash took, which is an hour and a bit.
    life(&mut appliance, 5, BEGIN_S + 3650 * DAY_S, |pool| async move {
        let mut slept = 0;
        while pool.delete_snapshot("v0@vault").await.is_err() {
            sleep(&pool, 3600).await;
            slept += 3600;
        }
        assert!((2 * DAY_S..2 * DAY_S + 8 * 3600).contains(&slept), "{slept} s");
        // Nothing expires any more: the clock is the machine's again.
        assert_eq!(pool.engine().clock_s(), pool.engine().env.wall_clock_s());
        check(&pool, false).await.expect("sound");
    });
}

#[test]
fn with_a_right_clock_snapshots_expire_to_the_second() {
    let scenario = Scenario { volumes: 1, faults: Faults::None, ..Scenario::random(22) };
    let mut appliance = Appliance::new(scenario).expect("made");
    life(&mut appliance, 1, BEGIN_S, |pool| async move {
        for (name, seconds) in [("v0@a", 100), ("v0@b", 50), ("v0@c", 1000)] {
            let kept = Kept { expires_in_s: Some(seconds), ..Kept::default() };
            pool.create_snapshots(&[name.into()], &kept).await.expect("taken");
        }
        let expires = pool.snapshot_info("v0@c").await.expect("there").expires_s;
        assert_eq!(expires, Some(pool.engine().env.wall_clock_s() + 1000));
        let gone = || async { pool.delete_expired(10).await.expect("looked") };
        sleep(&pool, 49).await;
        assert!(gone().await.is_empty());
        sleep(&pool, 2).await;
        assert_eq!(gone().await, ["v0@b"]);
        // What is not secure can be kept for less, or for ever.
        pool.keep_snapshot("v0@a", None, false).await.expect("for ever");
        pool.keep_snapshot("v0@c", Some(1), false).await.expect("shorter");
        pool.set_attachment("v0@c", Some("nbd".into())).await.expect("attached");
        sleep(&pool, 100).await;
        assert!(gone().await.is_empty(), "what is attached stays");
        pool.set_attachment("v0@c", None).await.expect("detached");
        assert_eq!(gone().await, ["v0@c"]);
        let left: Vec<String> = pool.snapshots(None).expect("listed").into_iter().map(|s| s.name).collect();
        assert_eq!(left, ["v0@a"]);
        // Only what was meant goes: of the identity and the rule that were seen.
        let kept = Kept { rule: 7, ..Kept::default() };
        let taken = pool.create_snapshots(&["v0@r".into()], &kept).await.expect("taken")[0].id;
        assert!(pool.delete_of_rule(&[(taken, 8), (taken + 1, 7)]).await.expect("looked").is_empty());
        pool.keep_snapshot("v0@r", None, false).await.expect("kept");
        assert!(pool.delete_of_rule(&[(taken, 7)]).await.expect("looked").is_empty(), "somebody keeps it");
        let taken = pool.create_snapshots(&["v0@s".into()], &kept).await.expect("taken")[0].id;
        assert_eq!(pool.delete_of_rule(&[(taken, 7)]).await.expect("looked"), ["v0@s"]);
    });
}
