//! The simulated environment: one thread, one seed, virtual time.
//!
//! A run is a sequence of *steps*. Each step polls one task, drawn at random from those that are ready, and costs a
//! little random virtual time; now and then the whole machine pauses for longer. Timers that have become due by then
//! are fired before the next step, so I/O completes between any two steps, not only when everybody waits. When no task
//! is ready, time jumps to the next timer. The same seed and the same tasks give the same steps, which
//! [`SimEnv::trace`] lets tests verify.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use super::{BoxFuture, Env, ProcessorTimes, Rng};

mod timers;
pub(crate) use timers::TimerTarget;
use timers::{Action, TimerKey, Timers};

/// Wall-clock time at which a simulation starts unless told otherwise, in seconds since 1970.
pub const SIM_EPOCH_S: u64 = 1_800_000_000;

/// Steps after which [`SimEnv::block_on`] takes a run for a livelock.
const BLOCK_ON_STEPS_MAX: u64 = 200_000_000;

/// Why a run could not finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimStall {
    /// The future waits, no task is ready, and no timer is set.
    Deadlock {
        /// Tasks that wait forever, the driving future not counted.
        tasks: usize,
        /// Steps of the environment so far.
        steps: u64,
        /// Virtual time.
        now: Duration,
    },
    /// The limit of steps was reached.
    StepLimit {
        /// Tasks alive, the driving future not counted.
        tasks: usize,
        /// Steps of the environment so far.
        steps: u64,
        /// Virtual time.
        now: Duration,
    },
}

impl fmt::Display for SimStall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadlock { tasks, steps, now } => write!(
                f,
                "deadlock: no runnable task and no timer ({tasks} tasks wait; step {steps}, virtual time {now:?})"
            ),
            Self::StepLimit { tasks, steps, now } => {
                write!(f, "livelock: step limit reached ({tasks} tasks alive; step {steps}, virtual time {now:?})")
            }
        }
    }
}

impl std::error::Error for SimStall {}

/// A deterministic, single-threaded environment under one seed.
///
/// Tasks usually hold the environment they run on, so one that still has tasks is never freed by itself: end every run
/// with [`SimEnv::kill_all_tasks`], or hold it in a [`SimScope`].
pub struct SimEnv {
    core: Arc<Core>,
    seed: u64,
    start_s: u64,
    parallelism: usize,
}

struct Core {
    state: Mutex<State>,
    ready: Arc<ReadyList>,
}

struct State {
    now_ns: u64,
    schedule: Rng,
    randomness: Rng,
    slots: Vec<Slot>,
    free: Vec<u32>,
    tasks: usize,
    timers: Timers,
    steps: u64,
    trace: u64,
    running: bool,
    killed: bool,
    /// Others keep the processors busy since then.
    busy_since_ns: Option<u64>,
    busy_ns: u64,
}

struct Slot {
    generation: u32,
    /// None while the task is being polled, and when the slot is free.
    task: Option<Task>,
}

enum Task {
    Future { future: BoxFuture<()>, waker: Waker, shared: Arc<TaskWaker> },
    Work(Box<dyn FnOnce() + Send>),
}

/// Names a task: a slot and its generation, or the driving future.
#[derive(Clone, Copy, PartialEq, Eq)]
struct TaskKey {
    slot: u32,
    generation: u32,
}

impl TaskKey {
    const DRIVER: Self = Self { slot: u32::MAX, generation: 0 };
}

#[derive(Default)]
struct ReadyList {
    keys: Mutex<Vec<TaskKey>>,
}

struct TaskWaker {
    key: TaskKey,
    /// Whether `key` is in the ready list.
    queued: AtomicBool,
    ready: Arc<ReadyList>,
}

impl TaskWaker {
    fn new(key: TaskKey, ready: &Arc<ReadyList>) -> Arc<Self> {
        Arc::new(Self { key, queued: AtomicBool::new(false), ready: ready.clone() })
    }
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.keys.lock().push(self.key);
        }
    }
}

