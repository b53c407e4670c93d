//! The environment the engine runs on: clock, randomness, tasks. Real threads in the product, one seed in the simulator.
//!
//! Nothing in the engine may ask the operating system for time, random numbers or threads in any other way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub mod lent;
mod processors;
pub mod real;
pub mod rng;
pub mod sim;

pub use processors::ProcessorTimes;
pub use real::RealEnv;
pub use rng::Rng;
pub use sim::{SimEnv, SimScope, SimStall};

/// A boxed future that can move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Clock, randomness and tasks.
pub trait Env: Send + Sync + 'static {
    /// Monotonic time since an arbitrary start.
    fn now(&self) -> Duration;

    /// Wall-clock time in seconds since 1970, for people only.
    fn wall_clock_s(&self) -> u64;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> BoxFuture<()>;

    /// Runs `task` concurrently until it ends by itself.
    fn spawn(&self, task: BoxFuture<()>);

    /// Runs processor-bound `work` away from the tasks (on its own threads in the product, in place in the simulator).
    fn compute(&self, work: Box<dyn FnOnce() + Send>);

    /// How many pieces of [`Env::compute`] work run at the same time.
    fn parallelism(&self) -> usize;

    /// What the machine's processors did so far, for all programs; none where that is not known.
    fn processors(&self) -> Option<ProcessorTimes> {
        None
    }

    /// A random number.
    fn random_u64(&self) -> u64;
}

/// Runs `work` by [`Env::compute`] and gives its result. None when the environment is being torn down.
pub async fn compute<T: Send + 'static>(env: &Arc<dyn Env>, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (send, receive) = tokio::sync::oneshot::channel();
    env.compute(Box::new(move || {
        let _ = send.send(work());
    }));
    receive.await.ok()
}
