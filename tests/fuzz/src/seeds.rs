//! Inputs to begin with.

use std::path::Path;

/// Writes them where `ASHLAR_FUZZ_SEEDS` says, if it is set.
pub fn write(seeds: impl FnOnce(&Path) -> std::io::Result<()>) {
    if let Some(dir) = std::env::var_os("ASHLAR_FUZZ_SEEDS") {
        seeds(Path::new(&dir)).expect("seeds can be written");
    }
}
