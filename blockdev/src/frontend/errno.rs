//! Error kinds as the errno values of Linux, for front ends that answer system calls.

use crate::error::{Error, ErrorKind};

/// The positive errno for `kind`.
///
/// Never `ENOSYS`: FUSE takes that as "this operation does not exist" and does not ask again until the next mount.
pub fn errno(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::InvalidArgument => libc::EINVAL,
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::AlreadyExists => libc::EEXIST,
        ErrorKind::Busy => libc::EBUSY,
        ErrorKind::NoSpace => libc::ENOSPC,
        ErrorKind::ReadOnly => libc::EROFS,
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Unavailable | ErrorKind::Fenced => libc::EIO,
    }
}

/// The error a failed system call stands for; `what` says the call and its object.
pub fn from_io(error: &std::io::Error, what: impl std::fmt::Display) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::EINVAL) => ErrorKind::InvalidArgument,
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => ErrorKind::NotFound,
        Some(libc::EEXIST) => ErrorKind::AlreadyExists,
        Some(libc::EBUSY) => ErrorKind::Busy,
        Some(libc::ENOSPC) => ErrorKind::NoSpace,
        Some(libc::EROFS) => ErrorKind::ReadOnly,
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY) => ErrorKind::Unsupported,
        Some(libc::EPERM | libc::EACCES) => ErrorKind::Unavailable,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_have_an_errno_come_back_the_same() {
        use ErrorKind::{AlreadyExists, Busy, InvalidArgument, Io, NoSpace, NotFound, ReadOnly, Unsupported};
        for kind in [InvalidArgument, NotFound, AlreadyExists, Busy, NoSpace, ReadOnly, Unsupported, Io] {
            let error = from_io(&std::io::Error::from_raw_os_error(errno(kind)), "open x");
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().starts_with("open x: "), "{error}");
        }
    }

    #[test]
    fn damage_and_absence_are_io_errors_to_a_host() {
        for kind in [ErrorKind::Corrupt, ErrorKind::Unavailable, ErrorKind::Fenced] {
            assert_eq!(errno(kind), libc::EIO);
        }
    }
}
