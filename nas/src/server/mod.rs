//! NAS servers: bundles of file systems, network identity and protocol servers, each in a network namespace of its own.
//! See `docs/design/0025-nas-servers.md`.
//!
//! [`network`] makes the namespace and its address, [`enter`] is what a protocol server's process does before it becomes one, [`supervise`] keeps
//! protocol servers running, [`nfs`] is their configuration for NFS, [`exports`] what is exported to whom.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

pub mod enter;
pub mod exports;
pub mod network;
pub mod nfs;
pub mod supervise;

/// Mounts, in the words of `/proc/PID/mountinfo`: device and place of each.
pub fn mounts(text: &[u8]) -> Vec<(String, PathBuf)> {
    let fields = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b' ');
        let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
        Some((device, PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)))))
    };
    text.split(|b| *b == b'\n').filter_map(fields).collect()
}

/// Undoes what the kernel does to blanks and the like: a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let (mut plain, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| matches!(b, b'0'..=b'7')));
        match octal {
            Some(digits) => {
                plain.push(digits.iter().fold(0_u8, |value, d| value.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

/// A library for NFS-Ganesha to be started with (`LD_PRELOAD`): see `fsid.rs`.
pub const FSID_LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libashlar-fsid.so"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_from_the_kernel() {
        let text = b"36 35 98:0 /mnt1 /mnt/a\\040b\\134 rw,noatime master:1 - ext3 /dev/root rw\n\n37 36 0:44 / /run/fs/home rw - fuse x rw\n";
        let expected = [("98:0".to_owned(), PathBuf::from("/mnt/a b\\")), ("0:44".to_owned(), "/run/fs/home".into())];
        assert_eq!(mounts(text), expected);
        assert!(mounts(&std::fs::read("/proc/self/mountinfo").expect("mounts")).iter().any(|(_, at)| at == "/"));
    }
}
