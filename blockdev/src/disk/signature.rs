//! Recognises foreign content on a disk, so that it is not overwritten by mistake.
//!
//! The magic numbers and places are those libblkid and the formats' own documents give.

use std::fmt;

use super::{Disk, DiskResult, IO_ALIGN};

#[cfg(test)]
mod tests;

/// Bytes from the start of the disk that [`probe`] looks at: all places of known formats but ZFS's last labels lie in it.
pub const HEAD_LEN: usize = 1 << 20;
/// Bytes from the end of the disk that [`probe`] looks at: ZFS's last label, which may lie up to 256 KiB before the end, is
/// what reaches farthest.
pub const TAIL_LEN: usize = 512 << 10;

/// What kind of content was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are those of the formats")]
pub enum Content {
    Gpt,
    Mbr,
    Ext2,
    Ext3,
    Ext4,
    Xfs,
    Btrfs,
    Bcachefs,
    Bcache,
    F2fs,
    Squashfs,
    Erofs,
    ReiserFs,
    Jfs,
    Gfs2,
    Ocfs2,
    Nilfs2,
    Apfs,
    HfsPlus,
    Fat,
    ExFat,
    Ntfs,
    BitLocker,
    Iso9660,
    Udf,
    Zfs,
    Swap,
    LuksV1,
    LuksV2,
    Lvm2,
    MdRaid,
    Vdo,
    Drbd,
    Bluestore,
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
}

impl Content {
    /// What people call it.
    pub fn description(self) -> &'static str {
        match self {
            Self::Gpt => "GPT partition table",
            Self::Mbr => "MBR partition table",
            Self::Ext2 => "ext2 file system",
            Self::Ext3 => "ext3 file system",
            Self::Ext4 => "ext4 file system",
            Self::Xfs => "XFS file system",
            Self::Btrfs => "btrfs file system",
            Self::Bcachefs => "bcachefs file system",
            Self::Bcache => "bcache device",
            Self::F2fs => "F2FS file system",
            Self::Squashfs => "squashfs file system",
            Self::Erofs => "EROFS file system",
            Self::ReiserFs => "ReiserFS file system",
            Self::Jfs => "JFS file system",
            Self::Gfs2 => "GFS2 file system",
            Self::Ocfs2 => "OCFS2 file system",
            Self::Nilfs2 => "NILFS2 file system",
            Self::Apfs => "APFS container",
            Self::HfsPlus => "HFS+ file system",
            Self::Fat => "FAT file system",
            Self::ExFat => "exFAT file system",
            Self::Ntfs => "NTFS file system",
            Self::BitLocker => "BitLocker volume",
            Self::Iso9660 => "ISO 9660 file system",
            Self::Udf => "UDF file system",
            Self::Zfs => "ZFS pool member",
            Self::Swap => "swap space",
            Self::LuksV1 => "LUKS1 encrypted volume",
            Self::LuksV2 => "LUKS2 encrypted volume",
            Self::Lvm2 => "LVM2 physical volume",
            Self::MdRaid => "Linux software RAID member",
            Self::Vdo => "dm-vdo volume",
            Self::Drbd => "DRBD metadata",
            Self::Bluestore => "Ceph BlueStore device",
            Self::Qcow2 => "qcow2 image",
            Self::Vmdk => "VMDK image",
            Self::Vhdx => "VHDX image",
            Self::Vdi => "VDI image",
        }
    }
}

/// Foreign content, and where its mark lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What it is.
    pub content: Content,
    /// Where the mark is.
    pub place: Place,
}

/// Position of a mark on the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// So many bytes after the start.
    FromStart(u64),
    /// So many bytes before the end.
    BeforeEnd(u64),
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::FromStart(at) => write!(f, "{} (mark at byte {at})", self.content.description()),
            Place::BeforeEnd(at) => write!(f, "{} (mark {at} bytes before the end)", self.content.description()),
        }
    }
}

