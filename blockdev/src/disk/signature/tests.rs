use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::disk::test_support::{Random, block_on};
use crate::disk::{FileDisk, OpenOptions};

/// Where tools are that only the administrator has in the search path.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// A sparse image of `mib` MiB, treated with a command. None if the command is not installed.
fn made_by(dir: &TempDir, mib: u64, command: &str, args: &[&str]) -> Option<PathBuf> {
    let path = dir.path().join(format!("{command}.img"));
    std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    let search = format!("{}:{SBIN}", std::env::var("PATH").unwrap_or_default());
    let args = args.iter().map(|a| a.replace("IMAGE", path.to_str().unwrap()));
    let output = Command::new(command).args(args).env("PATH", search).stdin(Stdio::null()).output();
    match output {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("{command} is not installed, its format is not tested against it");
            None
        }
        Err(e) => panic!("{command}: {e}"),
        Ok(output) => {
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
            Some(path)
        }
    }
}

fn probe_file(path: &Path) -> Option<Content> {
    let disk = FileDisk::open(path, OpenOptions::default()).unwrap();
    block_on(probe(&*disk)).unwrap().map(|s| s.content)
}

fn check(mib: u64, command: &str, args: &[&str], expected: Content) {
    let dir = TempDir::new().unwrap();
    if let Some(path) = made_by(&dir, mib, command, args) {
        assert_eq!(probe_file(&path), Some(expected), "{command} {args:?}");
    }
}

#[test]
fn real_ext_file_systems() {
    check(16, "mkfs.ext4", &["-q", "-F", "IMAGE"], Content::Ext4);
    check(16, "mkfs.ext4", &["-q", "-F", "-b", "1024", "IMAGE"], Content::Ext4);
    check(16, "mkfs.ext3", &["-q", "-F", "IMAGE"], Content::Ext3);
    check(16, "mkfs.ext2", &["-q", "-F", "IMAGE"], Content::Ext2);
}

#[test]
fn real_xfs() {
    check(512, "mkfs.xfs", &["-q", "-f", "IMAGE"], Content::Xfs);
}

#[test]
fn real_btrfs() {
    check(160, "mkfs.btrfs", &["-q", "-f", "IMAGE"], Content::Btrfs);
}

#[test]
fn real_swap() {
    check(4, "mkswap", &["IMAGE"], Content::Swap);
    check(4, "mkswap", &["-p", "65536", "IMAGE"], Content::Swap);
}

#[test]
fn real_fat() {
    check(4, "mkfs.vfat", &["-F", "12", "IMAGE"], Content::Fat);
    check(16, "mkfs.vfat", &["-F", "16", "IMAGE"], Content::Fat);
    check(64, "mkfs.vfat", &["-F", "32", "IMAGE"], Content::Fat);
    check(64, "mkfs.vfat", &["-S", "4096", "IMAGE"], Content::Fat);
}

