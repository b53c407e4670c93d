//! From a path to the whole drive below it, by sysfs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest chain of devices on top of each other that is followed.
const DEPTH_MAX: usize = 8;

/// How a drive is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// NVMe admin commands.
    Nvme,
    /// SCSI commands.
    Scsi,
    /// Not at all, and why.
    Mute(&'static str),
}

/// A whole drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where it is, such as `/dev/nvme0n1`.
    pub node: PathBuf,
    /// How it is spoken to.
    pub kind: Kind,
    /// Bytes of it.
    pub capacity: Option<u64>,
    /// What the kernel knows of its serial number.
    pub serial: Option<String>,
    number: (u64, u64),
}

impl Device {
    /// Opens it for questions only: without a claim, and without waiting for a medium.
    pub fn open(&self) -> Result<File, String> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(&self.node);
        let file = opened.map_err(|e| format!("{} cannot be opened: {e}", self.node.display()))?;
        let meta = file.metadata().map_err(|e| format!("{} cannot be examined: {e}", self.node.display()))?;
        if !meta.file_type().is_block_device() || number(meta.rdev()) != self.number {
            return Err(format!("{} is another device by now", self.node.display()));
        }
        Ok(file)
    }
}

fn number(device: u64) -> (u64, u64) {
    (libc::major(device).into(), libc::minor(device).into())
}

/// The drive that `path`, a block device or a partition, lies on; why there is none otherwise.
pub fn find(path: &Path) -> Result<Device, String> {
    let meta = std::fs::metadata(path).map_err(|e| format!("it cannot be examined: {e}"))?;
    if meta.is_file() {
        return Err("it is a file, which does not know of the drive it lies on".into());
    }
    if !meta.file_type().is_block_device() {
        return Err("it is no block device".into());
    }
    find_in(Path::new("/sys"), Path::new("/dev"), number(meta.rdev()))
}

/// The same, where sysfs and devices are in `sys` and `dev`.
fn find_in(sys: &Path, dev: &Path, (major, minor): (u64, u64)) -> Result<Device, String> {
    let unknown = |e: std::io::Error| format!("the kernel does not tell which drive it is: {e}");
    let mut at = sys.join(format!("dev/block/{major}:{minor}")).canonicalize().map_err(unknown)?;
    for _ in 0..DEPTH_MAX {
        if at.join("partition").exists() {
            at = at.parent().map(Path::to_owned).unwrap_or(at);
        }
        let mut below = slaves(&at);
        match (below.pop(), below.is_empty()) {
            (None, _) => return whole(&at, dev),
            (Some(only), true) => at = only.canonicalize().map_err(unknown)?,
            (Some(_), false) => return Err("it lies on several drives".into()),
        }
    }
    Err("too many devices lie on top of each other".into())
}

