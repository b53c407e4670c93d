//! Disks that something is wrong with as a whole: the pool opens without them or refuses, says which, and in the latter case
//! has written nothing.

use std::sync::Arc;

use blockdev::disk::{AlignedBuf, Disk, DiskError, DiskGeometry, DiskResult, MemoryDisk};
use blockdev::env::sim::SimScope;
use blockdev::env::{BoxFuture, Env};
use blockdev::error::{Error, ErrorKind};
use blockdev::format::layout::{LABEL_SIZE, SUPERBLOCK_SLOTS};
use blockdev::pool::{CreateOptions, Pool, PoolConfig};
use blockdev::report::DiskState;
use bytes::Bytes;

use crate::imports::*;

const SIZE: u64 = 12 << 20;
const STEPS: u64 = 20_000_000;
const VOLUME: u64 = 4 << 20;

type Disks = Vec<Arc<dyn Disk>>;

/// Runs something on an environment of its own, as a process would.
fn run<T, F: Future<Output = T>>(seed: u64, work: impl FnOnce(Arc<dyn Env>) -> F) -> T {
    let scope = SimScope::new(seed);
    scope.run_until(work(scope.env()), STEPS).unwrap_or_else(|stall| panic!("seed {seed}: {stall}"))
}

fn memory(prefix: &str, count: usize) -> Disks {
    (0..count).map(|i| Arc::new(MemoryDisk::new(format!("{prefix}{i}"), SIZE)) as Arc<dyn Disk>).collect()
}

fn options(tolerance: Tolerance) -> CreateOptions {
    CreateOptions {
        name: "tank".into(),
        tolerance,
        chunk_size: Some(128 << 10),
        strip_size: Some(16 << 10),
        force: false,
    }
}

fn config() -> PoolConfig {
    PoolConfig { memory: 16 << 20, ..PoolConfig::default() }
}

fn content(seed: u64) -> Bytes {
    let mut out = vec![0; 256 << 10];
    Rng::new(seed).fill(&mut out);
    Bytes::from(out)
}

/// A pool with one volume and something in it, closed in order.
fn pool(prefix: &str, count: usize, tolerance: Tolerance, seed: u64) -> Disks {
    let disks = memory(prefix, count);
    let given = disks.clone();
    run(seed, |env| async move {
        Pool::create(env.clone(), given.clone(), options(tolerance)).await.expect("created");
        let pool = Pool::open(env, given, config()).await.expect("opened");
        pool.create_volume("v", VOLUME).await.expect("a volume");
        pool.open_volume("v").expect("opened").write(0, content(seed), true).await.expect("written");
        pool.close().await.expect("closed");
    });
    disks
}

/// Opens; what was written must be there. Returns disks that do not serve, by name, with their state.
fn opens(disks: &[Arc<dyn Disk>], seed: u64) -> Vec<(String, DiskState)> {
    let disks = disks.to_vec();
    run(seed + 1000, |env| async move {
        let pool = Pool::open(env, disks, config()).await.expect("opened");
        let found = pool.open_volume("v").expect("the volume").read(0, 256 << 10).await.expect("read");
        assert!(found == content(seed), "the volume's content has changed");
        let gone = pool.disks().into_iter().filter(|d| d.state != DiskState::Online);
        let gone = gone.map(|d| (d.path, d.state)).collect();
        pool.close().await.expect("closed");
        gone
    })
}

fn bytes(disk: &Arc<dyn Disk>, offset: u64, len: u64) -> Bytes {
    run(1, |_| disk.read(offset, len as usize)).expect("read")
}

fn all_bytes(disks: &[Arc<dyn Disk>]) -> Vec<Bytes> {
    disks.iter().map(|d| bytes(d, 0, d.geometry().size)).collect()
}

fn put(disk: &Arc<dyn Disk>, offset: u64, data: &[u8]) {
    run(2, |_| disk.write(offset, vec![AlignedBuf::padded(data).freeze()], true)).expect("written");
}

/// Tries to open: refused, and not a byte has changed.
fn refuses(disks: &[Arc<dyn Disk>]) -> Error {
    let before = all_bytes(disks);
    let given = disks.to_vec();
    let error = run(3, |env| async move { Pool::open(env, given, config()).await.map(drop) }).expect_err("refused");
    assert!(all_bytes(disks) == before, "something was written although opening failed: {error}");
    error
}

#[track_caller]
fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    words.iter().for_each(|w| assert!(error.to_string().contains(w), "'{error}' does not say '{w}'"));
}