/// What one look at the scheduler found to do.
enum Next {
    Driver,
    Task(TaskKey, Task),
    /// A timer was fired, or a wake-up of a task that has ended was dropped.
    Again,
    Nothing,
}

impl SimEnv {
    /// An environment whose whole behaviour follows from `seed`.
    pub fn new(seed: u64) -> Arc<Self> {
        Self::starting_at(seed, SIM_EPOCH_S)
    }

    /// [`SimEnv::new`] with a wall clock that starts at `wall_clock_s`, for a restart after an earlier environment.
    pub fn starting_at(seed: u64, wall_clock_s: u64) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let state = State {
            now_ns: 0,
            schedule: rng.fork(),
            randomness: rng.fork(),
            slots: Vec::new(),
            free: Vec::new(),
            tasks: 0,
            timers: Timers::default(),
            steps: 0,
            trace: 0,
            running: false,
            killed: false,
            busy_since_ns: None,
            busy_ns: 0,
        };
        Arc::new(Self {
            core: Arc::new(Core { state: Mutex::new(state), ready: Arc::default() }),
            seed,
            start_s: wall_clock_s,
            parallelism: 1 + rng.index(4),
        })
    }

    /// The seed given at the start.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Runs `future`, and all tasks, until `future` is ready. Other tasks stay as they are, and go on in the next call.
    ///
    /// # Panics
    /// When the run stalls (see [`SimStall`]); the message names the seed.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self.run_until(future, BLOCK_ON_STEPS_MAX) {
            Ok(out) => out,
            Err(stall) => panic!("simulation with seed {}: {stall}", self.seed),
        }
    }

    /// [`SimEnv::block_on`] that gives up after `max_steps` further steps, and tells why it could not finish.
    ///
    /// # Panics
    /// When called from within a task of the same environment.
    pub fn run_until<F: Future>(&self, future: F, max_steps: u64) -> Result<F::Output, SimStall> {
        let _running = Running::enter(&self.core);
        let driver = TaskWaker::new(TaskKey::DRIVER, &self.core.ready);
        let waker = Waker::from(driver.clone());
        let mut future = pin!(future);
        driver.wake_by_ref();
        let mut steps = 0;
        loop {
            match self.core.next() {
                Next::Again => continue,
                Next::Nothing => return Err(self.core.stall(true)),
                Next::Driver => {
                    driver.queued.store(false, Ordering::Release);
                    if let Poll::Ready(out) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Ok(out);
                    }
                }
                Next::Task(key, task) => self.core.run_task(key, task),
            }
            steps += 1;
            if steps >= max_steps {
                return Err(self.core.stall(false));
            }
        }
    }

    /// Ends everything at once, as `kill -9` does: no task of this environment runs ever again, their futures are
    /// dropped where they stand, disk requests in flight are never completed, and what is spawned later is dropped too.
    ///
    /// A task that calls this itself runs on to its next await. The driving future goes on, without tasks.
    pub fn kill_all_tasks(&self) {
        let (tasks, actions) = {
            let mut state = self.core.state.lock();
            state.killed = true;
            state.tasks = 0;
            let mut tasks = Vec::new();
            for slot in &mut state.slots {
                slot.generation = slot.generation.wrapping_add(1);
                tasks.extend(slot.task.take());
            }
            state.slots.clear();
            state.free.clear();
            (tasks, state.timers.cancel_targets())
        };
        drop(tasks);
        drop(actions);
    }

    /// Tasks alive, the driving future not counted.
    pub fn tasks(&self) -> usize {
        self.core.state.lock().tasks
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.core.state.lock().steps
    }

    /// A digest of all steps so far: which task ran when. Equal for equal runs.
    pub fn trace(&self) -> u64 {
        self.core.state.lock().trace
    }

    /// From now on other programs keep the processors busy, or no longer.
    pub fn set_busy(&self, busy: bool) {
        let mut state = self.core.state.lock();
        let now = state.now_ns;
        let before = state.busy_since_ns.take();
        state.busy_ns += before.map_or(0, |since| now - since);
        state.busy_since_ns = busy.then_some(now);
    }

    /// Tells `target` `token` once `after` has passed, unless all tasks are killed before.
    pub(crate) fn schedule(&self, after: Duration, target: Arc<dyn TimerTarget>, token: u64) {
        let mut state = self.core.state.lock();
        if !state.killed {
            let at_ns = state.now_ns.saturating_add(nanoseconds(after));
            state.timers.add(at_ns, Action::Tell(target, token));
        }
    }
}

