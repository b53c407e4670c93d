//! Memory allocation of the whole process.

use libmimalloc_sys::{mi_option_get, mi_option_set_default, mi_option_t};

/// The engine's buffers go from thread to thread, and many are large: the system's allocator spends a third of the processor on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2: milliseconds after which free memory goes back to the system.
const PURGE_DELAY: mi_option_t = 15;
/// What it is where nobody says otherwise.
const PURGE_DELAY_USUAL: i64 = 10;
/// A buffer's way from host to drive takes longer than the usual: each would be given back and mapped anew, which costs page faults, and interrupts of
/// all processors. Of bursts that are farther apart the memory is given back.
const PURGE_DELAY_OURS: i64 = 200;

/// Sets the allocator up; to be called before there are other threads. What the environment says (`MIMALLOC_PURGE_DELAY`) goes first.
pub fn set_up() {
    // SAFETY: there are no other threads, and an option of that number there is: unknown ones are refused by the library.
    unsafe {
        // In another release the number may mean another option.
        if mi_option_get(PURGE_DELAY) == PURGE_DELAY_USUAL {
            mi_option_set_default(PURGE_DELAY, PURGE_DELAY_OURS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_means_what_it_should() {
        set_up();
        let given = std::env::var("MIMALLOC_PURGE_DELAY").ok().and_then(|ms| ms.parse().ok());
        // SAFETY: reads one option.
        assert_eq!(unsafe { mi_option_get(PURGE_DELAY) }, given.unwrap_or(PURGE_DELAY_OURS));
    }
}
