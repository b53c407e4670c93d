//! Drives of this machine: which of them a pool could be given, what the others hold, who uses them. Nothing is written, and nothing is claimed.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use blockdev::disk::signature::{HEAD_LEN, TAIL_LEN, detect};
use blockdev::format::label::Label;
use blockdev::format::layout::LABEL_SIZE;

use parking_lot::Mutex;

use crate::wire::drives::{Drive, DriveState};

/// O_NONBLOCK of linux: opening a drive without a medium does not wait.
const NONBLOCK: i32 = 0o4000;
/// Bytes of a sector as sysfs counts.
const SECTOR: u64 = 512;
/// Block devices that are no drives to be given to a pool: memory, optical and floppy drives, and what volumes are presented as.
const NO_DRIVES: &[&str] = &["ram", "zram", "sr", "fd", "ublkb", "nbd"];
/// Longest wait for what a drive holds.
const READ_MAX: Duration = Duration::from_secs(3);

/// Drives that are being read. One that does not answer keeps a thread; it is not read a second time until it has.
static READING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Where the system tells about its drives.
pub struct System {
    /// `/sys`.
    pub sys: PathBuf,
    /// `/dev`.
    pub dev: PathBuf,
    /// `/proc`.
    pub proc: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { sys: "/sys".into(), dev: "/dev".into(), proc: "/proc".into() }
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A text of `/proc` writes blanks in names as octal numbers.
fn unescaped(name: &str) -> String {
    name.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// All drives but `ours`, which are not looked at, in the order of their names. Each has [`READ_MAX`] to say what it holds.
pub fn all(system: &System, ours: &dyn Fn(&Path) -> bool) -> Vec<Drive> {
    let block = system.sys.join("block");
    let mounts = text(system.proc.join("self/mountinfo")).unwrap_or_default();
    let swaps = text(system.proc.join("swaps")).unwrap_or_default();
    let is_drive = |dir: &PathBuf| {
        let name = name_of(dir);
        let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
        !NO_DRIVES.contains(&kind) && !is_presented(dir, &mounts) && !ours(&device(system, dir))
    };
    entries(&block).into_iter().filter(is_drive).filter_map(|dir| look(system, &dir, &mounts, &swaps)).collect()
}

/// Its device. Slashes of names in /dev are written as exclamation marks there.
fn device(system: &System, dir: &Path) -> PathBuf {
    system.dev.join(name_of(dir).replace('!', "/"))
}

/// Whether it is a loop device of a file on a FUSE mount: a volume is presented like that, and must not become a drive of its own pool.
fn is_presented(dir: &Path, mounts: &str) -> bool {
    let Some(backing) = text(dir.join("loop/backing_file")) else { return false };
    let by_fuse = |line: &&str| line.split(" - ").nth(1).is_some_and(|kind| kind.starts_with("fuse"));
    let mut points = mounts.lines().filter(by_fuse).filter_map(|line| line.split(' ').nth(4)).map(unescaped);
    points.any(|point| Path::new(&backing).starts_with(point))
}

fn look(system: &System, dir: &Path, mounts: &str, swaps: &str) -> Option<Drive> {
    let path = device(system, dir);
    let size = text(dir.join("size"))?.parse::<u64>().ok()?.checked_mul(SECTOR).filter(|size| *size > 0)?;
    let parts: Vec<PathBuf> = entries(dir).into_iter().filter(|part| part.join("partition").exists()).collect();
    let used = std::iter::once(dir).chain(parts.iter().map(PathBuf::as_path));
    let (state, holds) = match used.filter_map(|dir| user_of(system, dir, mounts, swaps)).next() {
        Some(user) => (DriveState::InUse, Some(user)),
        None => content_in_time(&path, size),
    };
    let read_only = text(dir.join("ro")).is_some_and(|ro| ro == "1");
    Some(Drive {
        path: path.display().to_string(),
        stable_path: stable(system, &path),
        size,
        state: if read_only && state == DriveState::Free { DriveState::Foreign } else { state },
        holds: if read_only && state == DriveState::Free { Some("it is read-only".into()) } else { holds },
        model: text(dir.join("device/model")),
        rotational: text(dir.join("queue/rotational")).map(|r| r == "1"),
    })
}

/// Who uses a drive or partition, as far as the kernel tells: mounts, swap space, other devices on top of it.
fn user_of(system: &System, dir: &Path, mounts: &str, swaps: &str) -> Option<String> {
    let name = name_of(dir);
    if let Some(holder) = entries(&dir.join("holders")).first() {
        return Some(format!("{name} is part of {}", name_of(holder)));
    }
    let number = text(dir.join("dev"))?;
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next() == Some(&number)).then(|| fields.nth(1)).flatten()
    });
    if let Some(point) = mounted {
        return Some(format!("{name} is mounted on {}", unescaped(point)));
    }
    let swap = system.dev.join(&name).display().to_string();
    swaps.lines().any(|line| line.split_whitespace().next() == Some(&swap)).then(|| format!("{name} is swap space"))
}

