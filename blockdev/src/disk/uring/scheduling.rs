//! Threads that are on the way of every request should not wait for a processor longer than they must.

/// Time slice in nanoseconds: the kernel's minimum. A thread woken with a shorter slice than that of the running one is let in
/// at once (EEVDF, since Linux 6.12) instead of at the next tick, which may be 4 ms away.
const SLICE_NS: u64 = 100_000;

/// Gives the calling thread a short time slice, which does not change its share of the processor: it waits less when it wakes
/// up, and is interrupted more often when it computes. For threads that mostly wait for disks and networks, such as the workers
/// of the runtime (`on_thread_start`); not for threads that compress. Threads it starts inherit it. True if it was done: a kernel
/// may not know it, and a thread with a real-time or idle policy is left alone.
pub fn prefer_latency() -> bool {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: all-zero bytes are a valid `sched_attr`.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: writes at most `size` bytes to `attributes`; 0 is the calling thread.
    let known = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) } == 0;
    if !known || attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return false;
    }
    attributes.size = size;
    attributes.sched_runtime = SLICE_NS;
    // Utilisation clamps, which this shorter structure cannot carry, stay as they are.
    attributes.sched_flags = 0;
    // SAFETY: reads `size` bytes of `attributes`; 0 is the calling thread.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) == 0 }
}
