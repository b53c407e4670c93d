//! The environment of the product: the system's clock, a tokio runtime for tasks, own threads for computing.

use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::{BoxFuture, Env, ProcessorTimes, Rng};

type Work = Box<dyn FnOnce() + Send>;

/// Tasks on a tokio runtime, computing on threads of its own named `ashlar-compute-N`.
///
/// The threads end once the environment is dropped and the work given to them before is done.
pub struct RealEnv {
    handle: Handle,
    start: Instant,
    work: Sender<Work>,
    threads: usize,
    randomness: Mutex<Rng>,
}

impl RealEnv {
    /// Starts `compute_threads` threads (at least one) beside the runtime of `handle`, which must have its timer
    /// enabled.
    ///
    /// # Panics
    /// When the system refuses to start a single thread. When it refuses only some, it works with those it has.
    pub fn new(handle: Handle, compute_threads: usize) -> Arc<Self> {
        let (work, queue) = crossbeam_channel::unbounded();
        let wanted = compute_threads.max(1);
        let mut threads = 0;
        for number in 0..wanted {
            let queue = queue.clone();
            let builder = std::thread::Builder::new().name(format!("ashlar-compute-{number}"));
            match builder.spawn(move || run_queue(&queue)) {
                Ok(_) => threads += 1,
                Err(error) => {
                    assert!(threads > 0, "cannot start a compute thread: {error}");
                    tracing::warn!(%error, wanted, started = threads, "cannot start all compute threads");
                    break;
                }
            }
        }
        let randomness = Mutex::new(Rng::new(system_seed()));
        Arc::new(Self { handle, start: Instant::now(), work, threads, randomness })
    }
}

impl Env for RealEnv {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_clock_s(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        // Tied to the runtime here, so that the future may be polled anywhere.
        let _entered = self.handle.enter();
        Box::pin(tokio::time::sleep(duration))
    }

    fn spawn(&self, task: BoxFuture<()>) {
        self.handle.spawn(task);
    }

    fn compute(&self, work: Work) {
        // Fails only when every thread is gone, which dropping `work` tells to whoever waits for it.
        let _ = self.work.send(work);
    }

    fn parallelism(&self) -> usize {
        self.threads
    }

    fn processors(&self) -> Option<ProcessorTimes> {
        ProcessorTimes::of_stat(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn random_u64(&self) -> u64 {
        self.randomness.lock().u64()
    }
}

fn run_queue(queue: &Receiver<Work>) {
    for work in queue {
        // What the work was doing is lost with it; whoever waits for its result sees that no result comes.
        if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(work)) {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
            tracing::error!(panic = text, "compute work panicked");
        }
    }
}

/// A seed from the system's random device; from the clock and the process's hash keys where there is none.
fn system_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let mut bytes = [0; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut device| device.read_exact(&mut bytes));
    let device = if read.is_ok() { u64::from_le_bytes(bytes) } else { 0 };
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    device ^ RandomState::new().hash_one(clock)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::env::compute;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    }

    #[test]
    fn tasks_sleep_and_clocks_advance() {
        let runtime = runtime();
        let env = RealEnv::new(runtime.handle().clone(), 1);
        let (send, receive) = tokio::sync::oneshot::channel();
        let inner: Arc<dyn Env> = env.clone();
        env.spawn(Box::pin(async move {
            let before = inner.now();
            inner.sleep(Duration::from_millis(20)).await;
            send.send(inner.now() - before).unwrap();
        }));
        assert!(receive.blocking_recv().unwrap() >= Duration::from_millis(20));
        let without_timer = tokio::runtime::Builder::new_current_thread().build().unwrap();
        without_timer.block_on(env.sleep(Duration::from_millis(1)));
        assert!(env.wall_clock_s() > 1_700_000_000);
        assert_ne!(env.random_u64(), env.random_u64());
        assert_ne!(RealEnv::new(runtime.handle().clone(), 1).random_u64(), env.random_u64());
    }

    #[test]
    fn compute_runs_on_its_own_named_threads_in_parallel() {
        let runtime = runtime();
        let env: Arc<dyn Env> = RealEnv::new(runtime.handle().clone(), 2);
        assert_eq!(env.parallelism(), 2);
        let barrier = Arc::new(std::sync::Barrier::new(2));
        let names = runtime.block_on(async {
            let meet = || {
                let barrier = barrier.clone();
                compute(&env, move || {
                    barrier.wait();
                    std::thread::current().name().map(str::to_owned)
                })
            };
            let (first, second) = futures::future::join(meet(), meet()).await;
            [first.flatten().unwrap(), second.flatten().unwrap()]
        });
        let mut names = names.to_vec();
        names.sort();
        assert_eq!(names, ["ashlar-compute-0", "ashlar-compute-1"]);
    }

    #[test]
    fn a_panic_in_work_leaves_the_threads_alive() {
        let runtime = runtime();
        let env: Arc<dyn Env> = RealEnv::new(runtime.handle().clone(), 1);
        runtime.block_on(async {
            for round in 0..3 {
                assert_eq!(compute::<u32>(&env, || panic!("planned panic of a test")).await, None);
                assert_eq!(compute(&env, move || round).await, Some(round));
            }
        });
    }

    /// Counts the threads that end.
    struct AtExit(Arc<AtomicUsize>, Sender<()>);

    impl Drop for AtExit {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
            let _ = self.1.send(());
        }
    }

    thread_local! {
        static AT_EXIT: std::cell::RefCell<Option<AtExit>> = const { std::cell::RefCell::new(None) };
    }

    #[test]
    fn threads_end_with_the_environment_after_their_work() {
        let runtime = runtime();
        let env = RealEnv::new(runtime.handle().clone(), 2);
        let (ended, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (send, receive) = crossbeam_channel::unbounded();
        let barrier = Arc::new(std::sync::Barrier::new(2));
        for _ in 0..2 {
            let (ended, send, barrier) = (ended.clone(), send.clone(), barrier.clone());
            env.compute(Box::new(move || {
                AT_EXIT.set(Some(AtExit(ended, send)));
                barrier.wait();
            }));
        }
        for _ in 0..50 {
            let done = done.clone();
            env.compute(Box::new(move || {
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        assert_eq!(ended.load(Ordering::SeqCst), 0);
        drop(env);
        receive.recv().unwrap();
        receive.recv().unwrap();
        assert_eq!((ended.load(Ordering::SeqCst), done.load(Ordering::SeqCst)), (2, 50));
    }

    #[test]
    fn without_threads_asked_for_there_is_one() {
        let runtime = runtime();
        assert_eq!(RealEnv::new(runtime.handle().clone(), 0).parallelism(), 1);
    }
}
