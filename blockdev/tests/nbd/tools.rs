//! libnbd's tools, QEMU's and fio against the server.

use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use blockdev::frontend::BlockDevice as _;
use blockdev::frontend::memory::MemoryDevice;
use serde_json::Value;

use crate::lab::{Lab, Probe, Random, now, run, run_any, tool};

const MIB: u64 = 1 << 20;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Writes runs of 1 to 40 pages here and there.
fn scatter(device: &MemoryDevice, seed: u64) {
    let mut random = Random(seed);
    let pages = device.geometry().size / 4096;
    for _ in 0..40 {
        let len = 1 + random.below(40);
        let at = random.below(pages - len) * 4096;
        let data = random.bytes(4096).repeat(len as usize);
        now(device.write(at, data.into(), false)).unwrap();
    }
}

/// A file of `size` bytes with data in some places and holes in the others.
fn sparse_file(path: &Path, size: u64, seed: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut random = Random(seed);
    for _ in 0..10 {
        let len = (1 + random.below(30)) * 4096;
        let at = random.below((size - len) / 65_536) * 65_536;
        file.write_all_at(&random.bytes(len as usize), at).unwrap();
    }
}

fn content(device: &MemoryDevice) -> Vec<u8> {
    now(device.read(0, device.geometry().size as usize)).unwrap().to_vec()
}

#[test]
fn nbdinfo_sees_what_exports_can_do() {
    let (Some(mut writable), Some(mut fixed), Some(mut list)) = (tool("nbdinfo"), tool("nbdinfo"), tool("nbdinfo"))
    else {
        return;
    };
    let read_only = Arc::new(MemoryDevice::new(5 * MIB + 12_345));
    read_only.set_read_only(true);
    let lab = Lab::new(&[("rw", Arc::new(MemoryDevice::new(64 * MIB))), ("read only", read_only)]);
    let report = json(&run(writable.arg("--json").arg(lab.server.uri("rw"))));
    assert_eq!(report["protocol"], "newstyle-fixed");
    assert_eq!(report["structured"], true);
    let export = &report["exports"][0];
    assert_eq!(export["export-size"], 64 * MIB);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for can in ["can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"] {
        assert_eq!(export[can], true, "{can}");
    }
    assert_eq!((&export["is_read_only"], &export["can_cache"]), (&false.into(), &false.into()));
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);
    let report = json(&run(fixed.arg("--json").arg(lab.server.uri("read only"))));
    assert_eq!(report["exports"][0]["is_read_only"], true);
    assert_eq!(report["exports"][0]["export-size"], 5 * MIB + 12_345);
    let report = json(&run(list.args(["--list", "--json"]).arg(lab.server.uri(""))));
    let names: Vec<_> = report["exports"].as_array().unwrap().iter().map(|e| e["export-name"].clone()).collect();
    assert_eq!(names, ["read only", "rw"]);
}