#[test]
fn real_images() {
    check(1, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", "preallocation=full", "IMAGE", "1M"], Content::Qcow2);
    check(1, "qemu-img", &["create", "-q", "-f", "vmdk", "IMAGE", "64M"], Content::Vmdk);
    check(1, "qemu-img", &["create", "-q", "-f", "vhdx", "IMAGE", "64M"], Content::Vhdx);
    check(1, "qemu-img", &["create", "-q", "-f", "vdi", "-o", "static=on", "IMAGE", "8M"], Content::Vdi);
}

#[test]
fn real_others_where_their_tools_are_installed() {
    check(64, "mkfs.f2fs", &["-q", "IMAGE"], Content::F2fs);
    check(16, "mkfs.exfat", &["IMAGE"], Content::ExFat);
    check(16, "mkfs.ntfs", &["-q", "-F", "-Q", "IMAGE"], Content::Ntfs);
    check(64, "mkfs.bcachefs", &["-q", "IMAGE"], Content::Bcachefs);
    check(16, "parted", &["-s", "IMAGE", "mklabel", "gpt"], Content::Gpt);
    check(16, "parted", &["-s", "IMAGE", "mklabel", "msdos", "mkpart", "primary", "1MiB", "100%"], Content::Mbr);
    check(16, "sgdisk", &["-n", "1", "IMAGE"], Content::Gpt);
    check(32, "cryptsetup", &["luksFormat", "-q", "--type", "luks1", "IMAGE", "/etc/hostname"], Content::LuksV1);
}

const TAIL: usize = 512 << 10;

/// What is found in zeroes with `parts` put at places from the start, or with `end` set from the end.
fn found(end: bool, parts: &[(usize, &[u8])]) -> Option<Signature> {
    let (mut first, mut last) = (vec![0; HEAD_LEN], vec![0; TAIL]);
    for (at, bytes) in parts {
        let target = if end { &mut last[TAIL - at..] } else { &mut first[*at..] };
        target[..bytes.len()].copy_from_slice(bytes);
    }
    detect(&first, &last)
}

fn at_start(parts: &[(usize, &[u8])]) -> Option<Content> {
    let found = found(false, parts)?;
    assert!(matches!(found.place, Place::FromStart(_)), "{found}");
    Some(found.content)
}

fn at_end(parts: &[(usize, &[u8])]) -> Option<Content> {
    let found = found(true, parts)?;
    assert!(matches!(found.place, Place::BeforeEnd(_)), "{found}");
    Some(found.content)
}

#[test]
fn volume_managers() {
    assert_eq!(at_start(&[(512, b"LABELONE"), (536, b"LVM2 001")]), Some(Content::Lvm2));
    assert_eq!(at_start(&[(1536, b"LABELONE"), (1560, b"LVM2 001")]), Some(Content::Lvm2));
    assert_eq!(at_start(&[(2048, b"LABELONE"), (2072, b"LVM2 001")]), None);
    assert_eq!(at_start(&[(0, b"LUKS\xba\xbe\0\x01")]), Some(Content::LuksV1));
    assert_eq!(at_start(&[(0, b"LUKS\xba\xbe\0\x02")]), Some(Content::LuksV2));
    assert_eq!(at_start(&[(0x4000, b"SKUL\xba\xbe\0\x02")]), Some(Content::LuksV2));
    assert_eq!(at_start(&[(0, b"dmvdo001")]), Some(Content::Vdo));
    let drbd = |magic: &[u8]| at_end(&[(4096 - 60, magic)]);
    assert_eq!(drbd(&[0x83, 0x74, 0x02, 0x6b]), Some(Content::Drbd));
    assert_eq!(drbd(&[0x83, 0x74, 0x02, 0x6d]), Some(Content::Drbd));
    assert_eq!(drbd(&[0x83, 0x74, 0x02, 0x67]), None);
}

#[test]
fn md_raid_of_all_versions() {
    let v1 = b"\xfc\x4e\x2b\xa9\x01\0\0\0";
    let v09 = b"\xfc\x4e\x2b\xa9\0\0\0\0\x5a\0\0\0";
    let v09_big = b"\xa9\x2b\x4e\xfc\0\0\0\0\0\0\0\x5a";
    assert_eq!(at_start(&[(0, v1)]), Some(Content::MdRaid));
    assert_eq!(at_start(&[(4096, v1)]), Some(Content::MdRaid));
    assert_eq!(at_end(&[(8192, v1)]), Some(Content::MdRaid));
    assert_eq!(at_end(&[(12288 - 512, v1)]), Some(Content::MdRaid));
    assert_eq!(at_end(&[(65536, v09)]), Some(Content::MdRaid));
    assert_eq!(at_end(&[(131_072 - 512, v09_big)]), Some(Content::MdRaid));
    assert_eq!(at_end(&[(65536, b"\xfc\x4e\x2b\xa9\x07\0\0\0")]), None);
    // A mirror with its metadata at the end shows its file system at the start, but is more than that.
    let mut last = vec![0; TAIL];
    last[TAIL - 8192..][..8].copy_from_slice(v1);
    assert_eq!(detect(b"XFSB", &last).map(|s| s.content), Some(Content::MdRaid));
}

#[test]
fn zfs_labels() {
    let little = b"\x0c\xb1\xba\0\0\0\0\0\x88\x13\0\0\0\0\0\0";
    let big = b"\0\0\0\0\0\xba\xb1\x0c\0\0\0\0\0\0\0\x1c";
    assert_eq!(at_start(&[(128 << 10, little)]), Some(Content::Zfs));
    assert_eq!(at_start(&[((384 << 10) + 4096, big)]), Some(Content::Zfs));
    assert_eq!(at_start(&[(4096, little)]), None);
    assert_eq!(at_end(&[(64 << 10, little)]), Some(Content::Zfs));
    assert_eq!(at_end(&[(383 << 10, big)]), Some(Content::Zfs));
    let odd_version = b"\x0c\xb1\xba\0\0\0\0\0\x40\0\0\0\0\0\0\0";
    assert_eq!(at_start(&[(128 << 10, odd_version)]), None);
}

#[test]
fn partition_tables() {
    let mark: (usize, &[u8]) = (510, &[0x55, 0xaa]);
    let linux = b"\x80\x20\x21\0\x83\xfe\xff\xff\0\x08\0\0\0\xf8\x01\0";
    assert_eq!(at_start(&[mark, (446, linux)]), Some(Content::Mbr));
    assert_eq!(at_start(&[mark, (494, linux)]), Some(Content::Mbr));
    assert_eq!(at_start(&[mark]), Some(Content::Mbr));
    // No start, or a status no partition has: not a table.
    assert_eq!(at_start(&[mark, (446, b"\x80\0\0\0\x83\0\0\0\0\0\0\0\0\xf8\x01\0")]), None);
    assert_eq!(at_start(&[mark, (446, b"\x41\x20\x21\0\x83\xfe\xff\xff\0\x08\0\0\0\xf8\x01\0")]), None);
    assert_eq!(at_start(&[(446, linux)]), None);
    let protective = b"\0\0\x02\0\xee\xff\xff\xff\x01\0\0\0\xff\xff\xff\xff";
    assert_eq!(at_start(&[mark, (446, protective), (512, b"EFI PART\0\0\x01\0")]), Some(Content::Gpt));
    assert_eq!(at_start(&[mark, (446, protective), (4096, b"EFI PART\0\0\x01\0")]), Some(Content::Gpt));
    assert_eq!(at_end(&[(512, b"EFI PART\0\0\x01\0")]), Some(Content::Gpt));
    assert_eq!(at_end(&[(4096, b"EFI PART\0\0\x01\0")]), Some(Content::Gpt));
}

#[test]
fn file_systems_by_their_marks() {
    assert_eq!(at_start(&[(0, b"hsqs")]), Some(Content::Squashfs));
    assert_eq!(at_start(&[(1024, b"\x10\x20\xf5\xf2")]), Some(Content::F2fs));
    assert_eq!(at_start(&[(0x8001, b"CD001\x01")]), Some(Content::Iso9660));
    assert_eq!(at_start(&[(3, b"NTFS    "), (510, b"\x55\xaa")]), Some(Content::Ntfs));
    assert_eq!(at_start(&[(3, b"EXFAT   "), (510, b"\x55\xaa")]), Some(Content::ExFat));
    let bcachefs = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
    assert_eq!(at_start(&[(4120, bcachefs)]), Some(Content::Bcachefs));
    assert_eq!(at_start(&[(4086, b"SWAPSPACE2")]), Some(Content::Swap));
    assert_eq!(at_start(&[(0x10040, b"_BHRfS_M")]), Some(Content::Btrfs));
    assert_eq!(at_start(&[(0, b"QFI\xfb\0\0\0\x03")]), Some(Content::Qcow2));
    for (at, mark, content) in MARKS {
        assert_eq!(at_start(&[(*at, mark)]), Some(*content), "mark at {at}");
        assert!(at + mark.len() <= HEAD_LEN);
    }
}

#[test]
fn nothing_is_found_where_nothing_is() {
    assert_eq!(found(false, &[]), None);
    let mut random = Random(99);
    for _ in 0..4 {
        let mut noise = |len: usize| (0..len).map(|_| random.below(256) as u8).collect::<Vec<_>>();
        assert_eq!(detect(&noise(HEAD_LEN), &noise(TAIL)), None);
        // Bytes that only happen to carry the boot mark.
        let mut boot = noise(4096);
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(detect(&boot, &[]), None);
    }
}

#[test]
fn parts_of_any_length_are_looked_at_safely() {
    let full: Vec<u8> = MARKS.iter().fold(vec![0xff; 0x1_1000], |mut bytes, (at, mark, _)| {
        if at + mark.len() <= bytes.len() {
            bytes[*at..at + mark.len()].copy_from_slice(mark);
        }
        bytes
    });
    for len in (0..1200).chain((1200..full.len()).step_by(509)) {
        let _ = detect(&full[..len], &full[full.len() - len..]);
        let _ = detect(&[], &full[..len]);
    }
}

#[test]
fn a_disk_smaller_than_the_parts_is_probed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("small");
    let mut bytes = vec![0; 8192];
    bytes[8192 - 512..][..8].copy_from_slice(b"EFI PART");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(probe_file(&path), Some(Content::Gpt));
    std::fs::write(&path, vec![0; 8192]).unwrap();
    assert_eq!(probe_file(&path), None);
}

#[test]
fn a_signature_tells_what_and_where() {
    let text = found(false, &[(0, b"XFSB")]).map(|s| s.to_string());
    assert_eq!(text.as_deref(), Some("XFS file system (mark at byte 0)"));
    let text = found(true, &[(512, b"EFI PART")]).map(|s| s.to_string());
    assert_eq!(text.as_deref(), Some("GPT partition table (mark 512 bytes before the end)"));
}
