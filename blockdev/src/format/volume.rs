//! Volumes and snapshots, as they stand in the catalogue and in the log.

use super::cursor::{COUNTER_LIMIT, Get, Put};
use super::page::{MAP_BLOCKS_MAX, MAP_LEVELS_MAX, VIRTUAL_BLOCKS_MAX};
use crate::error::{Error, Result};
use crate::units::{VirtualBlock, VolumeId};

/// A volume in the catalogue and in [`Op::PutVolume`](super::record::Op::PutVolume).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Identity.
    pub id: VolumeId,
    /// Name.
    pub name: String,
    /// Blocks hosts see.
    pub blocks: u64,
    /// Root page of the map; none while nothing is mapped.
    pub root: VirtualBlock,
    /// Levels of the map below and including the root.
    pub levels: u8,
    /// Mapped blocks.
    pub mapped: u64,
    /// Of these, the ones that no snapshot holds: overwriting them gives them back.
    pub owned: u64,
    /// Blocks that there is to be room for whatever others write; [`RESERVED_ALL`]: as many as it has.
    pub reserved: u64,
    /// Generation given to entries written now; raised by snapshots.
    pub generation: u32,
    /// Whether it is being deleted in the background.
    pub deleting: bool,
    /// Seconds since 1970.
    pub created_s: u64,
    /// How it is presented; empty when it is not.
    pub attachment: String,
    /// The volume this is a snapshot of; 0 for a volume.
    pub snapshot_of: VolumeId,
    /// The snapshot it goes on from; 0 when it began empty.
    pub parent: VolumeId,
    /// The first volume of all that have pages in common: stands in the pages of their maps.
    pub family: VolumeId,
    /// Generation in which the root page came into being.
    pub root_birth: u32,
    /// Blocks before this one were handed over to its child, or given back, while it is being deleted.
    pub handed: u64,
    /// How it is kept.
    pub protection: Protection,
}

/// As many blocks as a volume has are reserved, however many these are.
pub const RESERVED_ALL: u64 = MAP_BLOCKS_MAX;

/// How a volume or snapshot is kept. Numbers of groups, policies and rules are given by whoever manages the pool; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protection {
    /// The group a volume is in, or a snapshot was taken of.
    pub group: u32,
    /// The policy of a volume.
    pub policy: u32,
    /// Since when a volume has its policy, in seconds since 1970.
    pub since_s: u64,
    /// The rule that took a snapshot.
    pub rule: u32,
    /// When a snapshot expires, in seconds of the pool's clock; 0 is never.
    pub expires_s: u64,
    /// Whether the snapshot cannot be deleted before that.
    pub secure: bool,
    /// Whether applications were made ready for the snapshot.
    pub quiesced: bool,
}

/// Bits of the flags of a [`Protection`].
const SECURE: u8 = 1;
/// See [`SECURE`].
const QUIESCED: u8 = 2;

impl Protection {
    fn encode(&self, out: &mut Vec<u8>) {
        for v in [self.group, self.policy, self.rule] {
            out.put_varint(v.into());
        }
        out.put_varint(self.since_s);
        out.put_varint(self.expires_s);
        out.put_u8(if self.secure { SECURE } else { 0 } | if self.quiesced { QUIESCED } else { 0 });
    }

    fn decode(get: &mut Get<'_>) -> Result<Self> {
        let (group, policy, rule) = (get.varint32()?, get.varint32()?, get.varint32()?);
        let since_s = get.below(COUNTER_LIMIT, "time of assignment")?;
        let expires_s = get.below(COUNTER_LIMIT, "time of expiry")?;
        let flags = get.u8()?;
        if flags & !(SECURE | QUIESCED) != 0 {
            return Err(Error::corrupt(format!("flags {flags:#x} of a snapshot are unknown")));
        }
        let (secure, quiesced) = (flags & SECURE != 0, flags & QUIESCED != 0);
        Ok(Self { group, policy, since_s, rule, expires_s, secure, quiesced })
    }
}

impl VolumeRecord {
    /// Fewest encoded bytes.
    pub(super) const SIZE_MIN: usize = 23;