/// The two places of the label.
const FRONT: u64 = 0;
const TAIL: u64 = SIZE - EDGE;

fn spoil(disk: &Arc<dyn Disk>, at: u64) {
    let mut data = bytes(disk, at, 4096).to_vec();
    data[20..60].fill(0xee);
    put(disk, at, &data);
}

fn relabel(disk: &Arc<dyn Disk>, change: impl Fn(&mut Label)) {
    let mut label = Label::decode(&bytes(disk, FRONT, LABEL_SIZE as u64)).expect("a label");
    change(&mut label);
    [FRONT, TAIL].into_iter().for_each(|at| put(disk, at, &label.encode()));
}

#[test]
fn one_spoilt_label_copy_is_made_good_from_the_other() {
    for at in [FRONT, TAIL] {
        let disks = pool("d", 3, Tolerance::Single, 10);
        disks.iter().for_each(|d| spoil(d, at));
        assert_eq!(opens(&disks, 10), []);
        for d in &disks {
            assert_eq!(bytes(d, FRONT, 4096), bytes(d, TAIL, 4096));
            Label::decode(&bytes(d, at, 4096)).expect("made good");
        }
    }
}

#[test]
fn disk_without_a_label_counts_as_missing() {
    let disks = pool("d", 3, Tolerance::Single, 11);
    [FRONT, TAIL].into_iter().for_each(|at| spoil(&disks[1], at));
    let before = bytes(&disks[1], 0, SIZE);
    assert_eq!(opens(&disks, 11), [(String::new(), DiskState::Missing)]);
    assert!(bytes(&disks[1], 0, SIZE) == before, "a disk without a label was written to");

    let disks = pool("e", 3, Tolerance::None, 12);
    [FRONT, TAIL].into_iter().for_each(|at| spoil(&disks[1], at));
    says(
        &refuses(&disks),
        ErrorKind::Unavailable,
        &["tank", "1 of 3 disks", "tolerance of 0", "e1: label: checksum mismatch"],
    );

    for d in &disks {
        [FRONT, TAIL].into_iter().for_each(|at| spoil(d, at));
    }
    says(&refuses(&disks), ErrorKind::NotFound, &["e0: label: checksum mismatch", "e2: label"]);
    says(&refuses(&memory("blank", 2)), ErrorKind::NotFound, &["blank0 has no Ashlar label", "blank1"]);
    says(&refuses(&[]), ErrorKind::NotFound, &["no disks given"]);
}

#[test]
fn more_disks_missing_than_tolerated_is_refused() {
    let disks = pool("d", 4, Tolerance::Single, 13);
    let name = |i: usize| {
        let label = Label::decode(&bytes(&disks[i], FRONT, 4096)).expect("a label");
        format!("disk {i} ({}): not found", label.disk)
    };
    let error = refuses(&disks[..2]);
    says(&error, ErrorKind::Unavailable, &["pool tank", "2 of 4 disks", "tolerance of 1"]);
    says(&error, ErrorKind::Unavailable, &[&name(2), &name(3), "attach them", "restore"]);
    assert!(!error.to_string().contains("disk 0") && !error.to_string().contains("disk 1"), "{error}");
    assert_eq!(opens(&disks[1..], 13), [(String::new(), DiskState::Missing)]);
}

#[test]
fn disk_of_another_pool_is_refused_by_name() {
    let (mine, other) = (pool("mine", 3, Tolerance::Single, 14), pool("other", 3, Tolerance::Single, 15));
    let mixed = [mine[0].clone(), mine[1].clone(), mine[2].clone(), other[2].clone()];
    says(&refuses(&mixed), ErrorKind::InvalidArgument, &["mine0", "other2", "one pool only"]);

    // It says that it belongs here, but the catalogue does not know it: it was removed, or never wholly added. Nothing is written to it.
    let here = Label::decode(&bytes(&mine[0], FRONT, 4096)).expect("a label").pool;
    relabel(&other[2], |l| l.pool = here);
    let before = bytes(&other[2], 0, SIZE);
    assert_eq!(opens(&mixed, 14), []);
    assert!(bytes(&other[2], 0, SIZE) == before, "it was written to");
    assert_eq!(opens(&mine, 14), []);
}

