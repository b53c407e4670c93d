//! Looking for drives of the pool that failed or are missing, by their labels: what was unplugged often comes back under another name.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockdev::disk::Disk;
use blockdev::error::{ErrorKind, Result};
use blockdev::format::label::Label;
use blockdev::format::layout::LABEL_SIZE;
use blockdev::report::DiskInfo;
use blockdev::units::Uuid;
use parking_lot::Mutex;

use super::engine::{identity, open_when_released};
use super::known_disks;
use super::state::Appliance;

/// Longest wait for a look at one drive: one that hangs must not keep the others.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// O_NONBLOCK of linux: opening a drive without a medium, or a pipe, does not wait.
const NONBLOCK: i32 = 0o4000;

/// Block devices as the kernel numbers their appearances: one that comes back under the same name has another number.
pub struct Plugged(BTreeSet<u64>);

impl Plugged {
    /// Those that are there.
    pub fn now() -> Self {
        let number = |dir: PathBuf| std::fs::read_to_string(dir.join("diskseq")).ok()?.trim().parse().ok();
        Self(block_devices("/sys/block").into_iter().filter_map(number).collect())
    }

    /// Whether one appeared since the last look.
    pub fn has_new(&mut self) -> bool {
        let before = std::mem::replace(self, Self::now());
        !self.0.is_subset(&before.0)
    }
}

fn block_devices(sys: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(sys) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Takes back those drives that failed or are missing and are found: at the paths of the configuration, where they were, or among all block
/// devices. Gives all drives of the pool.
pub async fn rescan(app: &Appliance) -> Result<Vec<DiskInfo>> {
    let _alone = app.rescans.lock().await;
    // Those that are gone are noticed first.
    app.engine.rescan_disks().await?;
    // The laboratory pulls drives that are there all the time.
    if app.faults.is_none() {
        for path in find(app).await {
            if let Err(e) = take_back(app, &path).await {
                tracing::warn!(disk = %path.display(), error = %e, "a drive of the pool stays out");
            }
        }
    }
    Ok(app.engine.status().await.disks)
}

fn is_absent(disk: &DiskInfo) -> bool {
    disk.state.is_absent()
}

/// Where drives are that the pool lacks.
async fn find(app: &Appliance) -> Vec<PathBuf> {
    let status = app.engine.status().await;
    if !status.disks.iter().any(is_absent) {
        return Vec::new();
    }
    let mut paths = app.disks.clone();
    paths.extend(known_disks::added(&app.state_dir));
    paths.extend(known_disks::load(&app.state_dir).into_values().map(PathBuf::from));
    let device = |dir: PathBuf| Some(Path::new("/dev").join(dir.file_name()?));
    paths.extend(block_devices("/sys/class/block").into_iter().filter_map(device));
    let mut seen: BTreeSet<(u64, u64)> =
        status.disks.iter().filter(|d| !is_absent(d)).filter_map(|d| identity(Path::new(&d.path))).collect();
    let mut found = Vec::new();
    for path in paths {
        if identity(&path).is_some_and(|identity| seen.insert(identity))
            && look(&path).await.is_some_and(|label| is_wanted(&label, status.uuid, &status.disks))
        {
            found.push(path);
        }
    }
    found
}

/// Drives that are being looked at.
static LOOKS: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());

/// The label of a drive, if it shows one in time. One that hangs is not looked at a second time until the first look has ended: each keeps a thread.
async fn look(path: &Path) -> Option<Label> {
    let at = path.to_owned();
    let identity = identity(path)?;
    if !LOOKS.lock().insert(identity) {
        return None;
    }
    let look = tokio::task::spawn_blocking(move || {
        let found = label(&at);
        LOOKS.lock().remove(&identity);
        found
    });
    tokio::time::timeout(LOOK_MAX, look).await.ok()?.ok()?
}

fn is_wanted(label: &Label, pool: Uuid, disks: &[DiskInfo]) -> bool {
    label.pool == pool && disks.iter().any(|d| d.uuid == label.disk && is_absent(d))
}

/// The label at the start of a file or block device. Whatever is wrong with it: then there is none.
///
/// It is opened for reading only: what is not ours must not look written to.
fn label(path: &Path) -> Option<Label> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return None;
    }
    let file: File = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path).ok()?;
    let mut data = vec![0; LABEL_SIZE];
    file.read_exact_at(&mut data, 0).ok()?;
    Label::decode(&data).ok()
}

async fn take_back(app: &Appliance, path: &Path) -> Result<()> {
    let Some(label) = look(path).await else { return Ok(()) };
    // Whatever is open of it would keep this from being opened.
    app.engine.let_go_of_disk(label.disk);
    app.engine.release_disk(path);
    let disk: Arc<dyn Disk> = match open_when_released(path).await {
        // Gone again.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let info = app.engine.reinstate_disk(disk).await?;
    tracing::info!(disk = info.id, path = %path.display(), "a drive of the pool is back");
    let disks = app.engine.status().await.disks;
    known_disks::keep(&app.state_dir, known_disks::load(&app.state_dir), &disks);
    let named = app.disks.iter().any(|p| identity(p) == identity(path));
    known_disks::keep_added(&app.state_dir, &disks, (!named).then_some(path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use blockdev::report::DiskState;

    use super::*;

    #[test]
    fn only_what_the_pool_lacks_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a.img"), dir.path().join("b.img")];
        paths.iter().for_each(|path| File::create(path).unwrap().set_len(256 << 20).unwrap());
        let new = super::super::engine::NewPool {
            name: "here".into(),
            disks: paths.to_vec(),
            tolerance: blockdev::report::Tolerance::None,
            chunk_size: None,
            force: false,
        };
        super::super::engine::create(&new).unwrap();
        let labels = paths.each_ref().map(|path| label(path).expect("a label"));
        let disk = |label: &Label, state| DiskInfo { uuid: label.disk, state, ..DiskInfo::default() };
        let disks = vec![disk(&labels[0], DiskState::Missing), disk(&labels[1], DiskState::Online)];
        let pool = labels[0].pool;
        assert!(is_wanted(&labels[0], pool, &disks) && !is_wanted(&labels[1], pool, &disks));
        assert!(!is_wanted(&labels[0], Uuid([9; 16]), &disks));
    }

    #[test]
    fn what_has_no_label_is_not_read_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        std::fs::write(&short, "x").unwrap();
        let zeroes = dir.path().join("zeroes");
        std::fs::write(&zeroes, [0; 8192]).unwrap();
        for path in [dir.path(), &short, &zeroes, Path::new("/dev/null"), &dir.path().join("none")] {
            assert!(label(path).is_none(), "{}", path.display());
        }
    }

    #[test]
    fn a_device_is_new_once() {
        let mut plugged = Plugged::now();
        plugged.0.insert(u64::MAX);
        assert!(!plugged.has_new(), "one that went is not new");
        let Some(first) = plugged.0.pop_first() else { return };
        assert!(plugged.has_new(), "{first} appeared");
    }
}
