//! Which mounted file systems lie on a block device, directly or through partitions and device mapper.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use blockdev::error::{Error, Result};
use blockdev::frontend::freeze::Mounted;

/// How many devices may lie above each other.
const DEPTH_MAX: usize = 8;

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Number of the mount.
    pub id: u64,
    /// Where it is mounted; one place of several.
    pub point: PathBuf,
    /// Identity of the file system: two mounts of one share it.
    pub device: String,
    /// What was mounted.
    source: PathBuf,
    read_only: bool,
}

/// Octal escapes of mountinfo: space, tab, newline, backslash.
fn unescape(text: &str) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).and_then(|d| std::str::from_utf8(d).ok());
        match octal.filter(|_| bytes[i] == b'\\').and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    OsString::from_vec(out)
}

/// Reads the lines of `/proc/PID/mountinfo`, see proc_pid_mountinfo(5); what is not of that form is left out.
fn parse(text: &str) -> Vec<Mount> {
    let line = |line: &str| -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let read_only = right.get(2)?.split(',').any(|option| option == "ro");
        let (device, point) = ((*left.get(2)?).to_owned(), PathBuf::from(unescape(left.get(4)?)));
        Some(Mount {
            id: left.first()?.parse().ok()?,
            point,
            device,
            source: unescape(right.get(1)?).into(),
            read_only,
        })
    };
    text.lines().filter_map(line).collect()
}

/// Devices that lie directly below one, as `MAJOR:MINOR`.
fn below(sys: &Path, device: &str) -> Vec<String> {
    let dir = sys.join("dev/block").join(device);
    let number = |dir: PathBuf| std::fs::read_to_string(dir.join("dev")).ok().map(|text| text.trim().to_owned());
    let mut out = Vec::new();
    if dir.join("partition").exists()
        && let Some(whole) = std::fs::canonicalize(&dir).ok().and_then(|d| d.parent().map(Path::to_owned))
    {
        out.extend(number(whole));
    }
    let slaves = std::fs::read_dir(dir.join("slaves")).into_iter().flatten().flatten();
    out.extend(slaves.filter_map(|entry| number(entry.path())));
    out
}

/// Whether a device is one of `targets`, or lies on one.
fn lies_on(sys: &Path, device: &str, targets: &BTreeSet<String>) -> bool {
    let mut level = vec![device.to_owned()];
    for _ in 0..DEPTH_MAX {
        if level.iter().any(|d| targets.contains(d)) {
            return true;
        }
        level = level.iter().flat_map(|d| below(sys, d)).collect();
        if level.is_empty() {
            return false;
        }
    }
    false
}

/// `MAJOR:MINOR` of a block device.
pub fn number_of(path: &Path) -> Result<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::metadata(path).map_err(|e| Error::io(format!("{}: {e}", path.display())))?;
    if !meta.file_type().is_block_device() {
        return Err(Error::invalid(format!("{} is no block device", path.display())));
    }
    let dev = meta.rdev();
    Ok(format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev)))
}

fn mountinfo() -> Result<String> {
    let text = std::fs::read("/proc/self/mountinfo");
    // What is not UTF-8 there is escaped, or the name of something that is not ours.
    text.map(|t| String::from_utf8_lossy(&t).into_owned())
        .map_err(|e| Error::io(format!("reading /proc/self/mountinfo: {e}")))
}

/// The file system that a path lies on.
pub fn device_of(path: &Path) -> Result<String> {
    let id = Mounted::open(path)?.id()?;
    let found = parse(&mountinfo()?).into_iter().find(|m| m.id == id);
    found.map(|m| m.device).ok_or_else(|| Error::io(format!("{}: its mount is not listed", path.display())))
}

/// The number of the mount of a file system at a place, if it is there.
pub fn find(device: &str, point: &Path) -> Option<u64> {
    parse(&mountinfo().ok()?).into_iter().rev().find(|m| m.device == device && m.point == point).map(|m| m.id)
}