#[test]
fn copy_of_a_disk_is_refused_by_name() {
    let mut disks = pool("d", 3, Tolerance::Single, 16);
    let copy: Arc<dyn Disk> = Arc::new(MemoryDisk::new("copy", SIZE));
    put(&copy, 0, &bytes(&disks[1], 0, SIZE));
    disks.push(copy);
    says(&refuses(&disks), ErrorKind::InvalidArgument, &["d1", "copy", "same disk identity"]);
}

#[test]
fn disk_restored_from_an_old_copy_is_not_used() {
    let disks = pool("d", 3, Tolerance::Single, 17);
    let old = bytes(&disks[1], 0, SIZE);
    // Checkpoints go on, more than there are superblock slots.
    (0..=SUPERBLOCK_SLOTS).for_each(|_| assert_eq!(opens(&disks, 17), []));
    put(&disks[1], 0, &old);
    assert_eq!(opens(&disks, 17), [("d1".into(), DiskState::Failed)]);
}

#[test]
fn unknown_format_version_is_refused_by_name() {
    // One copy is enough: a newer release that began to take the disk over may have got no further.
    for copies in [&[FRONT, TAIL][..], &[FRONT], &[TAIL]] {
        let disks = pool("d", 3, Tolerance::Single, 18);
        for &at in copies {
            let mut data = bytes(&disks[2], at, 4096).to_vec();
            data[8] = FORMAT_VERSION as u8 + 1;
            let sum = checksum(&data[..4088]);
            data[4088..].copy_from_slice(&sum.to_le_bytes());
            put(&disks[2], at, &data);
        }
        says(&refuses(&disks), ErrorKind::Unsupported, &["d2", "format version 9 is unknown", "use a newer release"]);
    }
}

/// Offsets of all superblocks of a disk.
fn superblocks() -> impl Iterator<Item = u64> {
    (1..=SUPERBLOCK_SLOTS).flat_map(|slot| [FRONT, TAIL].map(|at| at + slot * LABEL_SIZE as u64))
}

#[test]
fn superblocks_and_catalogue_are_taken_from_any_disk() {
    let disks = pool("d", 3, Tolerance::Single, 19);
    let geometry = Label::decode(&bytes(&disks[0], FRONT, 4096)).expect("a label").geometry;
    disks[..2].iter().for_each(|d| superblocks().for_each(|at| put(d, at, &[0xff; 4096])));
    disks[1..].iter().for_each(|d| (0..2).for_each(|slot| spoil(d, geometry.catalogue(slot))));
    // Two disks show no checkpoint at all: more than the tolerance were set back.
    let error = refuses(&disks);
    says(&error, ErrorKind::Unavailable, &["tank", "2 of 3 disks"]);

    let disks = pool("e", 3, Tolerance::Single, 20);
    (0..2).for_each(|slot| disks[..2].iter().for_each(|d| spoil(d, geometry.catalogue(slot))));
    assert_eq!(opens(&disks, 20), []);

    disks.iter().for_each(|d| (0..2).for_each(|slot| spoil(d, geometry.catalogue(slot))));
    says(&refuses(&disks), ErrorKind::Corrupt, &["the catalogue of checkpoint", "cannot be read from any disk"]);
    disks.iter().for_each(|d| superblocks().for_each(|at| put(d, at, &[0; 4096])));
    says(&refuses(&disks), ErrorKind::Corrupt, &["no intact superblock"]);
}

/// A disk that has become shorter.
struct Shorter(Arc<dyn Disk>, u64);

impl Shorter {
    fn check(&self, offset: u64, len: usize) -> DiskResult<()> {
        if offset + len as u64 <= self.1 {
            Ok(())
        } else {
            Err(DiskError::Failed(format!("{} ends at {}", self.0.name(), self.1)))
        }
    }
}

impl Disk for Shorter {
    fn name(&self) -> String {
        self.0.name()
    }