/// Marks that are recognised by their bytes alone: place from the start, bytes, content.
const MARKS: &[(usize, &[u8], Content)] = &[
    (0, b"dmvdo001", Content::Vdo),
    (0, b"bluestore block device", Content::Bluestore),
    (0, b"XFSB", Content::Xfs),
    (0x1_0040, b"_BHRfS_M", Content::Btrfs),
    (
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9, 0xd9, 0x6a, 0x60, 0xcf, 0x80, 0x3d, 0xf7, 0xef],
        Content::Bcachefs,
    ),
    (
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81],
        Content::Bcache,
    ),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], Content::F2fs),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], Content::Erofs),
    (0, b"hsqs", Content::Squashfs),
    (0, b"sqsh", Content::Squashfs),
    (0x1_0034, b"ReIsEr", Content::ReiserFs),
    (0x8000, b"JFS1", Content::Jfs),
    (0x1_0000, &[0x01, 0x16, 0x19, 0x70, 0, 0, 0, 1], Content::Gfs2),
    (8192, b"OCFSV2", Content::Ocfs2),
    (4096, b"OCFSV2", Content::Ocfs2),
    (2048, b"OCFSV2", Content::Ocfs2),
    (1024, b"OCFSV2", Content::Ocfs2),
    (32, b"NXSB", Content::Apfs),
    (1024, &[b'H', b'+', 0, 4], Content::HfsPlus),
    (1024, &[b'H', b'X', 0, 5], Content::HfsPlus),
    (3, b"EXFAT   ", Content::ExFat),
    (3, b"NTFS    ", Content::Ntfs),
    (3, b"-FVE-FS-", Content::BitLocker),
    (0x8001, b"CD001", Content::Iso9660),
    (0x8001, b"BEA01", Content::Udf),
    (4096 - 10, b"SWAPSPACE2", Content::Swap),
    (8192 - 10, b"SWAPSPACE2", Content::Swap),
    (16384 - 10, b"SWAPSPACE2", Content::Swap),
    (65536 - 10, b"SWAPSPACE2", Content::Swap),
    (4096 - 10, b"SWAP-SPACE", Content::Swap),
    // A LUKS2 whose first header is gone is opened by its second one, which lies at one of these places.
    (0x4000, b"SKUL\xba\xbe", Content::LuksV2),
    (0x8000, b"SKUL\xba\xbe", Content::LuksV2),
    (0x1_0000, b"SKUL\xba\xbe", Content::LuksV2),
    (0x2_0000, b"SKUL\xba\xbe", Content::LuksV2),
    (0x4_0000, b"SKUL\xba\xbe", Content::LuksV2),
    (0, b"QFI\xfb", Content::Qcow2),
    (0, b"KDMV", Content::Vmdk),
    (0, b"# Disk DescriptorFile", Content::Vmdk),
    (0, b"vhdxfile", Content::Vhdx),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], Content::Vdi),
];

/// Recognises foreign content by the first and last bytes of a disk: [`HEAD_LEN`] and [`TAIL_LEN`] of them find everything
/// this module knows; shorter parts find what lies in them. `first` must start at byte 0 and `last` end at the disk's end.
///
/// Where several marks are found, the one that tells most comes first: a file system or volume before a partition table.
pub fn detect(first: &[u8], last: &[u8]) -> Option<Signature> {
    let start = |found: Option<(Content, usize)>| {
        found.map(|(content, at)| Signature { content, place: Place::FromStart(at as u64) })
    };
    let end = |found: Option<(Content, usize)>| {
        found.map(|(content, at)| Signature { content, place: Place::BeforeEnd((last.len() - at) as u64) })
    };
    start(luks(first))
        .or_else(|| start(lvm2(first)))
        .or_else(|| start(md_at_start(first)))
        .or_else(|| end(md_at_end(last)))
        .or_else(|| start(plain_marks(first)))
        .or_else(|| start(zfs(first)))
        .or_else(|| end(zfs_at_end(last)))
        .or_else(|| start(ext(first)))
        .or_else(|| start(nilfs2(first)))
        .or_else(|| start(fat(first)))
        .or_else(|| start(gpt(first)))
        .or_else(|| end(gpt_at_end(last)))
        .or_else(|| end(drbd_at_end(last)))
        .or_else(|| start(mbr(first)))
}

