//! Where disks were seen last: a file in the state directory, so that one that is missing can be named by its path.
//!
//! It is a convenience: disks are known by their labels, and the daemon works the same without the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use blockdev::report::DiskInfo;
use blockdev::units::Uuid;

/// Name of the file in the state directory.
const FILE_NAME: &str = "disks.json";

/// Name of the file with the paths of disks that were added, one a line.
const ADDED: &str = "added-disks";

/// Paths by identity.
pub type Paths = BTreeMap<Uuid, String>;

/// The files, and those they are replaced by, in a state directory.
pub fn files(state_dir: &Path) -> [PathBuf; 4] {
    [FILE_NAME.into(), format!("{FILE_NAME}.new"), ADDED.into(), format!("{ADDED}.new")]
        .map(|name: String| state_dir.join(name))
}

/// Paths of disks that were added by command, and that no configuration need name.
pub fn added(state_dir: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(state_dir.join(ADDED)).unwrap_or_default();
    text.lines().map(PathBuf::from).collect()
}

/// Keeps those of them that are of the pool, and a new one.
pub fn keep_added(state_dir: &Path, disks: &[DiskInfo], new: Option<&Path>) {
    let before = added(state_dir);
    let ours = |path: &PathBuf| disks.iter().any(|d| Path::new(&d.path) == path);
    let mut now: Vec<PathBuf> = before.iter().filter(|p| ours(p)).cloned().collect();
    now.extend(new.map(Path::to_owned).filter(|path| !now.contains(path)));
    if now != before {
        let text: String = now.iter().map(|path| format!("{}\n", path.display())).collect();
        let [_, _, path, fresh] = files(state_dir);
        replace(&path, &fresh, text.as_bytes());
    }
}

/// Replaces a file as a whole: a reader sees the old or the new.
fn replace(path: &Path, fresh: &Path, text: &[u8]) {
    if let Err(e) = std::fs::write(fresh, text).and_then(|()| std::fs::rename(fresh, path)) {
        tracing::warn!(file = %path.display(), error = %e, "cannot keep the paths of the disks");
    }
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
    let [path, fresh, ..] = files(state_dir);
    replace(&path, &fresh, &serde_json::to_vec_pretty(&now).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_disks_are_kept_as_long_as_they_are_of_the_pool() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |path: &str| DiskInfo { path: path.into(), ..DiskInfo::default() };
        keep_added(dir.path(), &[disk("/dev/a")], None);
        assert!(added(dir.path()).is_empty() && !dir.path().join(ADDED).exists());
        keep_added(dir.path(), &[disk("/dev/a")], Some(Path::new("/dev/b")));
        keep_added(dir.path(), &[disk("/dev/a"), disk("/dev/b")], Some(Path::new("/dev/c")));
        assert_eq!(added(dir.path()), [PathBuf::from("/dev/b"), "/dev/c".into()]);
        keep_added(dir.path(), &[disk("/dev/a"), disk("/dev/c")], None);
        assert_eq!(added(dir.path()), [PathBuf::from("/dev/c")]);
    }

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
