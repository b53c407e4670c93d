//! The file of events: one JSON object a line, appended; the full file becomes the older one, whose predecessor is dropped.
//!
//! ```text
//! events.jsonl      the newest events, at most FILE_MAX bytes
//! events.1.jsonl    those before them
//! ```
//!
//! A line that a crash or a full file system cut short is no event: it is skipped when the file is read, and the next one begins on a line of
//! its own.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::wire::events::Event;

/// Names of the files in the state directory, the newer first.
const NAMES: [&str; 2] = ["events.jsonl", "events.1.jsonl"];
/// Bytes of a file, about, before the next one is begun.
pub const FILE_MAX: u64 = 1 << 20;

/// The files in a state directory, the newer first.
pub fn files(state_dir: &Path) -> [PathBuf; 2] {
    NAMES.map(|name| state_dir.join(name))
}

/// What was kept, oldest first, and how many lines could not be read.
pub fn load(state_dir: &Path) -> (Vec<Event>, usize) {
    let (mut events, mut bad) = (BTreeMap::new(), 0);
    for path in files(state_dir).iter().rev() {
        let text = match tail(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => {
                tracing::warn!(file = %path.display(), error = %e, "cannot read events of the past");
                continue;
            }
        };
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Event>(line) {
                Ok(event) => drop(events.insert(event.seq, event)),
                Err(_) => bad += 1,
            }
        }
    }
    (events.into_values().collect(), bad)
}

/// The end of a file: all of one that we wrote.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let most = FILE_MAX * 2;
    let from = file.metadata()?.len().saturating_sub(most);
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(text)
}

/// The file that events are appended to.
pub struct EventFile {
    paths: [PathBuf; 2],
    max: u64,
    open: Option<Open>,
}

struct Open {
    file: File,
    len: u64,
    /// Its last line has no end.
    torn: bool,
}

impl EventFile {
    /// Of a state directory; nothing is opened yet.
    pub fn new(state_dir: &Path, max: u64) -> Self {
        Self { paths: files(state_dir), max, open: None }
    }

    /// Where events go.
    pub fn path(&self) -> &Path {
        &self.paths[0]
    }

    /// Appends whole lines, all or, on an error, as if none: part of them may be there, and is written again.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let appended = self.try_append(lines);
        if appended.is_err()
            && let Some(Open { file, len, .. }) = self.open.take()
        {
            // What went wrong may be over when it is opened again; whatever is left of a line is found then.
            let _ = file.set_len(len);
        }
        appended
    }

    fn try_append(&mut self, lines: &[u8]) -> io::Result<()> {
        let add = lines.len() as u64;
        if self.opened()?.len > 0 && self.opened()?.len + add > self.max {
            self.open = None;
            std::fs::rename(&self.paths[0], &self.paths[1])?;
        }
        let open = self.opened()?;
        let mut text = Vec::with_capacity(lines.len() + 1);
        text.extend(open.torn.then_some(b'\n'));
        text.extend_from_slice(lines);
        (&open.file).write_all(&text)?;
        open.file.sync_data()?;
        open.len += text.len() as u64;
        open.torn = false;
        Ok(())
    }

    fn opened(&mut self) -> io::Result<&mut Open> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                let mut options = OpenOptions::new();
                let file = options.read(true).append(true).create(true).mode(0o600).open(&self.paths[0])?;
                let len = file.metadata()?.len();
                let mut last = [b'\n'];
                if len > 0 {
                    file.read_exact_at(&mut last, len - 1)?;
                }
                Open { file, len, torn: last != [b'\n'] }
            }
        };
        Ok(self.open.insert(open))
    }
}

#[cfg(test)]
mod tests {
    use blockdev::report::Severity;

    use super::*;

    fn event(seq: u64) -> Event {
        Event { seq, ..Event::new(Severity::Info, "test", "pool", format!("event {seq}")) }
    }

    fn lines(seqs: impl IntoIterator<Item = u64>) -> Vec<u8> {
        let line = |seq| [serde_json::to_vec(&event(seq)).unwrap(), b"\n".to_vec()].concat();
        seqs.into_iter().flat_map(line).collect()
    }

    fn seqs(dir: &Path) -> Vec<u64> {
        load(dir).0.iter().map(|e| e.seq).collect()
    }

    #[test]
    fn events_are_there_again_and_a_torn_line_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), (vec![], 0));
        let mut file = EventFile::new(dir.path(), FILE_MAX);
        file.append(&lines(1..=3)).unwrap();
        assert_eq!(load(dir.path()), ((1..=3).map(event).collect(), 0));
        // A crash in the middle of a line, wherever it is cut.
        let whole = std::fs::read(file.path()).unwrap();
        let line = lines([4]);
        for cut in 1..line.len() - 1 {
            std::fs::write(file.path(), [&whole, &line[..cut]].concat()).unwrap();
            assert_eq!(load(dir.path()).1, 1, "{cut}");
            let mut again = EventFile::new(dir.path(), FILE_MAX);
            again.append(&lines([4, 5])).unwrap();
            assert_eq!(seqs(dir.path()), [1, 2, 3, 4, 5], "{cut}");
        }
        // Cut right before its end it is whole.
        std::fs::write(file.path(), [&whole, &line[..line.len() - 1]].concat()).unwrap();
        EventFile::new(dir.path(), FILE_MAX).append(&lines([5])).unwrap();
        assert_eq!(load(dir.path()), ((1..=5).map(event).collect(), 0));
    }

    #[test]
    fn files_are_bounded_and_the_newest_events_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::new(dir.path(), 4096);
        for seq in 1..=500 {
            file.append(&lines([seq])).unwrap();
            let sizes = files(dir.path()).map(|path| std::fs::metadata(path).map_or(0, |m| m.len()));
            assert!(sizes.iter().all(|size| *size <= 4096), "{sizes:?}");
        }
        let kept = seqs(dir.path());
        let first = kept[0];
        assert!(kept.len() > 30 && kept == (first..=500).collect::<Vec<_>>(), "{kept:?}");
        // After a restart it goes on where it was.
        EventFile::new(dir.path(), 4096).append(&lines([501])).unwrap();
        assert_eq!(seqs(dir.path()).last(), Some(&501));
        // More at once than a file holds: still all of it, once.
        EventFile::new(dir.path(), 4096).append(&lines(502..=600)).unwrap();
        assert_eq!(seqs(dir.path()).len(), load(dir.path()).0.len());
        assert_eq!(seqs(dir.path()).last(), Some(&600));
    }

    #[test]
    fn what_could_not_be_written_can_be_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::new(dir.path(), FILE_MAX);
        file.append(&lines([1])).unwrap();
        let (path, aside) = (file.path().to_owned(), dir.path().join("aside"));
        // A device that is always full stands in for the file.
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let mut file = EventFile::new(dir.path(), FILE_MAX);
        for _ in 0..2 {
            let e = file.append(&lines([2])).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::StorageFull, "{e}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        file.append(&lines([2])).unwrap();
        assert_eq!(load(dir.path()), ((1..=2).map(event).collect(), 0));
    }

    #[test]
    fn noise_is_no_event() {
        let dir = tempfile::tempdir().unwrap();
        let [new, old] = files(dir.path());
        std::fs::write(&new, b"\xff\0{}\n[1]\n{\"seq\":1}\n\n\n").unwrap();
        std::fs::write(&old, lines([7])).unwrap();
        let (events, bad) = load(dir.path());
        assert_eq!((events, bad), (vec![event(7)], 3));
        std::fs::write(&new, vec![b'x'; 5 << 20]).unwrap();
        assert_eq!(seqs(dir.path()), [7]);
    }
}