    fn geometry(&self) -> DiskGeometry {
        DiskGeometry { size: self.1, ..self.0.geometry() }
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<DiskResult<Bytes>> {
        match self.check(offset, len) {
            Ok(()) => self.0.read(offset, len),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    fn write(&self, offset: u64, data: Vec<Bytes>, durable: bool) -> BoxFuture<DiskResult<()>> {
        match self.check(offset, data.iter().map(Bytes::len).sum()) {
            Ok(()) => self.0.write(offset, data, durable),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    fn flush(&self) -> BoxFuture<DiskResult<()>> {
        self.0.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<DiskResult<()>> {
        self.0.discard(offset, len)
    }
}

#[test]
fn truncated_disk_counts_as_missing_and_is_not_written_to() {
    for size in [SIZE - 4096, SIZE - EDGE, SIZE / 2, EDGE, 4096] {
        let disks = pool("d", 3, Tolerance::Single, 21);
        let before = bytes(&disks[1], 0, SIZE);
        let given = [disks[0].clone(), Arc::new(Shorter(disks[1].clone(), size)), disks[2].clone()];
        assert_eq!(opens(&given, 21), [(String::new(), DiskState::Missing)], "{size}");
        assert!(bytes(&disks[1], 0, SIZE) == before, "a disk cut to {size} bytes was written to");
    }
}

#[test]
fn too_many_truncated_disks_are_refused_by_name_and_size() {
    let disks = pool("d", 3, Tolerance::Single, 23);
    let short = |i: usize, size| Arc::new(Shorter(disks[i].clone(), size)) as Arc<dyn Disk>;
    let sizes = |i: usize, size| format!("d{i} was truncated: it has {size} bytes, {SIZE} when it was labelled");
    let (half, edge) = (sizes(1, SIZE / 2), sizes(2, SIZE - EDGE));
    let given = [disks[0].clone(), short(1, SIZE / 2), short(2, SIZE - EDGE)];
    says(&refuses(&given), ErrorKind::Unavailable, &["pool tank", "2 of 3 disks", &half, &edge]);
    // What lies beyond the end of the short ones has not changed either.
    assert_eq!(opens(&disks, 23), []);

    let given = [short(0, EDGE), short(1, SIZE / 2), short(2, SIZE - EDGE)];
    says(&refuses(&given), ErrorKind::NotFound, &[&sizes(0, EDGE), &half, &edge]);
}

#[test]
fn truncated_disk_is_not_taken_back() {
    let disks = pool("d", 3, Tolerance::Single, 24);
    let short: Arc<dyn Disk> = Arc::new(Shorter(disks[1].clone(), SIZE / 2));
    let (before, given) = (bytes(&disks[1], 0, SIZE), vec![disks[0].clone(), disks[2].clone()]);
    let whole = disks[1].clone();
    run(5, |env| async move {
        let pool = Pool::open(env, given, config()).await.expect("opened");
        let error = pool.reinstate_disk(short).await.expect_err("refused");
        says(&error, ErrorKind::Corrupt, &["d1 was truncated"]);
        assert!(whole.read(0, SIZE as usize).await.expect("read") == before, "it was written to");
        pool.reinstate_disk(whole).await.expect("taken back");
        pool.close().await.expect("closed");
    });
    assert_eq!(opens(&disks, 24).len(), 0);
}

#[test]
fn creation_is_refused_before_anything_is_written() {
    let create = |disks: &[Arc<dyn Disk>], options: CreateOptions| {
        let before = all_bytes(disks);
        let given = disks.to_vec();
        let error = run(4, |env| async move { Pool::create(env, given, options).await }).expect_err("refused");
        assert!(all_bytes(disks) == before, "something was written although creation failed: {error}");
        error
    };
    let single = || options(Tolerance::Single);
    let disks = pool("d", 3, Tolerance::Single, 22);
    let mixed = [memory("new", 2), disks[1..2].to_vec()].concat();
    says(&create(&mixed, single()), ErrorKind::Busy, &["d1", "tank", "--force"]);

    // One copy of the label is enough to tell whose it is; a spoilt one is no reason to take the disk.
    spoil(&disks[1], FRONT);
    says(&create(&mixed, single()), ErrorKind::Busy, &["d1", "tank"]);

    let small: Arc<dyn Disk> = Arc::new(MemoryDisk::new("small", 1 << 20));
    says(
        &create(&[memory("new", 2), vec![small]].concat(), single()),
        ErrorKind::InvalidArgument,
        &["small", "too small"],
    );
    says(&create(&memory("new", 1), single()), ErrorKind::InvalidArgument, &["at least 2 disks, 1 given"]);
    says(&create(&[], single()), ErrorKind::InvalidArgument, &["0 given"]);
    says(
        &create(&memory("new", 2), CreateOptions { chunk_size: Some(1 << 30), ..single() }),
        ErrorKind::InvalidArgument,
        &["chunk size 1073741824 exceeds"],
    );
    says(
        &create(&memory("new", 2), CreateOptions { name: "no/good".into(), ..single() }),
        ErrorKind::InvalidArgument,
        &["no/good"],
    );
}
