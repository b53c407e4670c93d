//! What a laboratory may leave in the kernel: mounts and loop devices on its volumes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::frontend::loopdev::{self, with_private_files};
use rustix::mount::{UnmountFlags, unmount};

/// Users of a file system that an error names.
const USERS_NAMED: usize = 5;

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub mountpoint: PathBuf,
    /// What, such as `/dev/loop3`.
    pub source: PathBuf,
}

/// All mounts, in order of mounting.
pub fn mounts() -> Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo");
    Ok(parse(&text.map_err(|e| Error::io(format!("reading /proc/self/mountinfo: {e}")))?))
}

/// Fields: id, parent, major:minor, root, mount point, options, optional fields…, `-`, type, source, super options.
fn parse(text: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let dash = fields.iter().position(|f| *f == b"-")?;
        Some(Mount { mountpoint: unescape(fields.get(4)?), source: unescape(fields.get(dash + 2)?) })
    };
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// Blanks, tabs, line ends and backslashes are written as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut i = 0;
    while i < field.len() {
        let digits = field.get(i + 1..i + 4).filter(|d| d.iter().all(|b| (b'0'..b'8').contains(b)));
        match digits {
            Some(d) if field[i] == b'\\' => {
                out.push(d.iter().fold(0u32, |value, b| value * 8 + u32::from(b - b'0')) as u8);
                i += 4;
            }
            _ => {
                out.push(field[i]);
                i += 1;
            }
        }
    }
    OsString::from_vec(out).into()
}

/// Loop devices over files below `dir`.
pub fn loops_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    Ok(loopdev::find(&dir)?.into_iter().map(|l| l.device).collect())
}

/// Mounts of these devices (or of their partitions), the last mounted first.
pub fn mounts_of(devices: &[PathBuf]) -> Result<Vec<Mount>> {
    let is_of = |source: &Path, device: &Path| {
        let rest = source.to_str().zip(device.to_str()).and_then(|(s, d)| s.strip_prefix(d));
        rest.is_some_and(|r| r.is_empty() || r.strip_prefix('p').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())))
    };
    let mut found: Vec<Mount> = mounts()?.into_iter().filter(|m| devices.iter().any(|d| is_of(&m.source, d))).collect();
    found.reverse();
    Ok(found)
}

/// Unmounts a file system in order; [`ErrorKind::Busy`] when it is in use, and by whom.
pub fn unmount_in_order(mountpoint: &Path) -> Result<()> {
    // The unmount writes to a volume our own daemon may serve, but this process is not that daemon.
    unmount(mountpoint, UnmountFlags::empty()).map_err(|e| {
        let path = mountpoint.display();
        if e != rustix::io::Errno::BUSY {
            return Error::io(format!("unmounting {path}: {e}"));
        }
        let mut users = users_of(mountpoint);
        let more = users.len().saturating_sub(USERS_NAMED);
        users.truncate(USERS_NAMED);
        if more > 0 {
            users.push(format!("{more} more"));
        }
        let by = if users.is_empty() { String::new() } else { format!(" by {}", users.join(", ")) };
        Error::new(ErrorKind::Busy, format!("{path} is in use{by}: end that first"))
    })
}

/// Processes with a working directory, root, program or open file in a file system, as far as they can be seen: `NAME (PID)`.
fn users_of(mountpoint: &Path) -> Vec<String> {
    let Ok(device) = std::fs::metadata(mountpoint).map(|m| m.dev()) else { return Vec::new() };
    let inside = |link: &Path| std::fs::metadata(link).is_ok_and(|m| m.dev() == device);
    let uses = |process: &Path| {
        let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        ["cwd", "root", "exe"].iter().any(|l| inside(&process.join(l))) || open.into_iter().any(|f| inside(&f.path()))
    };
    let name = |process: &std::fs::DirEntry| {
        let pid: u32 = process.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
        uses(&process.path()).then(|| format!("{} ({pid})", name.trim_end()))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|p| name(&p)).collect()
}

/// Detaches a loop device.
pub fn detach(device: &Path) -> Result<()> {
    let path = device.to_owned();
    with_private_files(move || loopdev::detach(&path))?
}

/// Where something is mounted below `path`, the innermost first.
pub fn mounts_below(path: &Path) -> Result<Vec<PathBuf>> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let below = mounts()?.into_iter().map(|m| m.mountpoint).filter(|point| point != &path && point.starts_with(&path));
    let mut below: Vec<PathBuf> = below.collect();
    below.reverse();
    Ok(below)
}

/// Takes away a FUSE mount whose server is gone.
pub fn clear_dead_mount(mountpoint: &Path) -> Result<()> {
    if !mounts()?.iter().any(|m| m.mountpoint == mountpoint) {
        return Ok(());
    }
    let direct = unmount(mountpoint, UnmountFlags::DETACH);
    if direct.is_ok() {
        return Ok(());
    }
    // Without root the set-user-id helper does it.
    let helper = std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).output();
    match helper {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Error::io(format!("unmounting {}: {}", mountpoint.display(), said.trim())))
        }
        Err(e) => Err(Error::io(format!("unmounting {}: {direct:?}, and fusermount3: {e}", mountpoint.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read() {
        let text = b"25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                     90 25 7:3 / /mnt/a\\040b\\134 rw - xfs /dev/loop3 rw\n\
                     91 25 7:4 / /mnt/c rw shared:2 master:1 - ext4 /dev/loop3p1 rw\nbroken line\n";
        let all = parse(text);
        assert_eq!(all.len(), 3);
        assert_eq!(all[1], Mount { mountpoint: "/mnt/a b\\".into(), source: "/dev/loop3".into() });
        assert_eq!(all[2].source, Path::new("/dev/loop3p1"));
        assert!(mounts().unwrap().iter().any(|m| m.mountpoint == Path::new("/")));
        assert!(mounts_of(&["/dev/loop-none".into()]).unwrap().is_empty());
    }
}
