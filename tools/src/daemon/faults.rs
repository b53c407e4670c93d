//! Fault injection of the laboratory: drives that are pulled and put back, drives that are slow, drives that rot. Pulled and slow ones
//! stay so across a restart, as in a real machine.
//!
//! The file that remembers them, in the state directory:
//!
//! ```json
//! { "version": 1, "disks": { "/lab/disks/disk2.img": { "pulled": true }, "/lab/disks/disk4.img": { "slow_us": 20000 } } }
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use blockdev::error::{Error, ErrorKind, Result};
use blockdev::report::DiskInfo;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::wire::lab::{DiskCorrupt, DiskCorrupted, DiskFault};

/// Name of the file in the state directory.
const FILE_NAME: &str = "disk-faults.json";
/// Version of its form.
const VERSION: u32 = 1;
/// Longest delay of a request: a drive that is slower is as good as dead.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// A drive that can be made to misbehave.
#[async_trait]
pub trait Faulty: Send + Sync {
    /// With `pulled`, every request is answered with an error from now on; without, the drive works again.
    fn set_pulled(&self, pulled: bool);
    /// Time by which every request is late from now on.
    fn set_delay(&self, delay: Duration);
    /// Overwrites random places of the drive, which was opened at `path`.
    async fn corrupt(&self, path: &Path, wanted: &DiskCorrupt) -> Result<DiskCorrupted>;
}

/// A drive and its configured path.
pub type Drive = (PathBuf, Arc<dyn Faulty>);

/// Faults of a drive that outlive a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pulled: bool,
    #[serde(default, skip_serializing_if = "is_zero")]
    slow_us: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Faults by path.
type Listed = BTreeMap<String, Fault>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    disks: Listed,
}

/// The file, and the one it is replaced by, in a state directory.
pub fn files(state_dir: &Path) -> [PathBuf; 2] {
    [FILE_NAME.into(), format!("{FILE_NAME}.new")].map(|name: String| state_dir.join(name))
}

fn read(file: &Path) -> Result<Listed> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Listed::default()),
        Err(e) => return Err(Error::io(format!("reading {}: {e}", file.display()))),
    };
    let bad = |why: &dyn std::fmt::Display| {
        let file = file.display();
        Error::invalid(format!(
            "{file} does not list the faults of a laboratory's disks: {why}; remove it, and all disks work again"
        ))
    };
    let File { version, disks } = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
    if version != VERSION {
        return Err(bad(&format!("its version {version} is unknown")));
    }
    match disks.iter().find(|(_, fault)| Duration::from_micros(fault.slow_us) > DELAY_MAX) {
        Some((disk, fault)) => Err(bad(&format!("{disk} cannot be slow by {} us", fault.slow_us))),
        None => Ok(disks),
    }
}

fn shown(listed: &Listed) -> Vec<DiskFault> {
    let shown = |(disk, f): (&String, &Fault)| DiskFault { disk: disk.clone(), pulled: f.pulled, slow_us: f.slow_us };
    listed.iter().map(shown).collect()
}

/// The faults that are on, as the file in `state_dir` says.
pub fn load(state_dir: &Path) -> Result<Vec<DiskFault>> {
    read(&state_dir.join(FILE_NAME)).map(|listed| shown(&listed))
}

/// The drives of a laboratory, by configured path and in configured order.
pub struct Faults {
    state_dir: PathBuf,
    drives: Mutex<Vec<Drive>>,
    on: Mutex<Listed>,
}

impl Faults {
    /// Drives whose faults are kept in `state_dir`; those that had faults before have them at once.
    pub fn new(state_dir: &Path, drives: Vec<Drive>) -> Result<Self> {
        let [file, _] = files(state_dir);
        // One that is not here now may be here again later.
        let on = read(&file)?;
        for (path, drive) in &drives {
            if let Some(fault) = on.get(&path.display().to_string()) {
                let Fault { pulled, slow_us } = *fault;
                tracing::warn!(disk = %path.display(), pulled, slow_us, "the laboratory keeps the faults of this disk");
                drive.set_pulled(pulled);
                drive.set_delay(Duration::from_micros(slow_us));
            }
        }
        Ok(Self { state_dir: state_dir.to_owned(), drives: Mutex::new(drives), on: Mutex::new(on) })
    }

    /// Takes in a drive that was added.
    pub fn add(&self, drive: Drive) {
        self.drives.lock().push(drive);
    }

    /// Lets go of a drive that is not of the pool any more, and of its faults.
    pub fn forget(&self, path: &Path) {
        self.drives.lock().retain(|(other, _)| other != path);
        let mut on = self.on.lock();
        if on.remove(&path.display().to_string()).is_some()
            && let Err(e) = self.keep(&on)
        {
            tracing::warn!(error = %e, "a fault that is over is still on file");
        }
    }

