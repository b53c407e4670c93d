use std::cell::RefCell;
use std::io;

use super::super::ioctl::Answer;
use super::super::judge::judge;
use super::*;
use crate::env::rng::Rng;
use crate::report::HealthState;

fn put(page: &mut [u8], at: usize, bytes: &[u8]) {
    page[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Text padded by blanks, as controllers give it.
fn padded(text: &str, len: usize) -> Vec<u8> {
    format!("{text:<len$}").into_bytes()
}

fn identity() -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_BYTES];
    put(&mut page, 4, &padded("S4EWNX0M1", 20));
    put(&mut page, 24, &padded("Fast SSD 970 1TB", 40));
    put(&mut page, 64, &padded("2B2QEXM7", 8));
    put(&mut page, 266, &(273u16 + 82).to_le_bytes());
    put(&mut page, 268, &(273u16 + 85).to_le_bytes());
    page
}

/// A drive in the middle of its life.
fn log(critical: u8) -> Vec<u8> {
    let mut page = vec![0; HEALTH_BYTES];
    put(&mut page, 0, &[critical]);
    put(&mut page, 1, &(273u16 + 38).to_le_bytes());
    put(&mut page, 3, &[100, 10, 7]);
    put(&mut page, 32, &1_000u128.to_le_bytes());
    put(&mut page, 48, &2_000_000u128.to_le_bytes());
    put(&mut page, 112, &321u128.to_le_bytes());
    put(&mut page, 128, &8_760u128.to_le_bytes());
    put(&mut page, 144, &12u128.to_le_bytes());
    put(&mut page, 160, &3u128.to_le_bytes());
    page
}

/// A controller that gives these pages.
struct Controller {
    log: Vec<u8>,
    asked: RefCell<Vec<(u8, u32, u32, usize)>>,
    broken: bool,
}

impl Channel for Controller {
    fn nvme(&self, opcode: u8, namespace: u32, dword_10: u32, data: &mut [u8]) -> io::Result<()> {
        self.asked.borrow_mut().push((opcode, namespace, dword_10, data.len()));
        let page = match opcode {
            IDENTIFY => identity(),
            _ if self.broken => return Err(io::Error::other("status 0x4002")),
            _ => self.log.clone(),
        };
        data.copy_from_slice(&page);
        Ok(())
    }

    fn scsi(&self, _: &[u8], _: &mut [u8]) -> io::Result<Answer> {
        panic!("an NVMe drive is not asked by SCSI commands");
    }
}

fn controller(log: Vec<u8>) -> Controller {
    Controller { log, asked: RefCell::default(), broken: false }
}

#[test]
fn a_controller_is_asked_for_identity_and_health() {
    let controller = controller(log(0));
    let mut health = read(&controller);
    judge(&mut health);
    // 512 bytes of log page 02h: 127 = 7Fh dwords more than one.
    assert_eq!(*controller.asked.borrow(), [(0x06, 0, 1, 4096), (0x02, 0xffff_ffff, 0x007f_0002, 512)]);
    let expected = DriveHealth {
        state: HealthState::Good,
        source: Some(HealthSource::Nvme),
        model: Some("Fast SSD 970 1TB".into()),
        serial: Some("S4EWNX0M1".into()),
        firmware: Some("2B2QEXM7".into()),
        temperature_c: Some(38),
        temperature_warning_c: Some(82),
        temperature_critical_c: Some(85),
        wear_percent: Some(7),
        spare_percent: Some(100),
        spare_threshold_percent: Some(10),
        media_errors: Some(3),
        power_on_hours: Some(8760),
        power_cycles: Some(321),
        unsafe_shutdowns: Some(12),
        read: Some(512_000_000),
        written: Some(1_024_000_000_000),
        ..DriveHealth::default()
    };
    assert_eq!(health, expected);
    let mut health = read(&Controller { broken: true, ..controller });
    judge(&mut health);
    assert_eq!((health.state, health.source), (HealthState::NotReported, None));
    assert!(health.serial.is_some() && health.note.unwrap().contains("0x4002"));
}

#[test]
fn each_critical_warning_has_words() {
    let codes = |bits: u8| {
        let mut health = DriveHealth::default();
        decode_log(&log(bits), &mut health);
        judge(&mut health);
        let codes: Vec<String> = health.warnings.iter().map(|w| w.code.replace("disk.health.", "")).collect();
        (health.state, codes.join(" "))
    };
    for (bit, code) in
        ["spare", "temperature", "reliability", "read_only", "backup", "persistent_memory", "unknown", "unknown"]
            .into_iter()
            .enumerate()
    {
        let state = if code == "temperature" { HealthState::Warning } else { HealthState::Critical };
        assert_eq!(codes(1 << bit), (state, code.to_owned()));
    }
    assert_eq!(codes(0b1001).1, "spare read_only");
}

#[test]
fn counters_larger_than_64_bits_are_the_largest_number() {
    let mut page = log(0);
    put(&mut page, 48, &(u128::MAX / 3).to_le_bytes());
    let mut health = DriveHealth::default();
    decode_log(&page, &mut health);
    assert_eq!(health.written, Some(u64::MAX));
}

#[test]
fn short_pages_and_noise_are_survived() {
    for len in 0..HEALTH_BYTES {
        let mut health = DriveHealth::default();
        decode_log(&log(0)[..len], &mut health);
        decode_identity(&identity()[..len], &mut health);
        assert_eq!(health.media_errors.is_some(), len >= 176, "{len}");
        judge(&mut health);
    }
    let mut rng = Rng::new(7);
    for _ in 0..5_000 {
        let noise: Vec<u8> = (0..rng.index(HEALTH_BYTES + 1)).map(|_| rng.below(256) as u8).collect();
        let mut health = DriveHealth::default();
        decode_log(&noise, &mut health);
        decode_identity(&noise, &mut health);
        judge(&mut health);
    }
}
