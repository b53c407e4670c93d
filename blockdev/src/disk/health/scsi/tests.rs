use std::io;

use super::super::ioctl::Answer;
use super::super::judge::judge;
use super::*;
use crate::env::rng::Rng;
use crate::report::HealthState;

fn standard(vendor: &str, product: &str) -> Vec<u8> {
    let mut data = vec![0; INQUIRY_BYTES];
    data[8..16].copy_from_slice(format!("{vendor:<8}").as_bytes());
    data[16..32].copy_from_slice(format!("{product:<16}").as_bytes());
    data[32..36].copy_from_slice(b"E002");
    data
}

/// A page with its header and parameters.
fn page(number: u8, parameters: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (code, value) in parameters {
        body.extend(code.to_be_bytes());
        body.extend([3, value.len() as u8]);
        body.extend(*value);
    }
    let mut page = vec![number, 0];
    page.extend((body.len() as u16).to_be_bytes());
    page.extend(body);
    page
}

fn list(numbers: &[u8]) -> Vec<u8> {
    let mut page = vec![0, 0, 0, numbers.len() as u8];
    page.extend(numbers);
    page
}

/// A drive that gives these pages.
struct Drive {
    standard: Vec<u8>,
    vital: Vec<(u8, Vec<u8>)>,
    logs: Vec<(u8, Vec<u8>)>,
}

impl Channel for Drive {
    fn nvme(&self, _: u8, _: u32, _: u32, _: &mut [u8]) -> io::Result<()> {
        panic!("a SCSI drive is not asked by NVMe commands");
    }

    fn scsi(&self, command: &[u8], data: &mut [u8]) -> io::Result<Answer> {
        let found = match (command[0], command[1]) {
            (INQUIRY, 0) => Some(&self.standard),
            (INQUIRY, _) => self.vital.iter().find(|(n, _)| *n == command[2]).map(|(_, page)| page),
            (LOG_SENSE, _) => {
                assert_eq!(command[2] & 0xc0, CUMULATIVE);
                self.logs.iter().find(|(n, _)| *n == command[2] & 0x3f).map(|(_, page)| page)
            }
            other => panic!("an unexpected command {other:x?}"),
        };
        let Some(page) = found else { return Ok(Answer { status: 2, ..Answer::default() }) };
        let len = page.len().min(data.len());
        data[..len].copy_from_slice(&page[..len]);
        Ok(Answer { len, ..Answer::default() })
    }
}

fn serial(text: &str) -> (u8, Vec<u8>) {
    let mut page = vec![0, SERIAL, 0, text.len() as u8];
    page.extend(text.as_bytes());
    (SERIAL, page)
}

/// A solid-state drive on SAS with these informational exceptions.
fn sas(code: u8, qualifier: u8) -> Drive {
    Drive {
        standard: standard("SEAGATE", "XS1920SE70004"),
        vital: vec![serial("HLJ012AB    ")],
        logs: vec![
            (LIST, list(&[0, 2, 3, 5, 0x0d, 0x11, 0x15, 0x2f, 0x38])),
            (WRITE_ERRORS, page(2, &[(0, &[0, 0, 0, 1]), (6, &[0, 0, 0, 0, 0, 0, 0, 2])])),
            (READ_ERRORS, page(3, &[(6, &[0, 3])])),
            (TEMPERATURE, page(0x0d, &[(0, &[0, 41]), (1, &[0, 70])])),
            (SOLID_STATE, page(0x11, &[(1, &[0, 0, 0, 12])])),
            (BACKGROUND_SCAN, page(0x15, &[(0, &[0, 0, 0x17, 0x70, 0, 0, 0, 0, 0, 0, 0, 0])])),
            (INFORMATIONAL_EXCEPTIONS, page(0x2f, &[(0, &[code, qualifier, 43, 0])])),
        ],
    }
}

fn judged(drive: &Drive) -> (DriveHealth, String) {
    let mut health = read(drive);
    judge(&mut health);
    let codes: Vec<String> = health.warnings.iter().map(|w| w.code.replace("disk.health.", "")).collect();
    (health, codes.join(" "))
}

#[test]
fn a_drive_is_read_by_its_log_pages() {
    let (health, codes) = judged(&sas(0, 0));
    let expected = DriveHealth {
        state: HealthState::Good,
        source: Some(HealthSource::Scsi),
        model: Some("SEAGATE XS1920SE70004".into()),
        serial: Some("HLJ012AB".into()),
        firmware: Some("E002".into()),
        temperature_c: Some(41),
        temperature_critical_c: Some(70),
        wear_percent: Some(12),
        media_errors: Some(5),
        power_on_hours: Some(100),
        ..DriveHealth::default()
    };
    assert_eq!((health, codes.as_str()), (expected, ""));
}

#[test]
fn exceptions_have_words() {
    for (code, qualifier, state, warning) in [
        (0x5d, 0x10, HealthState::Critical, "failing"),
        (0x5d, 0xff, HealthState::Good, ""),
        (0x0b, 0x01, HealthState::Warning, "temperature"),
        (0x0b, 0x03, HealthState::Warning, "unknown"),
    ] {
        let (health, codes) = judged(&sas(code, qualifier));
        assert_eq!((health.state, codes.as_str()), (state, warning), "{code:02x}/{qualifier:02x}");
    }
}

#[test]
fn drives_without_log_pages_say_so() {
    let drive = Drive { standard: standard("QEMU", "QEMU HARDDISK"), vital: vec![serial("scsi0")], logs: vec![] };
    let (health, _) = judged(&drive);
    assert_eq!((health.state, health.source), (HealthState::NotReported, None));
    assert_eq!((health.model.as_deref(), health.serial.as_deref()), (Some("QEMU QEMU HARDDISK"), Some("scsi0")));
    assert!(health.note.unwrap().contains("no log pages"));
    // The list is a page among others: one without figures about health is as none.
    let drive = Drive { logs: vec![(LIST, list(&[0, 0x38]))], ..drive };
    assert_eq!(judged(&drive).0.state, HealthState::NotReported);
}

#[test]
fn ata_behind_a_translation_is_recognised() {
    let drive =
        |vendor: &str, vital: Vec<(u8, Vec<u8>)>| Drive { standard: standard(vendor, "X"), vital, logs: vec![] };
    assert!(is_ata(&drive("ATA", vec![])));
    assert!(is_ata(&drive("ASMT", vec![(ATA_INFORMATION, vec![0, ATA_INFORMATION, 2, 0x38])])));
    assert!(!is_ata(&drive("ASMT", vec![(ATA_INFORMATION, vec![0, 0, 0, 0])])));
    assert!(!is_ata(&drive("SEAGATE", vec![serial("x")])));
}

#[test]
fn short_pages_and_noise_are_survived() {
    let mut rng = Rng::new(13);
    let drive = sas(0x5d, 0);
    let mut pages: Vec<Vec<u8>> = Vec::new();
    for (_, page) in &drive.logs {
        pages.extend((0..page.len()).map(|len| page[..len].to_vec()));
        // Lengths that promise more than there is.
        pages.extend((0..page.len()).map(|at| {
            let mut page = page.clone();
            page[at] = 0xff;
            page
        }));
    }
    pages.extend((0..5_000).map(|_| {
        let mut noise = vec![0; rng.index(300)];
        rng.fill(&mut noise);
        noise
    }));
    for data in &pages {
        let mut health = DriveHealth::default();
        for page in PAGES {
            decode_log(*page, data, &mut health);
        }
        decode_inquiry(data, &mut health);
        decode_serial(data);
        listed(data);
        judge(&mut health);
    }
}
