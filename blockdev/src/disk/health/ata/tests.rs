use std::cell::RefCell;
use std::io;

use super::super::ioctl::Answer;
use super::super::judge::judge;
use super::*;
use crate::env::rng::Rng;
use crate::report::HealthState;

fn set_word(block: &mut [u8], n: usize, word: u16) {
    block[n * 2..n * 2 + 2].copy_from_slice(&word.to_le_bytes());
}

/// Text two characters a word, the second first.
fn set_text(block: &mut [u8], from_word: usize, words: usize, text: &str) {
    let padded = format!("{text:<width$}", width = words * 2).into_bytes();
    for (n, pair) in padded.chunks_exact(2).enumerate() {
        set_word(block, from_word + n, u16::from_le_bytes([pair[1], pair[0]]));
    }
}

/// The last byte makes all add up to nothing.
fn sealed(mut block: Vec<u8>) -> Vec<u8> {
    block[BLOCK - 1] = 0;
    let sum = block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    block[BLOCK - 1] = sum.wrapping_neg();
    block
}

fn identity_block(logs: bool, solid_state: bool) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    set_text(&mut block, 10, 10, "WD-WX12D80");
    set_text(&mut block, 23, 4, "82.00A82");
    set_text(&mut block, 27, 20, "WDC WD40EFRX-68N32N0");
    set_word(&mut block, 82, 1);
    set_word(&mut block, 83, 1 << 14);
    set_word(&mut block, 84, 1 << 14 | u16::from(logs) << 5);
    set_word(&mut block, 85, 1);
    set_word(&mut block, 87, 1 << 14);
    // A logical sector of 2048 words.
    set_word(&mut block, 106, 1 << 14 | 1 << 12);
    set_word(&mut block, 117, 2048);
    set_word(&mut block, 217, if solid_state { 1 } else { 5400 });
    block
}