    /// A volume of which nothing is mapped, of a family of its own.
    pub fn empty(id: VolumeId, name: &str, blocks: u64, levels: u8) -> Self {
        Self {
            id,
            name: name.into(),
            blocks,
            root: VirtualBlock::NONE,
            levels,
            mapped: 0,
            owned: 0,
            reserved: 0,
            generation: 1,
            deleting: false,
            created_s: 0,
            attachment: String::new(),
            snapshot_of: VolumeId(0),
            parent: VolumeId(0),
            family: id,
            root_birth: 0,
            handed: 0,
            protection: Protection::default(),
        }
    }

    /// Blocks that are reserved for it.
    pub fn reserved_blocks(&self) -> u64 {
        self.reserved.min(self.blocks)
    }

    /// Whether it is a snapshot.
    pub fn is_snapshot(&self) -> bool {
        self.snapshot_of != VolumeId(0)
    }

    /// Appends the record.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_varint(self.id.0.into());
        out.put_bytes(self.name.as_bytes());
        out.put_varint(self.blocks);
        out.put_varint(self.root.0);
        out.put_u8(self.levels);
        for v in [self.mapped, self.owned, self.reserved] {
            out.put_varint(v);
        }
        out.put_varint(self.generation.into());
        out.put_u8(self.deleting.into());
        out.put_varint(self.created_s);
        out.put_bytes(self.attachment.as_bytes());
        for v in [self.snapshot_of.0, self.parent.0, self.family.0, self.root_birth] {
            out.put_varint(v.into());
        }
        out.put_varint(self.handed);
        self.protection.encode(out);
    }

    /// Decodes.
    pub fn decode(get: &mut Get<'_>) -> Result<Self> {
        let out = Self {
            id: get_volume(get)?,
            name: get.string(255)?,
            blocks: get.below(MAP_BLOCKS_MAX + 1, "volume size")?,
            root: VirtualBlock(get.below(VIRTUAL_BLOCKS_MAX, "virtual block")?),
            levels: get.u8()?,
            mapped: get.below(MAP_BLOCKS_MAX + 1, "mapped blocks")?,
            owned: get.below(MAP_BLOCKS_MAX + 1, "blocks of its own")?,
            reserved: get.below(RESERVED_ALL + 1, "reserved blocks")?,
            generation: get.varint32()?,
            deleting: get.flag()?,
            created_s: get.varint()?,
            attachment: get.string(255)?,
            snapshot_of: get_volume(get)?,
            parent: get_volume(get)?,
            family: get_volume(get)?,
            root_birth: get.varint32()?,
            handed: get.below(MAP_BLOCKS_MAX + 1, "blocks handed over")?,
            protection: Protection::decode(get)?,
        };
        if out.levels == 0 || out.levels > MAP_LEVELS_MAX {
            return Err(Error::corrupt(format!("volume {}: a map of {} levels is impossible", out.name, out.levels)));
        }
        Ok(out)
    }
}

/// Identities are given in order: the next one must fit, too.
pub(super) fn get_volume(get: &mut Get<'_>) -> Result<VolumeId> {
    Ok(VolumeId(get.below(u32::MAX.into(), "volume identity")? as u32))
}

/// Longest name of a setting.
pub const SETTING_NAME_MAX: usize = 255;
/// Longest value of a setting.
pub const SETTING_MAX: usize = 16 << 10;

/// Something that whoever manages the pool keeps in it. The engine does not look into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// What it is found by.
    pub name: String,
    /// What it is; empty: it is no more.
    pub value: Vec<u8>,
}

impl Setting {
    /// Fewest encoded bytes.
    pub(super) const SIZE_MIN: usize = 2;

    /// Appends the setting.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_bytes(self.name.as_bytes());
        out.put_bytes(&self.value);
    }

    /// Decodes.
    pub fn decode(get: &mut Get<'_>) -> Result<Self> {
        let name = get.string(SETTING_NAME_MAX)?;
        if name.is_empty() {
            return Err(Error::corrupt("a setting has no name"));
        }
        Ok(Self { name, value: get.bytes(SETTING_MAX)?.to_vec() })
    }
}
