//! `mount_memory DIRECTORY [GIB]`: a file system on volumes in memory, mounted until a line comes in: what file system and transport cost by themselves.

use std::path::PathBuf;
use std::sync::Arc;

use blockdev::frontend::memory::MemoryDevice;
use nas::fs::{FileSystem, Options};
use nas::fuse::{Mount, MountOptions};

fn main() {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().expect("a directory"));
    let gib: u64 = args.next().map_or(4, |gib| gib.parse().expect("a number"));
    let device = |size| Arc::new(MemoryDevice::new(size));
    let pair = nas::format(device(8 << 30), device(gib << 30), [1; 16]).expect("made");
    let fs = FileSystem::open(pair, Options::default()).expect("opened");
    let mount = Mount::new(Arc::clone(&fs), &path, MountOptions::default()).expect("mounted");
    println!("mounted at {}", mount.path().display());
    let _ = std::io::stdin().read_line(&mut String::new());
    mount.unmount().expect("unmounted");
    let report = fs.check().expect("checked");
    println!("{report:?}");
    fs.close().expect("closed");
}