fn content_in_time(path: &Path, size: u64) -> (DriveState, Option<String>) {
    let silent = || (DriveState::Unreadable, Some("it does not answer".to_owned()));
    if !READING.lock().insert(path.to_owned()) {
        return silent();
    }
    let (tell, told) = std::sync::mpsc::channel();
    let at = path.to_owned();
    let reader = std::thread::Builder::new().name("drives".into()).spawn(move || {
        let found = content(&at, size);
        READING.lock().remove(&at);
        let _ = tell.send(found);
    });
    if let Err(e) = reader {
        READING.lock().remove(path);
        return (DriveState::Unreadable, Some(e.to_string()));
    }
    told.recv_timeout(READ_MAX).unwrap_or_else(|_| silent())
}

/// What a drive holds that nobody uses.
fn content(path: &Path, size: u64) -> (DriveState, Option<String>) {
    let read = || -> std::io::Result<(Vec<u8>, Vec<u8>)> {
        let file: File = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)?;
        let part = |len: usize| vec![0; size.min(len as u64) as usize];
        let (mut first, mut last) = (part(HEAD_LEN), part(TAIL_LEN));
        file.read_exact_at(&mut first, 0)?;
        let tail = size - last.len() as u64;
        file.read_exact_at(&mut last, tail)?;
        Ok((first, last))
    };
    let (first, last) = match read() {
        Ok(read) => read,
        Err(e) => return (DriveState::Unreadable, Some(e.to_string())),
    };
    if let Some(label) = first.get(..LABEL_SIZE).and_then(|label| Label::decode(label).ok()) {
        return (DriveState::Foreign, Some(format!("disk {} of pool {} ({})", label.id, label.pool_name, label.pool)));
    }
    match detect(&first, &last) {
        Some(signature) => (DriveState::Foreign, Some(signature.content.description().to_owned())),
        None => (DriveState::Free, None),
    }
}

