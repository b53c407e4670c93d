//! `files DIRECTORY [PROCESSES [FILES]]`: how many files a second can be made, looked at and removed in a file system, as mdtest counts them: so many
//! threads, each with so many empty files in a directory of its own.

use std::fs;
use std::path::Path;
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().expect("a directory");
    let mut number = |default: u64| args.next().map_or(default, |n| n.parse().expect("a number"));
    let (threads, files) = (number(2), number(20_000));
    let top = Path::new(&dir).join(format!("files-{}", std::process::id()));
    fs::create_dir(&top).expect("a directory");
    for thread in 0..threads {
        fs::create_dir(top.join(thread.to_string())).expect("a directory");
    }
    let all = |what: &str, one: fn(&Path)| {
        let began = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let dir = top.join(thread.to_string());
                scope.spawn(move || (0..files).for_each(|n| one(&dir.join(format!("file-{n}")))));
            }
        });
        println!("{what} {:.0}", (threads * files) as f64 / began.elapsed().as_secs_f64());
    };
    all("create", |path| drop(fs::File::create_new(path).expect("made")));
    all("stat", |path| assert!(fs::metadata(path).expect("there").is_file()));
    all("remove", |path| fs::remove_file(path).expect("removed"));
    fs::remove_dir_all(&top).expect("removed");
}
