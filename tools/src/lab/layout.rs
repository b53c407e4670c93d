//! What a laboratory's directory holds, and the manifest that says so.
//!
//! ```text
//! DIR/.ashlar-lab        the manifest: marks the directory as ours; locked by every laboratory command
//! DIR/ashlar.toml        the daemon's configuration
//! DIR/disks/disk0.img …  the drives, sparse files
//! DIR/run/               api.sock, nbd.sock, pid
//! DIR/mnt/               volumes attached by FUSE
//! DIR/log/daemon.log     what the daemon says
//! DIR/disk-faults.json    drives that are pulled or slow on purpose
//! DIR/events.jsonl        what happened, and in events.1.jsonl what happened before
//! ```

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use blockdev::report::Tolerance;
use serde::{Deserialize, Serialize};

use crate::exit::{CommandResult, Failure};

/// Directories of a laboratory.
const DIRECTORIES: [&str; 5] = ["disks", "run", "mnt", "nas", "log"];

const MANIFEST: &str = ".ashlar-lab";
const MANIFEST_VERSION: u32 = 1;

/// What the laboratory was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    /// Name of the pool.
    pub name: String,
    /// Number of drives.
    pub disks: usize,
    /// Bytes of each.
    pub disk_size: u64,
    /// Drives that may fail.
    pub tolerance: Tolerance,
    /// Whether the directory did not exist before.
    pub made_dir: bool,
    /// Whether everything was made; a laboratory whose making was cut off is made again.
    pub complete: bool,
}

impl Manifest {
    /// Of a laboratory about to be made.
    pub fn new(name: String, disks: usize, disk_size: u64, tolerance: Tolerance) -> Self {
        Self { version: MANIFEST_VERSION, name, disks, disk_size, tolerance, made_dir: false, complete: false }
    }
}

/// A laboratory's directory, locked against other laboratory commands.
pub struct Lab {
    /// Absolute path.
    pub dir: PathBuf,
    /// What it was made with.
    pub manifest: Manifest,
    file: File,
}

/// Whether a laboratory is in `dir`.
pub fn is_lab(dir: &Path) -> bool {
    dir.join(MANIFEST).is_file()
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::other(format!("{what} {}: {error}", path.display()))
}

impl Lab {
    /// The laboratory in `dir`, if there is one. Waits for another command that works on it.
    pub fn find(dir: &Path) -> CommandResult<Option<Self>> {
        let path = dir.join(MANIFEST);
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(e) => return Err(failed("opening", &path, &e)),
        };
        file.lock().map_err(|e| failed("locking", &path, &e))?;
        if !path.exists() {
            // Taken down by the command we waited for.
            return Ok(None);
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|e| failed("reading", &path, &e))?;
        let manifest: Manifest = toml::from_str(&text)
            .map_err(|e| Failure::other(format!("{} is not a laboratory's manifest: {e}", path.display())))?;
        if manifest.version != MANIFEST_VERSION {
            let version = manifest.version;
            return Err(Failure::other(format!("{} has the unknown version {version}", path.display())));
        }
        Ok(Some(Self { dir: dir.to_owned(), manifest, file }))
    }

    /// The laboratory in `dir`, which must exist.
    pub fn open(dir: &Path) -> CommandResult<Self> {
        Self::find(dir)?.ok_or_else(|| {
            Failure::not_found(format!(
                "there is no laboratory in {0}; make one with `ashlar lab up --dir {0}`",
                dir.display()
            ))
        })
    }

    /// Marks `dir`, which must be empty or missing, as a laboratory to be made.
    pub fn begin(dir: &Path, mut manifest: Manifest) -> CommandResult<Self> {
        manifest.made_dir = match std::fs::create_dir(dir) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let parent = dir.parent().unwrap_or(dir).display();
                return Err(Failure::not_found(format!("the directory {parent} does not exist; make it first")));
            }
            Err(e) => return Err(failed("making the directory", dir, &e)),
        };
        let mut entries = std::fs::read_dir(dir).map_err(|e| failed("reading the directory", dir, &e))?;
        if entries.next().is_some() {
            return Err(Failure::conflict(format!(
                "{} is not empty and not a laboratory; choose another directory",
                dir.display()
            )));
        }
        let path = dir.join(MANIFEST);
        let opened = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = opened.map_err(|e| failed("making", &path, &e))?;
        file.lock().map_err(|e| failed("locking", &path, &e))?;
        let mut lab = Self { dir: dir.to_owned(), manifest, file };
        lab.save()?;
        Ok(lab)
    }

    /// Notes that everything is made.
    pub fn complete(&mut self) -> CommandResult {
        self.manifest.complete = true;
        self.save()
    }

    fn save(&mut self) -> CommandResult {
        let path = self.dir.join(MANIFEST);
        let text = toml::to_string(&self.manifest).map_err(|e| Failure::other(format!("writing the manifest: {e}")))?;
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.sync_all())
            .map_err(|e| failed("writing", &path, &e))
    }

    /// Paths of the drives, relative to the directory.
    pub fn disk_names(&self) -> Vec<PathBuf> {
        (0..self.manifest.disks).map(|i| PathBuf::from(format!("disks/disk{i}.img"))).collect()
    }

    /// Paths of the drives.
    pub fn disks(&self) -> Vec<PathBuf> {
        self.disk_names().iter().map(|name| self.dir.join(name)).collect()
    }

    /// The log file.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log/daemon.log")
    }

    /// The log file before the present one.
    pub fn old_log(&self) -> PathBuf {
        self.dir.join("log/daemon.log.1")
    }

    /// The FUSE directory.
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// Below it file systems are mounted.
    pub fn file_systems(&self) -> PathBuf {
        self.dir.join("nas")
    }

    /// Where NAS servers have directories for their processes.
    pub fn nas_servers(&self) -> PathBuf {
        self.dir.join("run/nas-servers")
    }

    /// The daemon's lock and pid file.
    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("run").join(crate::daemon::config::PID_FILE)
    }

    /// Makes the directories.
    pub fn make_dirs(&self) -> CommandResult {
        for name in DIRECTORIES {
            let path = self.dir.join(name);
            match std::fs::create_dir(&path) {
                // A FUSE mount whose server was killed exists and cannot be looked at; the daemon clears it.
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("making the directory", &path, &e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes what a laboratory makes, the manifest last; gives what of the directory is left because it is not ours.
    pub fn remove(self) -> CommandResult<Vec<PathBuf>> {
        let mut files = self.disks();
        files.extend([self.log(), self.old_log(), self.pid_file(), self.dir.join(crate::daemon::nas::LIBRARY)]);
        let names = ["run/api.sock", "run/nbd.sock", crate::daemon::config::FILE_NAME];
        files.extend(names.map(|name| self.dir.join(name)));
        files.extend(crate::daemon::known_disks::files(&self.dir));
        files.extend(crate::daemon::faults::files(&self.dir));
        files.extend(crate::daemon::events::files(&self.dir));
        files.extend(crate::daemon::upgrade::files(&self.dir));
        let logs = std::fs::read_dir(self.dir.join("log")).into_iter().flatten().flatten().map(|entry| entry.path());
        files.extend(
            logs.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"nas-"))),
        );
        for path in files {
            remove(&path, std::fs::remove_file)?;
        }
        // Directories that file systems were mounted on, of a daemon that was killed. What is in one is somebody's.
        for entry in std::fs::read_dir(self.file_systems()).into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(entry.path());
        }
        for name in DIRECTORIES {
            remove(&self.dir.join(name), std::fs::remove_dir)?;
        }
        remove(&self.dir.join(MANIFEST), std::fs::remove_file)?;
        if self.manifest.made_dir {
            remove(&self.dir, std::fs::remove_dir)?;
        }
        let left = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        Ok(left.map(|entry| entry.path()).collect())
    }
}

