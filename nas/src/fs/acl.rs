//! POSIX access control lists, as far as they are the file system's to keep: Linux checks them, and leaves to us what a change of mode means to a
//! list, and a list to the mode, and what a directory's default list gives to what is made in it (acl(5)).

use crate::{Errno, Result};

/// Extended attributes that hold them, in the form Linux has (`linux/posix_acl_xattr.h`).
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A list: one entry each for owner, group and others, any number for named users and groups, and then a mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// The list in an extended attribute. EINVAL for what is none.
    pub(super) fn decode(value: &[u8]) -> Result<Self> {
        let (version, rest) = value.split_first_chunk::<4>().ok_or(Errno::INVAL)?;
        if u32::from_le_bytes(*version) != VERSION || !rest.len().is_multiple_of(8) {
            return Err(Errno::INVAL);
        }
        let entry = |bytes: &[u8]| Entry {
            tag: u16::from_le_bytes([bytes[0], bytes[1]]),
            perm: u16::from_le_bytes([bytes[2], bytes[3]]),
            id: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        };
        let acl = Self(rest.chunks_exact(8).map(entry).collect());
        if acl.is_valid() { Ok(acl) } else { Err(Errno::INVAL) }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let known = [USER_OBJ, GROUP_OBJ, OTHER].iter().all(|tag| count(*tag) == 1)
            && named + count(MASK) + 3 == self.0.len()
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1);
        let ordered = self
            .0
            .windows(2)
            .all(|pair| pair[0].tag < pair[1].tag || (pair[0].tag == pair[1].tag && pair[0].id < pair[1].id));
        known && ordered && self.0.iter().all(|e| e.perm & !7 == 0)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for Entry { tag, perm, id } in &self.0 {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            let id = if matches!(*tag, USER | GROUP) { *id } else { NOBODY };
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    fn perm(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|e| e.tag == tag).map(|e| e.perm)
    }

    /// The permission bits that stand for the list: those of the mask, if there is one, for the group.
    pub(super) fn mode(&self) -> u16 {
        let of = |tag| self.perm(tag).unwrap_or(0);
        of(USER_OBJ) << 6 | self.perm(MASK).unwrap_or(of(GROUP_OBJ)) << 3 | of(OTHER)
    }

    /// Whether the permission bits say it all.
    pub(super) fn is_mode(&self) -> bool {
        self.0.len() == 3
    }

    /// The list after a change of mode.
    pub(super) fn with_mode(&self, mode: u16) -> Self {
        self.masked(|_, bits| bits, mode)
    }

    /// The list that something gets which is made with `mode` in a directory with this default list: what both allow.
    pub(super) fn inherited(&self, mode: u16) -> Self {
        self.masked(|perm, bits| perm & bits, mode)
    }

    fn masked(&self, change: impl Fn(u16, u16) -> u16, mode: u16) -> Self {
        let for_group = if self.perm(MASK).is_some() { MASK } else { GROUP_OBJ };
        let entry = |e: &Entry| {
            let bits = match e.tag {
                USER_OBJ => mode >> 6 & 7,
                OTHER => mode & 7,
                tag if tag == for_group => mode >> 3 & 7,
                _ => return *e,
            };
            Entry { perm: change(e.perm, bits), ..*e }
        };
        Self(self.0.iter().map(entry).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Acl {
        Acl(entries.iter().map(|(tag, perm, id)| Entry { tag: *tag, perm: *perm, id: *id }).collect())
    }

    const SMALL: &[(u16, u16, u32)] = &[(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)];
    const LARGE: &[(u16, u16, u32)] = &[
        (USER_OBJ, 7, NOBODY),
        (USER, 6, 1000),
        (USER, 7, 1001),
        (GROUP_OBJ, 5, NOBODY),
        (GROUP, 7, 100),
        (MASK, 6, NOBODY),
        (OTHER, 1, NOBODY),
    ];

    #[test]
    fn lists_come_back_and_others_are_refused() {
        for entries in [SMALL, LARGE] {
            assert_eq!(Acl::decode(&acl(entries).encode()), Ok(acl(entries)));
        }
        let without = |i: usize| acl(&[&LARGE[..i], &LARGE[i + 1..]].concat());
        for (i, valid) in [(0, false), (1, true), (3, false), (5, false), (6, false)] {
            assert_eq!(Acl::decode(&without(i).encode()).is_ok(), valid, "without entry {i}");
        }
        let swapped = [&LARGE[..1], &[LARGE[2], LARGE[1]], &LARGE[3..]].concat();
        let wide = [SMALL[0], SMALL[1], (OTHER, 8, NOBODY)];
        for bad in [acl(&swapped), acl(&wide), acl(&[]), acl(&[SMALL[0], SMALL[0], SMALL[1], SMALL[2]])] {
            assert_eq!(Acl::decode(&bad.encode()), Err(Errno::INVAL));
        }
        assert_eq!(Acl::decode(&acl(SMALL).encode()[1..]), Err(Errno::INVAL));
        assert_eq!(Acl::decode(&[]), Err(Errno::INVAL));
    }

    #[test]
    fn modes_and_lists_follow_each_other() {
        assert_eq!((acl(SMALL).mode(), acl(LARGE).mode()), (0o640, 0o761));
        assert!(acl(SMALL).is_mode() && !acl(LARGE).is_mode());
        let changed = acl(LARGE).with_mode(0o027);
        assert_eq!(changed.mode(), 0o027);
        assert_eq!((changed.perm(GROUP_OBJ), changed.perm(MASK)), (Some(5), Some(2)), "the mask stands for the group");
        let inherited = acl(LARGE).inherited(0o666);
        assert_eq!(inherited.mode(), 0o660);
        assert_eq!(inherited.perm(USER), Some(6));
        assert_eq!(acl(SMALL).inherited(0o777).mode(), 0o640, "no umask where there is a default list");
    }
}
