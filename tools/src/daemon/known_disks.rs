//! Where disks were seen last: a file in the state directory, so that one that is missing can be named by its path.
//!
//! It is a convenience: disks are known by their labels, and the daemon works the same without the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blockdev::report::DiskInfo;
use blockdev::units::Uuid;

/// Name of the file in the state directory.
const FILE_NAME: &str = "disks.json";

/// Paths by identity.
pub type Paths = BTreeMap<Uuid, String>;

/// The file, and the one it is replaced by, in a state directory.
pub fn files(state_dir: &Path) -> [PathBuf; 2] {
    [state_dir.join(FILE_NAME), state_dir.join(format!("{FILE_NAME}.new"))]
}

/// What was kept; nothing when there is no such file or it cannot be read.
pub fn load(state_dir: &Path) -> Paths {
    let text = std::fs::read(state_dir.join(FILE_NAME)).unwrap_or_default();
    if text.is_empty() { Paths::default() } else { serde_json::from_slice(&text).unwrap_or_default() }
}

/// Keeps the paths of the disks of the pool that is open.
pub fn keep(state_dir: &Path, known: Paths, disks: &[DiskInfo]) {
    let now: Paths = disks.iter().filter(|d| !d.path.is_empty()).map(|d| (d.uuid, d.path.clone())).collect();
    if now == known {
        return;
    }
    // Replaced as a whole: a reader sees the old or the new.
    let [path, fresh] = files(state_dir);
    let text = serde_json::to_vec_pretty(&now).unwrap_or_default();
    if let Err(e) = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)) {
        tracing::warn!(file = %path.display(), error = %e, "cannot keep the paths of the disks");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_kept_also_of_disks_that_are_missing() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |n: u8, path: &str| DiskInfo { uuid: Uuid([n; 16]), path: path.into(), ..DiskInfo::default() };
        assert!(load(dir.path()).is_empty());
        keep(dir.path(), Paths::default(), &[disk(1, "/dev/a"), disk(2, "/dev/b"), disk(3, "")]);
        let expected: Paths = [(Uuid([1; 16]), "/dev/a".to_owned()), (Uuid([2; 16]), "/dev/b".to_owned())].into();
        assert_eq!(load(dir.path()), expected);
        std::fs::write(dir.path().join(FILE_NAME), "{").unwrap();
        assert!(load(dir.path()).is_empty());
    }
}
