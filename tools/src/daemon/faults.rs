//! Fault injection of the laboratory: drives that are pulled and put back. Faults outlive a restart, as a pulled drive would.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::report::DiskInfo;
use parking_lot::Mutex;

/// Name of the file, in the state directory, with the drives that are pulled: one path a line.
const FILE_NAME: &str = "pulled-disks";

/// A drive that can be pulled.
pub trait Pullable: Send + Sync {
    /// With `pulled`, every request is answered with an error from now on; without, the drive works again.
    fn set_pulled(&self, pulled: bool);
}

/// A drive and its configured path.
pub type Drive = (PathBuf, Arc<dyn Pullable>);

/// The drives of a laboratory, by configured path and in configured order.
pub struct Faults {
    file: PathBuf,
    drives: Mutex<Vec<Drive>>,
    pulled: Mutex<BTreeSet<PathBuf>>,
}

impl Faults {
    /// Drives whose faults are kept in `state_dir`; those pulled before are pulled at once.
    pub fn new(state_dir: &Path, drives: Vec<Drive>) -> Result<Self> {
        let file = state_dir.join(FILE_NAME);
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(format!("reading {}: {e}", file.display()))),
        };
        let listed: BTreeSet<&str> = text.lines().collect();
        let mut pulled = BTreeSet::new();
        for (path, drive) in &drives {
            if path.to_str().is_some_and(|p| listed.contains(p)) {
                tracing::warn!(disk = %path.display(), "the laboratory keeps this disk failed");
                drive.set_pulled(true);
                pulled.insert(path.clone());
            }
        }
        Ok(Self { file, drives: Mutex::new(drives), pulled: Mutex::new(pulled) })
    }

    /// Takes in a drive that was added.
    pub fn add(&self, drive: Drive) {
        self.drives.lock().push(drive);
    }

    /// Lets go of a drive that is not of the pool any more.
    pub fn forget(&self, path: &Path) {
        self.drives.lock().retain(|(other, _)| other != path);
    }

    /// Pulls a drive or puts it back; gives its path. Doing so twice changes nothing.
    ///
    /// `disk` is an index or a name as the pool lists them in `known`, or a file name with or without its extension.
    pub fn set(&self, disk: &str, known: &[DiskInfo], pull: bool) -> Result<PathBuf> {
        let (path, drive) = self.find(disk, known)?;
        let mut pulled = self.pulled.lock();
        let mut next = pulled.clone();
        match pull {
            true => next.insert(path.clone()),
            false => next.remove(&path),
        };
        let text: String = next.iter().map(|p| format!("{}\n", p.display())).collect();
        std::fs::write(&self.file, text).map_err(|e| Error::io(format!("writing {}: {e}", self.file.display())))?;
        drive.set_pulled(pull);
        *pulled = next;
        tracing::warn!(disk = %path.display(), pull, "laboratory fault");
        Ok(path)
    }

    fn find(&self, disk: &str, known: &[DiskInfo]) -> Result<Drive> {
        let drives = self.drives.lock();
        let wanted = match disk.parse::<u16>() {
            // A drive that was missing at the start has no path; the laboratory made its drives in configured order.
            Ok(index) => match known.iter().find(|d| d.id == index) {
                Some(info) if !info.path.is_empty() => Some(PathBuf::from(&info.path)),
                _ => drives.get(usize::from(index)).map(|(path, _)| path.clone()),
            },
            Err(_) => Some(PathBuf::from(disk)),
        };
        let matches = |path: &Path, wanted: &Path| {
            path == wanted
                || path.file_name() == Some(wanted.as_os_str())
                || path.file_stem() == Some(wanted.as_os_str())
        };
        let found = wanted.and_then(|w| drives.iter().find(|(path, _)| matches(path, &w)));
        found.cloned().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no disk '{disk}'; `ashlar disk list` shows their index and path"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Flag(Arc<AtomicBool>);

    impl Pullable for Flag {
        fn set_pulled(&self, pulled: bool) {
            self.0.store(pulled, Ordering::Relaxed);
        }
    }

    fn drives(flags: &[Arc<AtomicBool>]) -> Vec<Drive> {
        let drive = |(i, flag): (usize, &Arc<AtomicBool>)| {
            (PathBuf::from(format!("/lab/disks/disk{i}.img")), Arc::new(Flag(flag.clone())) as Arc<dyn Pullable>)
        };
        flags.iter().enumerate().map(drive).collect()
    }

    fn info(id: u16, path: &str) -> DiskInfo {
        DiskInfo { id, path: path.into(), ..DiskInfo::default() }
    }

    #[test]
    fn drives_are_found_and_faults_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let flags: Vec<Arc<AtomicBool>> = (0..3).map(|_| Arc::default()).collect();
        let state = |flags: &[Arc<AtomicBool>]| flags.iter().map(|f| f.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let faults = Faults::new(dir.path(), drives(&flags)).unwrap();
        // The pool's indices need not follow the configuration's order.
        let known = [info(0, "/lab/disks/disk2.img"), info(1, "")];
        faults.set("0", &known, true).unwrap();
        assert_eq!(state(&flags), [false, false, true]);
        faults.set("1", &known, true).unwrap();
        faults.set("1", &known, true).unwrap();
        assert_eq!(state(&flags), [false, true, true]);
        faults.set("disk2", &known, false).unwrap();
        faults.set("disk0.img", &known, true).unwrap();
        assert_eq!(state(&flags), [true, true, false]);
        for wrong in ["7", "disk", "", "/lab/disks", "-1"] {
            assert_eq!(faults.set(wrong, &known, true).unwrap_err().kind(), ErrorKind::NotFound, "{wrong}");
        }
        let flags: Vec<Arc<AtomicBool>> = (0..3).map(|_| Arc::default()).collect();
        let faults = Faults::new(dir.path(), drives(&flags)).unwrap();
        assert_eq!(state(&flags), [true, true, false]);
        faults.set("/lab/disks/disk0.img", &known, false).unwrap();
        assert_eq!(state(&flags), [false, true, false]);
    }
}