    /// The faults that are on.
    pub fn list(&self) -> Vec<DiskFault> {
        shown(&self.on.lock())
    }

    /// Pulls a drive or puts it back. Doing so twice changes nothing.
    ///
    /// `disk` is an index or a name as the pool lists them in `known`, or a file name with or without its extension.
    pub fn set_pulled(&self, disk: &str, known: &[DiskInfo], pulled: bool) -> Result<DiskFault> {
        self.change(disk, known, |fault| fault.pulled = pulled)
    }

    /// Makes a drive slow, or as fast as it is with no delay. `disk` as for [`Self::set_pulled`].
    pub fn set_delay(&self, disk: &str, known: &[DiskInfo], delay: Duration) -> Result<DiskFault> {
        if delay > DELAY_MAX {
            return Err(Error::invalid(format!("a disk is slow by at most {} s", DELAY_MAX.as_secs())));
        }
        self.change(disk, known, |fault| fault.slow_us = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX))
    }

    /// Overwrites random places of a drive with random bytes. `disk` as for [`Self::set_pulled`].
    pub async fn corrupt(&self, disk: &str, known: &[DiskInfo], wanted: &DiskCorrupt) -> Result<DiskCorrupted> {
        let (path, drive) = self.find(disk, known)?;
        drive.corrupt(&path, wanted).await
    }

    fn change(&self, disk: &str, known: &[DiskInfo], change: impl FnOnce(&mut Fault)) -> Result<DiskFault> {
        let (path, drive) = self.find(disk, known)?;
        let name = path.display().to_string();
        let mut on = self.on.lock();
        let mut next = on.clone();
        let mut fault = next.remove(&name).unwrap_or_default();
        change(&mut fault);
        if fault != Fault::default() {
            next.insert(name.clone(), fault);
        }
        self.keep(&next)?;
        *on = next;
        let Fault { pulled, slow_us } = fault;
        drive.set_pulled(pulled);
        drive.set_delay(Duration::from_micros(slow_us));
        tracing::warn!(disk = name, pulled, slow_us, "laboratory fault");
        Ok(DiskFault { disk: name, pulled, slow_us })
    }

    /// Replaces the file as a whole.
    fn keep(&self, listed: &Listed) -> Result<()> {
        let [path, fresh] = files(&self.state_dir);
        let failed = |e: &dyn std::fmt::Display| Error::io(format!("writing {}: {e}", path.display()));
        let file = File { version: VERSION, disks: listed.clone() };
        let text = serde_json::to_vec_pretty(&file).map_err(|e| failed(&e))?;
        std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path)).map_err(|e| failed(&e))
    }

    fn find(&self, disk: &str, known: &[DiskInfo]) -> Result<Drive> {
        let drives = self.drives.lock();
        let wanted = match disk.parse::<u16>() {
            // A drive that was missing at the start has no path; the laboratory made its drives in configured order.
            Ok(index) => match known.iter().find(|d| d.id == index) {
                Some(info) if !info.path.is_empty() => Some(PathBuf::from(&info.path)),
                _ => drives.get(usize::from(index)).map(|(path, _)| path.clone()),
            },
            Err(_) => Some(PathBuf::from(disk)),
        };
        let named = |path: &Path, wanted: &Path| {
            path.file_name() == Some(wanted.as_os_str()) || path.file_stem() == Some(wanted.as_os_str())
        };
        let exact = drives.iter().find(|(path, _)| wanted.as_ref() == Some(path));
        let fitting: Vec<&Drive> = match exact {
            Some(drive) => vec![drive],
            None => drives.iter().filter(|(path, _)| wanted.as_ref().is_some_and(|w| named(path, w))).collect(),
        };
        match fitting[..] {
            [drive] => Ok(drive.clone()),
            [] => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no disk '{disk}'; `ashlar disk list` shows their index and path"),
            )),
            _ => {
                Err(Error::invalid(format!("'{disk}' fits several disks: use the index that `ashlar disk list` shows")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pulled, and microseconds of delay.
    #[derive(Default)]
    struct Double(Mutex<(bool, u64)>);

    #[async_trait]
    impl Faulty for Double {
        fn set_pulled(&self, pulled: bool) {
            self.0.lock().0 = pulled;
        }

        fn set_delay(&self, delay: Duration) {
            self.0.lock().1 = delay.as_micros() as u64;
        }

        async fn corrupt(&self, _: &Path, _: &DiskCorrupt) -> Result<DiskCorrupted> {
            Err(Error::io("out of order"))
        }
    }

    fn doubles(count: usize) -> Vec<Arc<Double>> {
        (0..count).map(|_| Arc::default()).collect()
    }

    fn drives(doubles: &[Arc<Double>]) -> Vec<Drive> {
        let drive = |(i, d): (usize, &Arc<Double>)| {
            (PathBuf::from(format!("/lab/disks/disk{i}.img")), d.clone() as Arc<dyn Faulty>)
        };
        doubles.iter().enumerate().map(drive).collect()
    }

    fn state(doubles: &[Arc<Double>]) -> Vec<(bool, u64)> {
        doubles.iter().map(|d| *d.0.lock()).collect()
    }

    fn info(id: u16, path: &str) -> DiskInfo {
        DiskInfo { id, path: path.into(), ..DiskInfo::default() }
    }

    #[test]
    fn drives_are_found_and_faults_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let all = doubles(3);
        let faults = Faults::new(dir.path(), drives(&all)).unwrap();
        // The pool's indices need not follow the configuration's order.
        let known = [info(0, "/lab/disks/disk2.img"), info(1, "")];
        faults.set_pulled("0", &known, true).unwrap();
        assert_eq!(state(&all), [(false, 0), (false, 0), (true, 0)]);
        faults.set_pulled("1", &known, true).unwrap();
        faults.set_pulled("1", &known, true).unwrap();
        faults.set_delay("1", &known, Duration::from_millis(20)).unwrap();
        assert_eq!(state(&all), [(false, 0), (true, 20_000), (true, 0)]);
        faults.set_pulled("disk2", &known, false).unwrap();
        faults.set_pulled("disk0.img", &known, true).unwrap();
        assert_eq!(state(&all), [(true, 0), (true, 20_000), (false, 0)]);
        for wrong in ["7", "disk", "", "/lab/disks", "-1"] {
            assert_eq!(faults.set_pulled(wrong, &known, true).unwrap_err().kind(), ErrorKind::NotFound, "{wrong}");
        }
        assert!(faults.set_delay("0", &known, DELAY_MAX + Duration::from_micros(1)).is_err());
        let listed = faults.list();
        let row = |disk: &str, pulled, slow_us| DiskFault { disk: disk.into(), pulled, slow_us };
        let expected = [row("/lab/disks/disk0.img", true, 0), row("/lab/disks/disk1.img", true, 20_000)];
        assert_eq!(listed, expected);
        assert_eq!(load(dir.path()).unwrap(), expected);

        // The last one is not there for a while: it keeps its faults.
        let all = doubles(3);
        let faults = Faults::new(dir.path(), drives(&all[..1])).unwrap();
        assert_eq!(state(&all), [(true, 0), (false, 0), (false, 0)]);
        faults.set_pulled("/lab/disks/disk0.img", &known, false).unwrap();
        let faults = Faults::new(dir.path(), drives(&all)).unwrap();
        assert_eq!(state(&all), [(false, 0), (true, 20_000), (false, 0)]);
        faults.set_delay("disk1", &known, Duration::ZERO).unwrap();
        faults.set_delay("disk2", &known, Duration::from_micros(7)).unwrap();
        // One that joins anew has none.
        faults.forget(Path::new("/lab/disks/disk1.img"));
        assert_eq!(load(dir.path()).unwrap(), [row("/lab/disks/disk2.img", false, 7)]);
        assert_eq!(faults.set_pulled("disk1", &known, false).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_name_that_fits_several_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let all = doubles(2);
        let mut drives = drives(&all);
        drives[1].0 = "/elsewhere/disk0.img".into();
        let faults = Faults::new(dir.path(), drives).unwrap();
        let refused = faults.set_pulled("disk0", &[], true).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument, "{refused}");
        faults.set_pulled("/elsewhere/disk0.img", &[], true).unwrap();
        assert_eq!(state(&all), [(false, 0), (true, 0)]);
    }

    #[test]
    fn a_file_that_is_not_understood_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        for (text, why) in [
            ("", "EOF"),
            ("/lab/disks/disk1.img\n", "expected value"),
            ("{\"version\": 2, \"disks\": {}}", "version 2 is unknown"),
            ("{\"version\": 1}", "missing field `disks`"),
            ("{\"version\": 1, \"disks\": {\"/d\": {\"lost\": true}}}", "unknown field `lost`"),
            ("{\"version\": 1, \"disks\": {\"/d\": {\"slow_us\": -1}}}", "invalid value"),
            ("{\"version\": 1, \"disks\": {\"/d\": {\"slow_us\": 60000001}}}", "cannot be slow by 60000001 us"),
        ] {
            std::fs::write(&file, text).unwrap();
            let error = Faults::new(dir.path(), vec![]).err().unwrap_or_else(|| panic!("{text:?} was taken"));
            let told = error.to_string();
            assert!(told.contains(FILE_NAME) && told.contains(why) && told.contains("remove it"), "{text:?}: {told}");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
    }
}