#[test]
fn maps_are_exactly_the_devices_allocation() {
    let device = Arc::new(MemoryDevice::new(64 * MIB));
    scatter(&device, 3);
    let lab = Lab::new(&[("vol", device.clone())]);
    let extents = now(device.block_status(0, 64 * MIB, usize::MAX)).unwrap();
    assert!(extents.len() > 20);
    let expected: Vec<_> = extents.iter().map(|e| (e.offset, e.len, e.mapped)).collect();
    if let Some(mut nbdinfo) = tool("nbdinfo") {
        let map = json(&run(nbdinfo.args(["--map", "--json"]).arg(lab.server.uri("vol"))));
        let map = map.as_array().unwrap().iter().map(|e| {
            let kind = e["type"].as_u64().unwrap();
            assert!(kind == 0 || kind == 3);
            (e["offset"].as_u64().unwrap(), e["length"].as_u64().unwrap(), kind == 0)
        });
        assert_eq!(map.collect::<Vec<_>>(), expected);
    }
    if let Some(mut qemu) = tool("qemu-img") {
        let map = json(&run(qemu.args(["map", "-f", "raw", "--output=json"]).arg(lab.server.uri("vol"))));
        let map = map
            .as_array()
            .unwrap()
            .iter()
            .map(|e| (e["start"].as_u64().unwrap(), e["length"].as_u64().unwrap(), e["data"].as_bool().unwrap()));
        assert_eq!(map.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn nbdcopy_keeps_bytes_and_holes() {
    let (Some(mut there), Some(mut back)) = (tool("nbdcopy"), tool("nbdcopy")) else { return };
    let size = 48 * MIB;
    let device = Arc::new(MemoryDevice::new(size));
    let lab = Lab::new(&[("vol", device.clone())]);
    let (original, copy) = (lab.dir.path().join("original"), lab.dir.path().join("copy"));
    sparse_file(&original, size, 9);
    run(there.args(["--flush", "--connections=4"]).arg(&original).arg(lab.server.uri("vol")));
    let bytes = std::fs::read(&original).unwrap();
    assert!(content(&device) == bytes);
    let in_file = std::fs::metadata(&original).unwrap().blocks() * 512;
    assert!(device.mapped_bytes() <= in_file, "{} bytes of {in_file} allocated", device.mapped_bytes());
    run(back.arg(lab.server.uri("vol")).arg(&copy));
    assert!(std::fs::read(&copy).unwrap() == bytes);
    assert!(std::fs::metadata(&copy).unwrap().blocks() * 512 < size / 4, "the copy has no holes");
}

#[test]
fn qemu_img_converts_and_compares() {
    let size = 32 * MIB;
    let device = Arc::new(MemoryDevice::new(size));
    let lab = Lab::new(&[("vol", device.clone())]);
    let (original, copy) = (lab.dir.path().join("original.raw"), lab.dir.path().join("copy.qcow2"));
    sparse_file(&original, size, 11);
    let qemu =
        |arguments: &[&str], paths: [&std::ffi::OsStr; 2]| Some(run_any(tool("qemu-img")?.args(arguments).args(paths)));
    let uri = lab.server.uri("vol");
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw"];
    let Some(output) = qemu(&convert, [original.as_ref(), uri.as_ref()]) else { return };
    assert!(output.status.success(), "{output:?}");
    assert!(content(&device) == std::fs::read(&original).unwrap());
    let same = |paths| qemu(&["compare", "-f", "raw", "-F", "raw"], paths).unwrap();
    let output = same([original.as_ref(), uri.as_ref()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = qemu(&["convert", "-f", "raw", "-O", "qcow2"], [uri.as_ref(), copy.as_ref()]).unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = qemu(&["compare", "-f", "qcow2", "-F", "raw"], [copy.as_ref(), original.as_ref()]).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    now(device.write(size - 1, vec![0xFF].into(), false)).unwrap();
    assert_eq!(same([original.as_ref(), uri.as_ref()]).status.code(), Some(1), "the difference is seen");
}

#[test]
fn qemu_io_zeroes_discards_and_syncs() {
    let Some(mut qemu) = tool("qemu-io") else { return };
    let probe = Probe::new(MIB);
    let lab = Lab::new(&[("vol", probe.clone())]);
    qemu.args(["-f", "raw", "-t", "writeback", "-d", "unmap"]);
    for command in [
        "write -P 1 0 256k",
        "write -z 0 4k",
        "write -z -u 8k 4k",
        "write -z -u -n 16k 4k",
        "discard 32k 8k",
        "write -f -P 2 64k 4k",
        "flush",
        "read -P 0 0 4k",
        "read -P 1 4k 4k",
        "read -P 2 64k 4k",
        "aio_write -P 3 128k 4k",
        "aio_write -P 4 132k 1000",
        "aio_flush",
        "read -P 4 132k 1000",
    ] {
        qemu.args(["-c", command]);
    }
    let output = run(qemu.arg(lab.server.uri("vol")));
    assert!(!output.contains("failed"), "{output}");
    let holes: Vec<_> = now(probe.memory.block_status(0, 256 << 10, 100)).unwrap();
    let holes: Vec<_> = holes.into_iter().filter(|e| !e.mapped).map(|e| (e.offset >> 10, e.len >> 10)).collect();
    assert_eq!(holes, [(0, 4), (8, 4), (16, 4), (32, 8)]);
    assert!(probe.fua_writes.load(Ordering::SeqCst) >= 1);
    assert!(probe.flushes.load(Ordering::SeqCst) >= 1);
    assert_eq!(now(probe.memory.read(128 << 10, 1)).unwrap()[0], 3);
}

#[test]
fn qemu_cannot_write_to_a_read_only_device() {
    let (Some(mut write), Some(mut read)) = (tool("qemu-io"), tool("qemu-io")) else { return };
    let device = Arc::new(MemoryDevice::new(MIB));
    now(device.write(0, vec![5; 4096].into(), false)).unwrap();
    device.set_read_only(true);
    let lab = Lab::new(&[("vol", device.clone())]);
    let output = run_any(write.args(["-f", "raw", "-c", "write -P 6 0 4k"]).arg(lab.server.uri("vol")));
    assert!(!output.status.success() && content(&device)[..4096] == [5; 4096], "{output:?}");
    run(read.args(["-r", "-f", "raw", "-c", "read -P 5 0 4k"]).arg(lab.server.uri("vol")));
}

#[test]
fn fio_verifies_over_several_connections() {
    let Some(mut fio) = tool("fio") else { return };
    let probe = Probe::new(64 * MIB);
    let lab = Lab::new(&[("vol", probe.clone())]);
    let output = run_any(
        fio.args(["--name=verify", "--ioengine=nbd", "--rw=randwrite", "--bsrange=512-256k", "--bs_unaligned"])
            .args(["--size=16m", "--numjobs=3", "--offset_increment=16m", "--iodepth=16", "--fsync=50"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--group_reporting", "--randseed=5"])
            .current_dir(lab.dir.path())
            .arg(format!("--uri={}", lab.server.uri("vol"))),
    );
    if String::from_utf8_lossy(&output.stderr).contains("engine nbd not loadable") {
        crate::skip::skip("nbd: a test was skipped, fio has no nbd engine");
        return;
    }
    assert!(output.status.success(), "{output:?}");
    assert!(probe.flushes.load(Ordering::SeqCst) > 0 && probe.memory.mapped_bytes() == 48 * MIB);
}