/// Reads what is needed of `disk` and recognises foreign content.
///
/// # Errors
/// Those of reading.
pub async fn probe(disk: &dyn Disk) -> DiskResult<Option<Signature>> {
    let size = disk.geometry().size;
    let part = |len: usize| (size.min(len as u64) as usize) / IO_ALIGN * IO_ALIGN;
    let (head, tail) = (part(HEAD_LEN), part(TAIL_LEN));
    let (first, last) = futures::join!(disk.read(0, head), disk.read(size - tail as u64, tail));
    Ok(detect(&first?, &last?))
}

fn has(bytes: &[u8], at: usize, mark: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(mark))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn plain_marks(first: &[u8]) -> Option<(Content, usize)> {
    MARKS.iter().find(|(at, mark, _)| has(first, *at, mark)).map(|(at, _, content)| (*content, *at))
}

fn luks(first: &[u8]) -> Option<(Content, usize)> {
    let version = has(first, 0, b"LUKS\xba\xbe").then(|| array(first, 6).map(u16::from_be_bytes))??;
    Some((if version == 1 { Content::LuksV1 } else { Content::LuksV2 }, 0))
}

/// The label may lie in any of the first four sectors.
fn lvm2(first: &[u8]) -> Option<(Content, usize)> {
    let is_label = |at: &usize| has(first, *at, b"LABELONE") && has(first, at + 24, b"LVM2 001");
    (0..4).map(|sector| sector * 512).find(is_label).map(|at| (Content::Lvm2, at))
}

const MD_MAGIC: u32 = 0xa92b_4efc;

/// Metadata 1.1 lies at the start, 1.2 4 KiB behind it.
fn md_at_start(first: &[u8]) -> Option<(Content, usize)> {
    let is_super = |at: &usize| le32(first, *at) == Some(MD_MAGIC) && le32(first, at + 4) == Some(1);
    [0, 4096].into_iter().find(is_super).map(|at| (Content::MdRaid, at))
}

/// Metadata 1.0 lies 8 to 12 KiB before the end, 0.90 64 to 128 KiB, both at sectors. The kernel writes 0.90 in the byte order
/// of the machine.
fn md_at_end(last: &[u8]) -> Option<(Content, usize)> {
    let is_super = |at: &usize| match array::<4>(last, *at) {
        Some(magic) if u32::from_le_bytes(magic) == MD_MAGIC => {
            matches!((le32(last, at + 4), le32(last, at + 8)), (Some(1), _) | (Some(0), Some(90)))
        }
        Some(magic) if u32::from_be_bytes(magic) == MD_MAGIC => {
            let word = |at| array(last, at).map(u32::from_be_bytes);
            (word(at + 4), word(at + 8)) == (Some(0), Some(90))
        }
        _ => false,
    };
    sectors_from_end(last).find(is_super).map(|at| (Content::MdRaid, at))
}

/// Positions in `last` that are whole sectors before its end, the last one first.
fn sectors_from_end(last: &[u8]) -> impl Iterator<Item = usize> {
    (1..=last.len() / 512).map(|count| last.len() - count * 512)
}

/// Whether a ZFS uberblock starts here: its magic and a version ZFS has had (1 to 28, and 5000 for feature flags).
fn is_uberblock(bytes: &[u8], at: usize) -> bool {
    const MAGIC: u64 = 0x00ba_b10c;
    let known = |version: u64| (1..=28).contains(&version) || version == 5000;
    match (array(bytes, at), array(bytes, at + 8)) {
        (Some(magic), Some(version)) => {
            u64::from_le_bytes(magic) == MAGIC && known(u64::from_le_bytes(version))
                || u64::from_be_bytes(magic) == MAGIC && known(u64::from_be_bytes(version))
        }
        _ => false,
    }
}

/// A label has 256 KiB, the second half of which is a ring of uberblocks of at least 1 KiB each. Two lie at the start.
fn zfs(first: &[u8]) -> Option<(Content, usize)> {
    let slots = (128..256).chain(384..512).map(|kib| kib << 10);
    slots.into_iter().find(|at| is_uberblock(first, *at)).map(|at| (Content::Zfs, at))
}

/// The other two labels end at the last multiple of 256 KiB.
fn zfs_at_end(last: &[u8]) -> Option<(Content, usize)> {
    sectors_from_end(last).find(|at| is_uberblock(last, *at)).map(|at| (Content::Zfs, at))
}

