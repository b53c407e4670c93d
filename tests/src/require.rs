//! What a test needs from the machine. A test that lacks something says so on standard error and ends; it never half-runs.

use std::path::{Path, PathBuf};

use crate::skip::skip;

/// Something a test needs.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A command on the path (or in the system directories that are not on every user's path).
    Tool(&'static str),
    /// The superuser.
    Root,
    /// `/dev/fuse`, openable.
    Fuse,
    /// Loop devices, by the superuser.
    Loop,
    /// The virtual machine of `make test-vm`, with its kernel modules and drives, to itself.
    Vm,
}

impl Need {
    /// Why this machine does not have it, or nothing.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Tool(name) => {
                find(name).is_none().then(|| format!("the command '{name}' (scripts/setup.sh installs it)"))
            }
            Self::Root => (!is_root()).then(|| "the superuser".to_owned()),
            Self::Fuse => open("/dev/fuse").err().map(|e| format!("/dev/fuse ({e})")),
            Self::Vm => std::env::var_os("ASHLAR_VM")
                .is_none_or(|v| v != "1")
                .then(|| "a kernel and drives to itself (make test-vm)".to_owned()),
            Self::Loop if !is_root() => Some("loop devices (only the superuser can set them up)".to_owned()),
            Self::Loop => open("/dev/loop-control").err().map(|e| format!("/dev/loop-control ({e})")),
        }
    }
}

/// Whether all `needs` are met; otherwise tells what is missing for `test`, see [`skip`].
#[track_caller]
pub fn met(test: &str, needs: &[Need]) -> bool {
    let lacking = lacking(test, needs);
    if let Some(message) = &lacking {
        skip(message);
    }
    lacking.is_none()
}

fn lacking(test: &str, needs: &[Need]) -> Option<String> {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    (!missing.is_empty()).then(|| format!("{test}: skipped, this machine lacks {}", missing.join("; ")))
}

/// Where a command is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Whether this process is the superuser.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    Path::new("/proc/self").metadata().is_ok_and(|meta| meta.uid() == 0)
}

fn open(path: &str) -> std::io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_exists_is_found_and_another_is_named() {
        assert!(Need::Tool("sh").missing().is_none());
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        let reason = Need::Tool("no-such-command-anywhere").missing().unwrap();
        assert!(reason.contains("no-such-command-anywhere") && reason.contains("setup.sh"));
    }

    #[test]
    fn a_missing_need_skips() {
        assert!(met("here", &[]));
        assert!(met("here", &[Need::Tool("sh")]));
        assert_eq!(lacking("here", &[Need::Tool("sh")]), None);
        let message = lacking("here", &[Need::Tool("sh"), Need::Tool("no-such-command-anywhere")]).unwrap();
        assert!(message.starts_with("here: skipped") && !message.contains("'sh'"), "{message}");
    }
}
