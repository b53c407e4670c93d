//! Decoders of everything on disk. Input: which structure, whether its lengths and checksums are put right first, the bytes.
//!
//! Begins with valid ones, and with the golden images, the damaged ones included.
#![no_main]

#[path = "../../../blockdev/src/format/tests/generate.rs"]
#[allow(dead_code, reason = "for tests, too")]
mod generate;
#[path = "../../tests/format/imports.rs"]
mod imports;
#[path = "../../tests/format/property.rs"]
mod property;
mod seeds;

use std::path::Path;

use generate::KINDS;
use libfuzzer_sys::fuzz_target;

use imports::Rng;

/// Valid ones of each kind.
const OF_EACH: u64 = 16;

fn write_seeds(dir: &Path) -> std::io::Result<()> {
    let input = |which: usize, bytes: &[u8]| [&[which as u8, 1], bytes].concat();
    for (which, kind) in KINDS.iter().enumerate() {
        for n in 0..OF_EACH {
            std::fs::write(dir.join(format!("{}-{n}", kind.name)), input(which, &(kind.make)(&mut Rng::new(n))))?;
        }
    }
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../golden"))? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The longest name that fits: `catalogue-body` is no `catalogue`.
        let fits = KINDS.iter().enumerate().filter(|(_, kind)| name.contains(kind.name));
        let Some((which, _)) = fits.max_by_key(|(_, kind)| kind.name.len()) else { continue };
        std::fs::write(dir.join(&name), input(which, &std::fs::read(&path)?))?;
    }
    Ok(())
}

fuzz_target!(init: seeds::write(write_seeds), |input: &[u8]| {
    let [which, seal, bytes @ ..] = input else { return };
    let Some(kind) = KINDS.get(usize::from(*which)) else { return };
    let mut bytes = bytes.to_vec();
    if seal & 1 == 0 {
        (kind.seal)(&mut bytes);
    }
    property::holds(kind, &bytes);
});
