//! Builds `src/server/fsid.rs`, a library that NFS-Ganesha is started with, so that the program carries it.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = "src/server/fsid.rs";
    println!("cargo:rerun-if-changed={source}");
    let given = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name}"));
    let library = PathBuf::from(given("OUT_DIR")).join("libashlar-fsid.so");
    let mut rustc = Command::new(given("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-name", "ashlar_fsid", "--crate-type", "cdylib"]);
    rustc.args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "strip=symbols", "--target"]);
    rustc.arg(given("TARGET")).arg("-o").arg(&library).arg(source);
    let status = rustc.status().unwrap_or_else(|e| panic!("running {rustc:?}: {e}"));
    assert!(status.success(), "{rustc:?} ended with {status}");
}