/// The name of a drive that stays the same, of those the shortest.
fn stable(system: &System, path: &Path) -> Option<String> {
    let target = std::fs::canonicalize(path).ok()?;
    let links = entries(&system.dev.join("disk/by-id")).into_iter();
    let ours = links.filter(|link| std::fs::canonicalize(link).is_ok_and(|to| to == target));
    ours.map(|link| link.display().to_string()).min_by_key(String::len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine of plain files.
    struct Machine {
        dir: tempfile::TempDir,
        system: System,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let of = |name: &str| dir.path().join(name);
            let system = System { sys: of("sys"), dev: of("dev"), proc: of("proc") };
            std::fs::create_dir_all(system.proc.join("self")).unwrap();
            std::fs::create_dir_all(system.dev.join("disk/by-id")).unwrap();
            Self { dir, system }
        }

        fn put(&self, file: &str, text: &str) {
            let path = self.dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn drive(&self, name: &str, number: &str, mib: u64) {
            self.put(&format!("sys/block/{name}/size"), &format!("{}\n", mib << 11));
            self.put(&format!("sys/block/{name}/dev"), &format!("{number}\n"));
            let file = File::create(self.system.dev.join(name)).unwrap();
            file.set_len(mib << 20).unwrap();
        }

        fn found(&self) -> Vec<(String, DriveState, String)> {
            let row = |d: Drive| (name_of(Path::new(&d.path)), d.state, d.holds.unwrap_or_default());
            all(&self.system, &|_| false).into_iter().map(row).collect()
        }
    }

    fn row(name: &str, state: DriveState, holds: &str) -> (String, DriveState, String) {
        (name.into(), state, holds.into())
    }

    #[test]
    fn drives_are_free_foreign_or_in_use() {
        let machine = Machine::new();
        for (i, name) in ["sda", "sdb", "sdc", "sdd", "sde", "sdf", "loop0", "ram0", "ublkb3"].iter().enumerate() {
            machine.drive(name, &format!("8:{}", i * 16), if *name == "loop0" { 0 } else { 64 });
        }
        // Mounted by a partition, part of a volume, swap space, a file system nobody uses, read-only.
        machine.put("sys/block/sda/sda1/partition", "1\n");
        machine.put("sys/block/sda/sda1/dev", "8:1\n");
        machine.put(
            "proc/self/mountinfo",
            "22 1 0:21 / /proc rw - proc proc rw\n25 22 8:1 / /my\\040boot rw,relatime shared:1 - ext4 /dev/sda1 rw\n",
        );
        machine.put("sys/block/sdb/holders/dm-0", "");
        machine.put("proc/swaps", &format!("Filename Type\n{}/sdc partition 1 0 -2\n", machine.system.dev.display()));
        let sdd = OpenOptions::new().write(true).open(machine.system.dev.join("sdd")).unwrap();
        sdd.write_all_at(b"XFSB", 0).unwrap();
        machine.put("sys/block/sdf/ro", "1\n");
        std::os::unix::fs::symlink(
            machine.system.dev.join("sde"),
            machine.system.dev.join("disk/by-id/ata-long-name-of-it"),
        )
        .unwrap();
        std::os::unix::fs::symlink(machine.system.dev.join("sde"), machine.system.dev.join("disk/by-id/wwn-0x5"))
            .unwrap();
        assert_eq!(
            machine.found(),
            [
                row("sda", DriveState::InUse, "sda1 is mounted on /my boot"),
                row("sdb", DriveState::InUse, "sdb is part of dm-0"),
                row("sdc", DriveState::InUse, "sdc is swap space"),
                row("sdd", DriveState::Foreign, "XFS file system"),
                row("sde", DriveState::Free, ""),
                row("sdf", DriveState::Foreign, "it is read-only"),
            ]
        );
        let sde = all(&machine.system, &|_| false).into_iter().find(|d| d.path.ends_with("sde")).unwrap();
        assert!(sde.stable_path.is_some_and(|path| path.ends_with("wwn-0x5")));
        assert_eq!(sde.size, 64 << 20);
        let ours = |path: &Path| !path.ends_with("sdd");
        assert_eq!(all(&machine.system, &ours).len(), 1);
    }

    #[test]
    fn volumes_and_drives_that_do_not_answer() {
        let machine = Machine::new();
        machine.drive("loop1", "7:1", 64);
        machine.put("sys/block/loop1/loop/backing_file", "/my pool/mnt/data\n");
        machine.drive("loop2", "7:2", 64);
        machine.put("sys/block/loop2/loop/backing_file", "/my pool/disks/disk0.img\n");
        machine.put(
            "proc/self/mountinfo",
            "30 1 0:50 / /my\\040pool/mnt rw,nosuid - fuse.ashlar ashlar rw\n31 1 8:1 / /my\\040pool/disks rw - ext4 /dev/sda1 rw\n",
        );
        // One that somebody waits for already.
        machine.drive("sda", "8:0", 64);
        std::fs::remove_file(machine.system.dev.join("sda")).unwrap();
        READING.lock().insert(machine.system.dev.join("sda"));
        assert_eq!(
            machine.found(),
            [row("loop2", DriveState::Free, ""), row("sda", DriveState::Unreadable, "it does not answer")]
        );
        READING.lock().remove(&machine.system.dev.join("sda"));
    }

    #[test]
    fn a_drive_of_a_pool_names_it() {
        let machine = Machine::new();
        machine.drive("sda", "8:0", 256);
        machine.drive("sdb", "8:16", 256);
        let new = crate::daemon::engine::NewPool {
            name: "tank".into(),
            disks: vec![machine.system.dev.join("sda")],
            tolerance: blockdev::report::Tolerance::None,
            chunk_size: None,
            force: false,
        };
        crate::daemon::engine::create(&new).unwrap();
        let found = machine.found();
        assert!(found[0].1 == DriveState::Foreign && found[0].2.starts_with("disk 0 of pool tank ("), "{found:?}");
        assert_eq!(found[1], row("sdb", DriveState::Free, ""));
        // One that is shorter than the kernel says, or is not there.
        std::fs::remove_file(machine.system.dev.join("sdb")).unwrap();
        assert_eq!(machine.found()[1].1, DriveState::Unreadable);
    }
}