impl Env for SimEnv {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.core.state.lock().now_ns)
    }

    fn wall_clock_s(&self) -> u64 {
        self.start_s + self.now().as_secs()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<()> {
        let deadline_ns = self.core.state.lock().now_ns.saturating_add(nanoseconds(duration));
        Box::pin(Sleep { core: self.core.clone(), deadline_ns, timer: None })
    }

    fn spawn(&self, task: BoxFuture<()>) {
        let mut state = self.core.state.lock();
        if state.killed {
            drop(state);
            drop(task);
            return;
        }
        let key = state.take_slot();
        let shared = TaskWaker::new(key, &self.core.ready);
        let waker = Waker::from(shared.clone());
        state.slots[key.slot as usize].task = Some(Task::Future { future: task, waker, shared: shared.clone() });
        drop(state);
        shared.wake();
    }

    fn compute(&self, work: Box<dyn FnOnce() + Send>) {
        let mut state = self.core.state.lock();
        if state.killed {
            drop(state);
            drop(work);
            return;
        }
        let key = state.take_slot();
        state.slots[key.slot as usize].task = Some(Task::Work(work));
        drop(state);
        self.core.ready.keys.lock().push(key);
    }

    fn parallelism(&self) -> usize {
        self.parallelism
    }

    fn processors(&self) -> Option<ProcessorTimes> {
        let state = self.core.state.lock();
        let busy = state.busy_ns + state.busy_since_ns.map_or(0, |since| state.now_ns - since);
        let (all, idle) = (Duration::from_nanos(state.now_ns), Duration::from_nanos(state.now_ns - busy));
        Some(ProcessorTimes { idle, all })
    }

    fn random_u64(&self) -> u64 {
        self.core.state.lock().randomness.u64()
    }
}

impl Drop for SimEnv {
    fn drop(&mut self) {
        self.kill_all_tasks();
    }
}

impl State {
    fn take_slot(&mut self) -> TaskKey {
        self.tasks += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, task: None });
            (self.slots.len() - 1) as u32
        });
        TaskKey { slot, generation: self.slots[slot as usize].generation }
    }

    /// The slot of `key`, unless that task has ended.
    fn slot(&mut self, key: TaskKey) -> Option<&mut Slot> {
        if self.killed {
            return None;
        }
        self.slots.get_mut(key.slot as usize).filter(|s| s.generation == key.generation)
    }

    /// Virtual time one step takes: 50 to 561 ns, and in one of 256 steps up to 262 µs more.
    fn step_cost_ns(bits: u64) -> u64 {
        let pause = if (bits >> 32) & 0xff == 0 { ((bits >> 40) & 0x7fff) << 3 } else { 0 };
        50 + (bits >> 55) + pause
    }
}

