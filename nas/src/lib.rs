//! File serving: a POSIX file system over two thin volumes ([`fs::FileSystem`]), its check ([`check`]), and how the kernel mounts it ([`fuse`]).
//!
//! The design is in `docs/design/0024-file-system.md`. [`server`] is what makes NAS servers of file systems: `docs/design/0025-nas-servers.md`.
//! SMB, FTP and SFTP are not built yet.

mod alloc;
pub mod check;
pub mod fs;
pub mod fuse;
mod meta;
pub mod planted;
pub mod server;
mod store;

pub use meta::attr::{Attr, Kind, Time};
pub use rustix::io::Errno;
pub use store::{Pair, format, reidentify};

/// What an operation of a file system gives: the errno of POSIX, as system calls do.
pub type Result<T> = std::result::Result<T, Errno>;

/// Bytes of a block, the grain in which space is given out.
pub const BLOCK: u64 = 4096;