/// What is missing already, or still holds files of others, is no error.
fn remove(path: &Path, how: impl FnOnce(PathBuf) -> std::io::Result<()>) -> CommandResult {
    match how(path.to_owned()) {
        Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
            Err(failed("removing", path, &e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    fn manifest() -> Manifest {
        Manifest::new("lab".into(), 3, 1 << 30, Tolerance::Single)
    }

    #[test]
    fn a_lab_is_found_again_and_removed_without_trace() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("lab");
        assert!(Lab::find(&dir).unwrap().is_none());
        let mut lab = Lab::begin(&dir, manifest()).unwrap();
        lab.make_dirs().unwrap();
        for disk in lab.disks() {
            File::create(disk).unwrap();
        }
        assert!(!lab.manifest.complete);
        lab.complete().unwrap();
        drop(lab);
        assert!(is_lab(&dir));
        let lab = Lab::open(&dir).unwrap();
        assert!(lab.manifest.complete && lab.manifest.made_dir);
        assert_eq!(lab.remove().unwrap(), Vec::<PathBuf>::new());
        assert!(!dir.exists());
    }

    #[test]
    fn what_is_not_ours_stays() {
        let base = tempfile::tempdir().unwrap();
        let lab = Lab::begin(base.path(), manifest()).unwrap();
        lab.make_dirs().unwrap();
        std::fs::write(base.path().join("disks/mine"), "x").unwrap();
        std::fs::write(base.path().join("notes"), "x").unwrap();
        let mut left = lab.remove().unwrap();
        left.sort();
        assert_eq!(left, [base.path().join("disks"), base.path().join("notes")]);
        assert!(base.path().join("disks/mine").exists());
    }

    #[test]
    fn foreign_directories_are_refused() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("notes"), "x").unwrap();
        assert_eq!(Lab::begin(base.path(), manifest()).err().unwrap().exit, Exit::Conflict);
        assert_eq!(Lab::open(base.path()).err().unwrap().exit, Exit::NotFound);
        assert_eq!(Lab::begin(&base.path().join("a/b"), manifest()).err().unwrap().exit, Exit::NotFound);
        std::fs::write(base.path().join(MANIFEST), "nonsense").unwrap();
        assert_eq!(Lab::open(base.path()).err().unwrap().exit, Exit::Failure);
    }
}