/// (number, flags, value, raw)
fn attribute_block(attributes: &[(u8, u16, u8, u64)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    for (n, (id, flags, value, raw)) in attributes.iter().enumerate() {
        let entry = &mut block[2 + n * 12..14 + n * 12];
        entry[0] = *id;
        entry[1..3].copy_from_slice(&flags.to_le_bytes());
        entry[3] = *value;
        entry[4] = *value;
        entry[5..11].copy_from_slice(&raw.to_le_bytes()[..6]);
    }
    sealed(block)
}

fn threshold_block(thresholds: &[(u8, u8)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    for (n, (id, least)) in thresholds.iter().enumerate() {
        (block[2 + n * 12], block[3 + n * 12]) = (*id, *least);
    }
    sealed(block)
}

/// A page of device statistics; values are valid unless their flags say otherwise.
fn statistics_block(page: u8, values: &[(usize, u64)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    (block[0], block[2]) = (1, page);
    for (at, value) in values {
        block[*at..at + 8].copy_from_slice(&(value | 0xc0 << 56).to_le_bytes());
    }
    block
}

const ATTRIBUTES: &[(u8, u16, u8, u64)] = &[
    (5, 0x33, 100, 8),
    (9, 0x32, 90, 0x00aa_0000_2710),
    (12, 0x32, 100, 77),
    (187, 0x32, 100, 4),
    (192, 0x32, 100, 31),
    (194, 0x22, 116, 0x0014_0013_0022),
    (197, 0x32, 100, 0),
];

/// A drive behind a translation that gives these blocks.
#[derive(Default)]
struct Drive {
    identity: Vec<u8>,
    attributes: Vec<u8>,
    thresholds: Vec<u8>,
    /// Sense data after SMART RETURN STATUS.
    sense: Vec<u8>,
    logs: Vec<((u8, u8), Vec<u8>)>,
    asked: RefCell<Vec<[u8; 16]>>,
}

impl Channel for Drive {
    fn nvme(&self, _: u8, _: u32, _: u32, _: &mut [u8]) -> io::Result<()> {
        panic!("an ATA drive is not asked by NVMe commands");
    }

    fn scsi(&self, command: &[u8], data: &mut [u8]) -> io::Result<Answer> {
        let block: [u8; 16] = command.try_into().expect("16 bytes");
        self.asked.borrow_mut().push(block);
        let found = match (block[14], block[4]) {
            (IDENTIFY_DEVICE, _) => Some(self.identity.clone()),
            (SMART, SMART_READ_DATA) => Some(self.attributes.clone()),
            (SMART, SMART_READ_THRESHOLDS) => Some(self.thresholds.clone()),
            (SMART, SMART_RETURN_STATUS) => {
                return Ok(Answer { len: 0, status: 2, sense: self.sense.clone() });
            }
            (READ_LOG_EXT, _) => {
                let page = (block[8], block[10]);
                self.logs.iter().find(|(at, _)| *at == page).map(|(_, block)| block.clone())
            }
            other => panic!("an unexpected command {other:x?}"),
        };
        match found.filter(|block| !block.is_empty()) {
            Some(block) => {
                data.copy_from_slice(&block);
                Ok(Answer { len: BLOCK, ..Answer::default() })
            }
            None => Ok(Answer { status: 2, ..Answer::default() }),
        }
    }
}

/// Sense data with the registers an ATA command left.
fn sense((middle, high): (u8, u8)) -> Vec<u8> {
    let mut sense = vec![0x72, 1, 0, 0x1d, 0, 0, 0, 14 + 6, 0x00, 4, 0, 0, 0, 0];
    sense.extend([0x09, 12, 0, 0, 0, 0, 0, 0, 0, middle, 0, high, 0, 0x50]);
    sense
}

fn rotating() -> Drive {
    Drive {
        identity: identity_block(false, false),
        attributes: attribute_block(ATTRIBUTES),
        thresholds: threshold_block(&[(5, 10), (9, 0), (194, 0xfe)]),
        sense: sense(SMART_KEY),
        ..Drive::default()
    }
}

fn judged(drive: &Drive) -> (DriveHealth, String) {
    let mut health = read(drive);
    judge(&mut health);
    let codes: Vec<String> = health.warnings.iter().map(|w| w.code.replace("disk.health.", "")).collect();
    (health, codes.join(" "))
}

#[test]
fn a_rotating_drive_is_read_by_its_smart_attributes() {
    let drive = rotating();
    let (health, _) = judged(&drive);
    let expected = DriveHealth {
        state: HealthState::Good,
        source: Some(HealthSource::Ata),
        model: Some("WDC WD40EFRX-68N32N0".into()),
        serial: Some("WD-WX12D80".into()),
        firmware: Some("82.00A82".into()),
        temperature_c: Some(34),
        media_errors: Some(4),
        reallocated_sectors: Some(8),
        pending_sectors: Some(0),
        power_on_hours: Some(10_000),
        power_cycles: Some(77),
        unsafe_shutdowns: Some(31),
        ..DriveHealth::default()
    };
    assert_eq!(health, expected);
    let asked = drive.asked.borrow();
    // PIO data-in with one block, and no data with the registers back; the key in the middle and high LBA.
    assert_eq!(asked[0], [0x85, 8, 0x0e, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xec, 0]);
    assert_eq!(asked[1], [0x85, 8, 0x0e, 0, 0xd0, 0, 1, 0, 0, 0, 0x4f, 0, 0xc2, 0, 0xb0, 0]);
    assert_eq!(asked[3], [0x85, 6, 0x20, 0, 0xda, 0, 1, 0, 0, 0, 0x4f, 0, 0xc2, 0, 0xb0, 0]);
    assert_eq!(asked.len(), 4, "a log was asked for that the drive does not have");
}

#[test]
fn failing_drives_and_thresholds_are_told() {
    let failing = Drive { sense: sense(SMART_FAILING), ..rotating() };
    let (health, codes) = judged(&failing);
    assert_eq!((health.state, codes.as_str()), (HealthState::Critical, "failing"));

    // The same in fixed form.
    let mut fixed = vec![0; 18];
    (fixed[0], fixed[2], fixed[7], fixed[10], fixed[11], fixed[13]) = (0x70, 1, 10, 0xf4, 0x2c, 0x1d);
    assert_eq!(judged(&Drive { sense: fixed.clone(), ..rotating() }).1, "failing");
    fixed[13] = 0;
    assert_eq!(judged(&Drive { sense: fixed, ..rotating() }).1, "", "other sense data say nothing");

    let low = Drive { thresholds: threshold_block(&[(5, 100), (9, 95)]), ..rotating() };
    let (health, codes) = judged(&low);
    assert_eq!((health.state, codes.as_str()), (HealthState::Critical, "attribute"));
    let cause = &health.warnings[0].cause;
    assert!(cause.contains("reallocated sectors at 100, threshold 100") && !cause.contains("hours"), "{cause}");
    let old = Drive { thresholds: threshold_block(&[(9, 90)]), ..rotating() };
    let (health, codes) = judged(&old);
    assert_eq!((health.state, codes.as_str()), (HealthState::Warning, "attribute"));

    let pending = Drive { attributes: attribute_block(&[(197, 0x32, 100, 3)]), ..rotating() };
    assert_eq!(judged(&pending).1, "pending");
}

#[test]
fn device_statistics_stand_above_attributes() {
    let mut directory = vec![0; BLOCK];
    set_word(&mut directory, 4, 8);
    let mut list = statistics_block(0, &[]);
    list[8] = 6;
    list[9..15].copy_from_slice(&[0, 1, 4, 5, 7, 200]);
    let drive = Drive {
        identity: identity_block(true, true),
        attributes: attribute_block(&[(5, 0x33, 100, 2), (231, 0x33, 40, 0), (9, 0x32, 99, 5)]),
        logs: vec![
            ((0, 0), directory),
            ((4, 0), list),
            ((4, 1), statistics_block(1, &[(8, 9), (16, 4321), (24, 1000), (40, 0x7f_ffff)])),
            ((4, 4), statistics_block(4, &[(8, 6)])),
            ((4, 5), statistics_block(5, &[(8, 0xf6), (88, 70)])),
            ((4, 7), statistics_block(7, &[(8, 104)])),
        ],
        ..rotating()
    };
    let (health, codes) = judged(&drive);
    assert_eq!(codes, "wear");
    let figures = (health.wear_percent, health.power_on_hours, health.power_cycles, health.media_errors);
    assert_eq!(figures, (Some(104), Some(4321), Some(9), Some(6)));
    assert_eq!((health.temperature_c, health.temperature_critical_c), (Some(-10), Some(70)));
    assert_eq!((health.written, health.read), (Some(1000 * 4096), Some(0x7f_ffff * 4096)));
    assert_eq!(health.reallocated_sectors, Some(2), "what is not in the statistics comes from the attributes");
    let logs: Vec<(u8, u8)> =
        drive.asked.borrow().iter().filter(|b| b[14] == READ_LOG_EXT).map(|b| (b[8], b[10])).collect();
    assert_eq!(logs, [(0, 0), (4, 0), (4, 1), (4, 4), (4, 5), (4, 7)]);

    // Without the statistics what is left of its life is in an attribute; of a rotating drive the same number means something else.
    let drive = Drive { logs: vec![], ..drive };
    assert_eq!(judged(&drive).0.wear_percent, Some(60));
    let drive = Drive { identity: identity_block(false, false), ..drive };
    assert_eq!(judged(&drive).0.wear_percent, None);
}

#[test]
fn values_that_are_not_valid_are_not_read() {
    let mut page = statistics_block(7, &[(8, 50)]);
    let identity = Identity::default();
    let worn = |page: &[u8]| {
        let mut health = DriveHealth::default();
        statistics::decode(7, page, &identity, &mut health);
        health.wear_percent
    };
    assert_eq!(worn(&page), Some(50));
    page[15] = 0x80;
    assert_eq!(worn(&page), None, "supported but not valid");
    page[15] = 0xc0;
    page[2] = 6;
    assert_eq!(worn(&page), None, "another page");
}

#[test]
fn drives_without_smart_say_so() {
    let mut off = identity_block(false, false);
    set_word(&mut off, 85, 0);
    let (health, _) = judged(&Drive { identity: off, ..rotating() });
    assert_eq!(health.state, HealthState::NotReported);
    assert!(health.note.unwrap().contains("SMART is off") && health.model.is_some());
    let mut none = identity_block(false, false);
    set_word(&mut none, 82, 0);
    set_word(&mut none, 85, 0);
    assert!(judged(&Drive { identity: none, ..rotating() }).0.note.unwrap().contains("no SMART"));
    let (health, _) = judged(&Drive::default());
    assert_eq!((health.state, health.note.is_some()), (HealthState::NotReported, true));
    let mut wrong = attribute_block(ATTRIBUTES);
    wrong[20] ^= 1;
    let (health, _) = judged(&Drive { attributes: wrong, sense: vec![], ..rotating() });
    assert_eq!((health.state, health.power_on_hours), (HealthState::NotReported, None));
    assert!(health.note.unwrap().contains("checksum"));
}

#[test]
fn short_blocks_and_noise_are_survived() {
    let whole = [identity_block(true, true), attribute_block(ATTRIBUTES), statistics_block(0, &[(8, 255)])];
    let mut rng = Rng::new(11);
    let mut blocks: Vec<Vec<u8>> = whole.iter().flat_map(|b| (0..BLOCK).map(|len| b[..len].to_vec())).collect();
    blocks.extend((0..5_000).map(|_| {
        let mut noise = vec![0; rng.index(BLOCK + 1)];
        rng.fill(&mut noise);
        if noise.len() == BLOCK && rng.chance(1, 2) { sealed(noise) } else { noise }
    }));
    for block in &blocks {
        let mut health = DriveHealth::default();
        let identity = decode_identity(block, &mut health);
        smart::decode(block, block, &identity, &mut health);
        statistics::listed(block);
        for page in 0..=8 {
            statistics::decode(page, block, &identity, &mut health);
        }
        registers(block);
        judge(&mut health);
    }
    // Noise with a right checksum.
    for _ in 0..2_000 {
        let mut noise = vec![0; BLOCK];
        rng.fill(&mut noise);
        let noise = sealed(noise);
        let mut health = DriveHealth::default();
        smart::decode(&noise, &noise, &Identity { solid_state: true, ..Identity::default() }, &mut health);
        judge(&mut health);
    }
}