/// File systems that can be written to and lie on any of these devices, each once.
pub fn on(targets: &BTreeSet<String>) -> Result<Vec<Mount>> {
    Ok(select(&mountinfo()?, Path::new("/sys"), targets))
}

fn select(text: &str, sys: &Path, targets: &BTreeSet<String>) -> Vec<Mount> {
    let mut out: Vec<Mount> = Vec::new();
    for mount in parse(text).into_iter().filter(|m| !m.read_only) {
        // A file system of several devices, such as btrfs, has a number of its own: what was mounted tells.
        let source = || number_of(&mount.source).ok();
        let found = lies_on(sys, &mount.device, targets) || source().is_some_and(|d| lies_on(sys, &d, targets));
        if found && !out.iter().any(|other| other.device == mount.device) {
            out.push(mount);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/root rw
30 22 259:0 / /srv/with\\040space rw,relatime shared:1 - ext4 /dev/ublkb0 rw
31 22 259:0 /sub /srv/again rw,relatime shared:1 - ext4 /dev/ublkb0 rw
32 22 259:5 / /srv/part rw - xfs /dev/ublkb0p1 rw,noquota
33 22 253:2 / /srv/lv rw - xfs /dev/mapper/vg-lv rw
34 22 259:0 / /srv/ro ro - ext4 /dev/ublkb0 ro
35 22 0:40 / /tmp rw - tmpfs tmpfs rw
nonsense
";

    /// `/sys` with a partition 259:5 of 259:0, and 253:2 on 253:1 on 259:5.
    fn sys() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = |p: &str| dir.path().join(p);
        for (at, number) in [("devices/ublkb0", "259:0"), ("devices/ublkb0/ublkb0p1", "259:5")] {
            std::fs::create_dir_all(path(at)).unwrap();
            std::fs::write(path(at).join("dev"), format!("{number}\n")).unwrap();
        }
        std::fs::write(path("devices/ublkb0/ublkb0p1/partition"), "1\n").unwrap();
        for (at, number) in [("devices/dm-1", "253:1"), ("devices/dm-2", "253:2")] {
            std::fs::create_dir_all(path(at).join("slaves")).unwrap();
            std::fs::write(path(at).join("dev"), format!("{number}\n")).unwrap();
        }
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(path(to), path(at)).unwrap();
        link("devices/ublkb0/ublkb0p1", "devices/dm-1/slaves/ublkb0p1");
        link("devices/dm-1", "devices/dm-2/slaves/dm-1");
        std::fs::create_dir_all(path("dev/block")).unwrap();
        link("devices/ublkb0", "dev/block/259:0");
        link("devices/ublkb0/ublkb0p1", "dev/block/259:5");
        link("devices/dm-1", "dev/block/253:1");
        link("devices/dm-2", "dev/block/253:2");
        dir
    }

    #[test]
    fn file_systems_are_found_through_what_lies_between() {
        let sys = sys();
        let found = |target: &str| {
            let all = select(MOUNTINFO, sys.path(), &BTreeSet::from([target.to_owned()]));
            all.into_iter().map(|m| m.point.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("259:0"), ["/srv/with space", "/srv/part", "/srv/lv"]);
        assert_eq!(found("259:5"), ["/srv/part", "/srv/lv"]);
        assert_eq!(found("253:1"), ["/srv/lv"]);
        assert!(found("259:7").is_empty());
    }

    #[test]
    fn what_is_no_block_device_is_told() {
        assert!(number_of(Path::new("/dev/null")).is_err());
        assert!(number_of(Path::new("/dev/nothing")).is_err());
        assert!(on(&BTreeSet::new()).unwrap().is_empty());
        let proc = device_of(Path::new("/proc/self")).unwrap();
        assert!(find(&proc, Path::new("/proc")).is_some() && find(&proc, Path::new("/elsewhere")).is_none());
    }
}