/// What a device mapper or RAID device lies on.
fn slaves(at: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(at.join("slaves")).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

fn whole(at: &Path, dev: &Path) -> Result<Device, String> {
    let text = |name: &str| {
        let text = std::fs::read_to_string(at.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let numbers = text("dev").and_then(|numbers| {
        let (major, minor) = numbers.split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    let name = at.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let number = numbers.ok_or_else(|| format!("the kernel does not tell the number of {name}"))?;
    Ok(Device {
        // A slash in a name is an exclamation mark in sysfs.
        node: dev.join(name.replace('!', "/")),
        kind: kind(&name),
        // In sectors of 512 bytes, whatever the drive's own are.
        capacity: text("size").and_then(|sectors| sectors.parse::<u64>().ok()).and_then(|n| n.checked_mul(512)),
        serial: text("serial").or_else(|| text("device/serial")),
        number,
    })
}

fn kind(name: &str) -> Kind {
    let is = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
    };
    match () {
        () if is("nvme") => Kind::Nvme,
        () if is("sd") => Kind::Scsi,
        () if is("loop") => Kind::Mute("it is a loop device, which does not know of the drive below its file"),
        () if is("vd") => Kind::Mute("it is a virtio drive: only the machine that serves it knows"),
        () if is("nbd") => Kind::Mute("it is served over a network: only its server knows"),
        () if is("ram") || is("zram") => Kind::Mute("it is memory"),
        () => Kind::Mute("it is a kind of device that is not asked for its health"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A sysfs with an NVMe drive and a partition on it, and things on top.
    fn sysfs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str, files: &[(&str, &str)]| {
            let at = dir.path().join(path);
            std::fs::create_dir_all(at.join("slaves")).unwrap();
            files.iter().for_each(|(name, text)| std::fs::write(at.join(name), text).unwrap());
        };
        make("devices/pci/nvme0/nvme0n1", &[("dev", "259:0\n"), ("size", "2097152\n")]);
        make("devices/pci/nvme0/nvme0n1/nvme0n1p2", &[("dev", "259:2\n"), ("partition", "2\n"), ("size", "8\n")]);
        make("devices/pci/vda", &[("dev", "254:0\n"), ("size", "16\n"), ("serial", "pool0\n")]);
        make("devices/virtual/dm-0", &[("dev", "253:0\n")]);
        make("devices/virtual/dm-1", &[("dev", "253:1\n")]);
        make("devices/virtual/cciss!c0d0", &[("dev", "104:0\n")]);
        std::fs::create_dir_all(dir.path().join("dev/block")).unwrap();
        for (number, path) in [
            ("259:0", "devices/pci/nvme0/nvme0n1"),
            ("259:2", "devices/pci/nvme0/nvme0n1/nvme0n1p2"),
            ("254:0", "devices/pci/vda"),
            ("253:0", "devices/virtual/dm-0"),
            ("253:1", "devices/virtual/dm-1"),
            ("104:0", "devices/virtual/cciss!c0d0"),
        ] {
            symlink(dir.path().join(path), dir.path().join("dev/block").join(number)).unwrap();
        }
        let below = |on: &str, name: &str, under: &str| {
            let slave = dir.path().join("devices/virtual").join(on).join("slaves").join(name);
            symlink(dir.path().join(under), slave).unwrap();
        };
        below("dm-0", "nvme0n1p2", "devices/pci/nvme0/nvme0n1/nvme0n1p2");
        below("dm-1", "vda", "devices/pci/vda");
        below("dm-1", "dm-0", "devices/virtual/dm-0");
        dir
    }

    #[test]
    fn partitions_and_what_lies_on_them_lead_to_the_whole_drive() {
        let sys = sysfs();
        let found = |major, minor| find_in(sys.path(), Path::new("/dev"), (major, minor));
        let nvme = Device {
            node: "/dev/nvme0n1".into(),
            kind: Kind::Nvme,
            capacity: Some(1 << 30),
            serial: None,
            number: (259, 0),
        };
        for at in [(259, 0), (259, 2), (253, 0)] {
            assert_eq!(found(at.0, at.1).unwrap(), nvme, "{at:?}");
        }
        let virtio = found(254, 0).unwrap();
        assert_eq!((virtio.serial.as_deref(), virtio.capacity), (Some("pool0"), Some(8192)));
        assert!(matches!(virtio.kind, Kind::Mute(why) if why.contains("virtio")));
        assert_eq!(found(104, 0).unwrap().node, Path::new("/dev/cciss/c0d0"));
        assert!(found(253, 1).unwrap_err().contains("several drives"));
        assert!(found(1, 1).unwrap_err().contains("does not tell which drive"));
    }

    #[test]
    fn a_circle_comes_to_an_end() {
        let sys = sysfs();
        let slave = sys.path().join("devices/pci/vda/slaves/dm-1");
        symlink(sys.path().join("devices/pci/vda"), slave).unwrap();
        assert!(find_in(sys.path(), Path::new("/dev"), (254, 0)).unwrap_err().contains("too many"));
    }

    #[test]
    fn kinds_go_by_the_kernels_names() {
        assert_eq!([kind("nvme12n1"), kind("sda"), kind("sdaa")], [Kind::Nvme, Kind::Scsi, Kind::Scsi]);
        for name in ["loop0", "vdb", "nbd3", "ram1", "zram0", "mmcblk0", "sd", ""] {
            assert!(matches!(kind(name), Kind::Mute(_)), "{name}");
        }
    }

    #[test]
    fn files_and_what_is_no_device_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("disk.img");
        std::fs::write(&file, "x").unwrap();
        assert!(find(&file).unwrap_err().contains("is a file"));
        assert!(find(dir.path()).unwrap_err().contains("no block device"));
        assert!(find(Path::new("/dev/null")).unwrap_err().contains("no block device"));
        assert!(find(&dir.path().join("none")).unwrap_err().contains("cannot be examined"));
    }
}
