//! ATA: identity, SMART and device statistics (ACS-3 7.12, 7.48 and A.5), carried by SCSI commands (SAT-3 12.2).

use super::bytes::{byte, little, text};
use super::ioctl::Channel;
use super::judge::warn;
use crate::report::{DriveHealth, HealthSource, Severity};

mod smart;
mod statistics;

/// SCSI command ATA PASS-THROUGH(16).
const PASS_THROUGH: u8 = 0x85;
/// Its protocols.
const NON_DATA: u8 = 3;
const PIO_IN: u8 = 4;
/// One block is read, and its count stands in the field for it.
const READ_BLOCK: u8 = 0x0e;
/// Registers are wanted back, in the sense data.
const WANT_REGISTERS: u8 = 0x20;

/// ATA commands.
const IDENTIFY_DEVICE: u8 = 0xec;
const SMART: u8 = 0xb0;
const READ_LOG_EXT: u8 = 0x2f;
/// Values of the feature register of SMART.
const SMART_READ_DATA: u8 = 0xd0;
const SMART_READ_THRESHOLDS: u8 = 0xd1;
const SMART_RETURN_STATUS: u8 = 0xda;
/// What must stand in the middle and high LBA registers of SMART, and stands there afterwards when all is well.
const SMART_KEY: (u8, u8) = (0x4f, 0xc2);
/// What stands there when the drive expects to fail.
const SMART_FAILING: (u8, u8) = (0xf4, 0x2c);

/// Bytes of everything that is read.
pub const BLOCK: usize = 512;
/// A rotation rate that is none.
const NOT_ROTATING: u64 = 1;

/// An ATA command.
#[derive(Clone, Copy, Default)]
struct Command {
    command: u8,
    feature: u8,
    count: u8,
    /// Low, middle and high byte of the LBA.
    lba: [u8; 3],
    /// The registers are of 16 bits each.
    extended: bool,
}

impl Command {
    fn block(self, protocol: u8, transfer: u8) -> [u8; 16] {
        let mut block = [0; 16];
        block[0] = PASS_THROUGH;
        block[1] = protocol << 1 | u8::from(self.extended);
        block[2] = transfer;
        block[4] = self.feature;
        block[6] = self.count;
        [block[8], block[10], block[12]] = self.lba;
        block[14] = self.command;
        block
    }

    /// Reads a block; an error in words when there is none.
    fn read(self, channel: &dyn Channel) -> Result<Vec<u8>, String> {
        let mut data = vec![0; BLOCK];
        let answer = channel.scsi(&self.block(PIO_IN, READ_BLOCK), &mut data).map_err(|e| e.to_string())?;
        match answer.status {
            0 if answer.len >= BLOCK => Ok(data),
            0 => Err(format!("{} bytes were read instead of {BLOCK}", answer.len)),
            status => Err(format!("the drive refuses command {:#04x} (status {status:#x})", self.command)),
        }
    }
}

fn smart(feature: u8) -> Command {
    let (middle, high) = SMART_KEY;
    Command { command: SMART, feature, count: 1, lba: [0, middle, high], extended: false }
}

/// What the drive can do, of its identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// It has SMART.
    smart: bool,
    /// SMART is on.
    smart_on: bool,
    /// It has logs that are read by READ LOG EXT.
    logs: bool,
    /// It has no moving parts.
    solid_state: bool,
    /// Bytes of a logical sector.
    sector: u64,
}

/// Asks the drive. What it refuses is told in the note.
pub fn read(channel: &dyn Channel) -> DriveHealth {
    let mut health = DriveHealth::default();
    let identity = match (Command { command: IDENTIFY_DEVICE, count: 1, ..Command::default() }).read(channel) {
        Ok(data) => decode_identity(&data, &mut health),
        Err(e) => {
            health.note = Some(format!("the drive does not tell what it is: {e}"));
            return health;
        }
    };
    if identity.logs {
        statistics::read(channel, &identity, &mut health);
    }
    if identity.smart_on {
        match smart(SMART_READ_DATA).read(channel) {
            Ok(data) => {
                let thresholds = smart(SMART_READ_THRESHOLDS).read(channel).unwrap_or_default();
                smart::decode(&data, &thresholds, &identity, &mut health);
            }
            Err(e) => health.note = Some(format!("the drive does not give its SMART data: {e}")),
        }
        if let Some(failing) = return_status(channel) {
            health.source = Some(HealthSource::Ata);
            if failing {
                let cause = "it expects to fail soon (SMART)";
                warn(&mut health, Severity::Critical, "failing", cause, "replace it (`ashlar disk replace`)");
            }
        }
    } else if identity.smart {
        health.note = Some("SMART is off in the drive: `smartctl --smart=on` turns it on".into());
    } else if health.source.is_none() {
        health.note = Some("the drive has no SMART".into());
    }
    health
}

/// Whether the drive expects to fail; nothing when it does not tell.
fn return_status(channel: &dyn Channel) -> Option<bool> {
    let block = smart(SMART_RETURN_STATUS).block(NON_DATA, WANT_REGISTERS);
    let answer = channel.scsi(&block, &mut []).ok()?;
    match registers(&answer.sense)? {
        SMART_KEY => Some(false),
        SMART_FAILING => Some(true),
        _ => None,
    }
}

/// Middle and high LBA register, of sense data (SAT-3 12.2.2.6 and 12.2.2.7).
fn registers(sense: &[u8]) -> Option<(u8, u8)> {
    match byte(sense, 0)? & 0x7f {
        // Descriptors: the one for what an ATA command left has type 09h and 12 bytes.
        0x72 => {
            let mut at = 8;
            loop {
                let (kind, len) = (byte(sense, at)?, usize::from(byte(sense, at + 1)?));
                if kind == 0x09 && len == 12 {
                    return Some((byte(sense, at + 9)?, byte(sense, at + 11)?));
                }
                at += 2 + len;
            }
        }
        // Fixed form, marked by "ATA pass through information available".
        0x70 if byte(sense, 12) == Some(0x00) && byte(sense, 13) == Some(0x1d) => {
            Some((byte(sense, 10)?, byte(sense, 11)?))
        }
        _ => None,
    }
}

/// Text of an identity: two characters a word, the second first.
fn swapped(data: &[u8], from_word: usize, to_word: usize) -> Option<String> {
    let field = data.get(from_word * 2..to_word * 2)?;
    let turned: Vec<u8> = field.chunks_exact(2).flat_map(|word| [word[1], word[0]]).collect();
    text(&turned)
}

/// IDENTIFY DEVICE.
fn decode_identity(data: &[u8], health: &mut DriveHealth) -> Identity {
    let word = |n: usize| little(data, n * 2, 2).unwrap_or(0);
    // Words 83, 84 and 87 are valid when their upper bits are 01.
    let valid = |n: usize| word(n) >> 14 == 1;
    health.serial = swapped(data, 10, 20);
    health.firmware = swapped(data, 23, 27);
    health.model = swapped(data, 27, 47);
    // Word 106: its bit 12 says that words 117 and 118 hold the sector's size, in words.
    let large = word(106) >> 14 == 1 && word(106) & 1 << 12 != 0;
    let sector = if large { little(data, 117 * 2, 4).unwrap_or(0) * 2 } else { 512 };
    Identity {
        smart: valid(83) && word(82) & 1 != 0,
        smart_on: valid(87) && word(85) & 1 != 0,
        logs: valid(84) && word(84) & 1 << 5 != 0,
        solid_state: word(217) == NOT_ROTATING,
        sector,
    }
}

#[cfg(test)]
mod tests;