impl Core {
    fn next(&self) -> Next {
        let mut state = self.state.lock();
        let now_ns = state.now_ns;
        if let Some(action) = state.timers.pop_due(now_ns) {
            drop(state);
            match action {
                Action::Wake(waker) => waker.wake(),
                Action::Tell(target, token) => target.fire(token),
            }
            return Next::Again;
        }
        let mut ready = self.ready.keys.lock();
        if ready.is_empty() {
            drop(ready);
            return match state.timers.next_ns() {
                Some(at_ns) => {
                    state.now_ns = at_ns;
                    Next::Again
                }
                None => Next::Nothing,
            };
        }
        let bits = state.schedule.u64();
        let chosen = ((bits & 0xffff_ffff) * ready.len() as u64) >> 32;
        let key = ready.swap_remove(chosen as usize);
        drop(ready);
        let next = if key == TaskKey::DRIVER {
            Next::Driver
        } else {
            match state.slot(key).and_then(|slot| slot.task.take()) {
                Some(task) => Next::Task(key, task),
                None => return Next::Again,
            }
        };
        state.steps += 1;
        state.now_ns += State::step_cost_ns(bits);
        let mixed =
            state.trace ^ (u64::from(key.slot) << 32 | u64::from(key.generation)) ^ state.now_ns.rotate_left(17);
        state.trace = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        next
    }

    fn run_task(&self, key: TaskKey, task: Task) {
        let unfinished = match task {
            Task::Work(work) => {
                work();
                None
            }
            Task::Future { mut future, waker, shared } => {
                shared.queued.store(false, Ordering::Release);
                match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(()) => {
                        drop(future);
                        None
                    }
                    Poll::Pending => Some(Task::Future { future, waker, shared }),
                }
            }
        };
        let mut state = self.state.lock();
        let Some(slot) = state.slot(key) else {
            // Killed during the poll; dropping the future may call the environment, so not under the lock.
            drop(state);
            drop(unfinished);
            return;
        };
        if unfinished.is_some() {
            slot.task = unfinished;
        } else {
            slot.generation = slot.generation.wrapping_add(1);
            state.free.push(key.slot);
            state.tasks -= 1;
        }
    }

    fn stall(&self, deadlock: bool) -> SimStall {
        let state = self.state.lock();
        let (tasks, steps, now) = (state.tasks, state.steps, Duration::from_nanos(state.now_ns));
        if deadlock { SimStall::Deadlock { tasks, steps, now } } else { SimStall::StepLimit { tasks, steps, now } }
    }
}

/// Marks the environment as running, so that a nested run is refused.
struct Running<'a>(&'a Core);

impl<'a> Running<'a> {
    fn enter(core: &'a Core) -> Self {
        let mut state = core.state.lock();
        assert!(!state.running, "SimEnv::run_until called from within the same environment");
        state.running = true;
        Self(core)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running = false;
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

struct Sleep {
    core: Arc<Core>,
    deadline_ns: u64,
    timer: Option<TimerKey>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut state = this.core.state.lock();
        let replaced = match this.timer {
            Some(_) if state.now_ns >= this.deadline_ns => return Poll::Ready(()),
            Some(timer) => state.timers.set_waker(timer, cx.waker()),
            None => {
                this.timer = Some(state.timers.add(this.deadline_ns, Action::Wake(cx.waker().clone())));
                None
            }
        };
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            let cancelled = self.core.state.lock().timers.cancel(timer);
            drop(cancelled);
        }
    }
}

/// Holds an environment and kills its tasks at the end of the scope, also when a test panics.
pub struct SimScope(Arc<SimEnv>);

impl SimScope {
    /// [`SimEnv::new`], in a scope.
    pub fn new(seed: u64) -> Self {
        Self(SimEnv::new(seed))
    }

    /// The environment as engines take it.
    pub fn env(&self) -> Arc<dyn Env> {
        self.0.clone()
    }
}

impl From<Arc<SimEnv>> for SimScope {
    fn from(env: Arc<SimEnv>) -> Self {
        Self(env)
    }
}

impl std::ops::Deref for SimScope {
    type Target = Arc<SimEnv>;

    fn deref(&self) -> &Arc<SimEnv> {
        &self.0
    }
}

impl Drop for SimScope {
    fn drop(&mut self) {
        self.0.kill_all_tasks();
    }
}

#[cfg(test)]
mod tests;
