//! A library of its own, which `build.rs` builds and NFS-Ganesha is started with (`LD_PRELOAD`): `statfs` with a file system identifier.
//!
//! Ganesha makes file handles from `f_fsid`. FUSE says 0 there, and Ganesha then takes the device number, which another mount does not have: all
//! handles that clients hold would be dead. Here the identifier is half of the identity that the file system gives as an extended attribute.

#![no_std]
#![crate_type = "cdylib"]

use core::ffi::{c_char, c_int, c_long, c_void};

/// `struct statfs` of 64-bit Linux: 15 words, the identifier in the eighth.
type Statfs = [u64; 15];
const TYPE: usize = 0;
const FSID: usize = 7;
const FUSE: u64 = 0x6573_5546;

const ATTRIBUTE: *const c_char = c"trusted.ashlar.identity".as_ptr();

#[cfg(target_arch = "x86_64")]
const SYS_STATFS: c_long = 137;
#[cfg(target_arch = "x86_64")]
const SYS_FSTATFS: c_long = 138;
#[cfg(target_arch = "aarch64")]
const SYS_STATFS: c_long = 43;
#[cfg(target_arch = "aarch64")]
const SYS_FSTATFS: c_long = 44;

#[link(name = "c")]
unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getxattr(path: *const c_char, name: *const c_char, value: *mut c_void, size: usize) -> isize;
    fn fgetxattr(fd: c_int, name: *const c_char, value: *mut c_void, size: usize) -> isize;
}

/// Puts the identifier in, if the file system gave one.
fn identify(out: &mut Statfs, identity: &[u8; 16], length: isize) {
    if length == 16 {
        let (low, _) = identity.split_at(8);
        let mut half = [0; 8];
        half.copy_from_slice(low);
        out[FSID] = u64::from_le_bytes(half);
    }
}

/// `statfs(2)`.
///
/// # Safety
/// As for the system call: `path` is a string that ends with 0, `out` can hold the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statfs64(path: *const c_char, out: *mut Statfs) -> c_int {
    // SAFETY: the kernel checks both.
    let answer = unsafe { syscall(SYS_STATFS, path, out) };
    // SAFETY: it was filled in by the kernel.
    if answer == 0 && let Some(out) = unsafe { out.as_mut() } && out[TYPE] == FUSE {
        let mut identity = [0; 16];
        // SAFETY: the value is as long as it says.
        let length = unsafe { getxattr(path, ATTRIBUTE, identity.as_mut_ptr().cast(), identity.len()) };
        identify(out, &identity, length);
    }
    answer as c_int
}

/// `fstatfs(2)`.
///
/// # Safety
/// As for the system call: `out` can hold the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatfs64(fd: c_int, out: *mut Statfs) -> c_int {
    // SAFETY: the kernel checks both.
    let answer = unsafe { syscall(SYS_FSTATFS, fd, out) };
    // SAFETY: it was filled in by the kernel.
    if answer == 0 && let Some(out) = unsafe { out.as_mut() } && out[TYPE] == FUSE {
        let mut identity = [0; 16];
        // SAFETY: the value is as long as it says.
        let length = unsafe { fgetxattr(fd, ATTRIBUTE, identity.as_mut_ptr().cast(), identity.len()) };
        identify(out, &identity, length);
    }
    answer as c_int
}

/// The same on 64 bits.
///
/// # Safety
/// See [`statfs64`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn statfs(path: *const c_char, out: *mut Statfs) -> c_int {
    // SAFETY: handed on.
    unsafe { statfs64(path, out) }
}

/// The same on 64 bits.
///
/// # Safety
/// See [`fstatfs64`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatfs(fd: c_int, out: *mut Statfs) -> c_int {
    // SAFETY: handed on.
    unsafe { fstatfs64(fd, out) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