fn ext(first: &[u8]) -> Option<(Content, usize)> {
    const SUPER: usize = 1024;
    const HAS_JOURNAL: u32 = 0x4;
    // What ext3 does not know: extents, 64bit, mmp, flex_bg and later; huge files, group checksums and later.
    const EXT4_INCOMPAT: u32 = !0x1f;
    const EXT4_RO_COMPAT: u32 = !0x7;
    let field = |at| le32(first, SUPER + at);
    let is_super = le16(first, SUPER + 56)? == 0xef53 && field(24)? <= 6 && field(0)? > 0 && field(4)? > 0;
    if !is_super {
        return None;
    }
    let (compat, incompat, ro_compat) = (field(92)?, field(96)?, field(100)?);
    let content = if incompat & EXT4_INCOMPAT != 0 || ro_compat & EXT4_RO_COMPAT != 0 {
        Content::Ext4
    } else if compat & HAS_JOURNAL != 0 {
        Content::Ext3
    } else {
        Content::Ext2
    };
    Some((content, SUPER + 56))
}

/// The magic has two bytes only, so the size of the superblock must be plausible too.
fn nilfs2(first: &[u8]) -> Option<(Content, usize)> {
    let is_super = le16(first, 1024 + 6)? == 0x3434 && (256..=1024).contains(&le16(first, 1024 + 8)?);
    is_super.then_some((Content::Nilfs2, 1024 + 6))
}

const BOOT_MARK: (usize, &[u8]) = (510, &[0x55, 0xaa]);

/// A boot sector with a parameter block that makes sense. Formatters need not write the name of the type.
fn fat(first: &[u8]) -> Option<(Content, usize)> {
    let byte = |at: usize| first.get(at).copied();
    let jump = matches!(byte(0)?, 0xeb | 0xe9);
    let sector = le16(first, 11)?;
    let cluster = byte(13)?;
    let media = byte(21)?;
    let plausible = has(first, BOOT_MARK.0, BOOT_MARK.1)
        && jump
        && matches!(sector, 512 | 1024 | 2048 | 4096)
        && cluster.is_power_of_two()
        && le16(first, 14)? > 0
        && matches!(byte(16)?, 1 | 2)
        && (media == 0xf0 || media >= 0xf8)
        && (le16(first, 22)? > 0 || le32(first, 36)? > 0);
    plausible.then_some((Content::Fat, 0))
}

/// Behind one sector of 512 or 4096 bytes.
fn gpt(first: &[u8]) -> Option<(Content, usize)> {
    [512, 4096].into_iter().find(|at| has(first, *at, b"EFI PART")).map(|at| (Content::Gpt, at))
}

/// The backup header is the last sector.
fn gpt_at_end(last: &[u8]) -> Option<(Content, usize)> {
    let places = [512, 4096].into_iter().filter_map(|back| last.len().checked_sub(back));
    places.into_iter().find(|at| has(last, *at, b"EFI PART")).map(|at| (Content::Gpt, at))
}

/// Internal metadata: the superblock is the last 4 KiB, its magic (of 8.3, 8.4 unclean, 9) 60 bytes inside.
fn drbd_at_end(last: &[u8]) -> Option<(Content, usize)> {
    let at = last.len().checked_sub(4096)?;
    let magic = u32::from_be_bytes(array(last, at + 60)?);
    matches!(magic, 0x8374_026b..=0x8374_026d).then_some((Content::Drbd, at))
}

/// The boot mark with four entries that may be partitions, or none. Random bytes behind the mark are not taken for a table.
fn mbr(first: &[u8]) -> Option<(Content, usize)> {
    let entries = first.get(446..510)?.chunks_exact(16);
    let plausible = |entry: &[u8]| {
        let active = matches!(entry[0], 0 | 0x80);
        let (kind, start, count) = (entry[4], le32(entry, 8), le32(entry, 12));
        active && if kind == 0 { entry.iter().all(|b| *b == 0) } else { start > Some(0) && count > Some(0) }
    };
    (has(first, BOOT_MARK.0, BOOT_MARK.1) && entries.into_iter().all(plausible)).then_some((Content::Mbr, BOOT_MARK.0))
}
