use clap::Parser;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("ashlar").chain(line.split_whitespace()))
}

#[test]
fn the_command_tree_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn what_scripts_rely_on_parses() {
    for line in [
        "lab up --dir DIR",
        "lab up --dir DIR --disks 6 --disk-size 2G --tolerance single",
        "lab up --dir DIR --tolerance double --memory 512M --compression lz4 --name x",
        "--dir DIR pool status",
        "--dir DIR pool check",
        "--dir DIR pool stats -o json",
        "--dir DIR volume create NAME --size 10G",
        "--dir DIR volume list -o json",
        "--dir DIR volume ls",
        "--dir DIR volume show NAME",
        "--dir DIR volume resize NAME --size 20G",
        "--dir DIR volume create NAME --size 20G --reserve all",
        "--dir DIR volume reserve NAME 10G",
        "--dir DIR volume reserve NAME none",
        "--dir DIR volume resize NAME --size +1G --shrink",
        "--dir DIR volume delete NAME",
        "--dir DIR volume delete NAME --with-snapshots",
        "--dir DIR volume clone NAME@monday test",
        "--dir DIR volume restore NAME@monday",
        "--dir DIR volume restore NAME@monday --volume test --keep before -o json",
        "--dir DIR volume refresh test --from NAME --no-keep",
        "--dir DIR volume diff NAME@monday NAME -o json",
        "--dir DIR snapshot create a@1 b@1",
        "--dir DIR snapshot list NAME -o json",
        "--dir DIR snapshot show NAME@monday",
        "--dir DIR snapshot delete NAME@monday NAME@friday",
        "--dir DIR volume attach NAME --via nbd",
        "--dir DIR volume attach NAME --via fuse --loop",
        "--dir DIR volume attach NAME --via ublk",
        "--dir DIR volume detach NAME",
        "--dir DIR disk list",
        "estimate /dev/sdb",
        "estimate a.img DIR --precision full --memory 64M --compression lz4 --drives 12 -o json",
        "estimate DIR --sample 2.5 --seed 7 --cross-file-systems",
        "--socket /s job list",
        "lab stop --dir DIR",
        "lab start --dir DIR",
        "lab kill --dir DIR",
        "lab status --dir DIR -o json",
        "lab disk-pull --dir DIR 2",
        "lab disk-fail --dir DIR 2",
        "lab disk-restore --dir DIR 2",
        "lab disk-push --dir DIR disk2",
        "lab disk-slow --dir DIR 2 --delay 20ms",
        "lab disk-slow --dir DIR 2 --delay 0",
        "lab disk-corrupt --dir DIR 2",
        "lab disk-corrupt --dir DIR 2 --count 5 --bytes 4K --seed 7 --anywhere -o json",
        "--dir DIR disk show 2 -o json",
        "--dir DIR disk keep 2",
        "--dir DIR disk rescan -o json",
        "--dir DIR disk replace 2 /dev/sdx",
        "--dir DIR disk replace disk2 more.img --force --no-wait",
        "--dir DIR alert list -o json",
        "--dir DIR event list",
        "--dir DIR event list --since 2h --severity warning --object disk/3 --kind disk --limit 5 -o json",
        "--dir DIR event list --follow",
        "--dir DIR event show 17",
        "lab down --dir DIR",
        "pool create NAME --disk /dev/a /dev/b --tolerance none --force",
        "pool create NAME --disk /dev/a --disk /dev/b --config f.toml",
        "serve --config FILE",
        "--dir DIR upgrade",
        "upgrade --binary next/ashlar --force -o json",
        "serve --dir DIR --memory 1G --log debug",
        "config show --config FILE",
        "completions bash",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn what_is_wrong_is_refused_as_usage() {
    for line in [
        "",
        "volume",
        "volume create",
        "volume create NAME",
        "volume create ../x --size 1G",
        "volume create NAME --size 1",
        "volume clone NAME@monday a@b",
        "volume restore NAME@monday --keep x --no-keep",
        "volume refresh test",
        "snapshot create",
        "volume create NAME --size 300T",
        "volume create NAME --size 10GB",
        "volume attach NAME",
        "volume attach NAME --via scsi",
        "lab up --dir DIR --tolerance triple",
        "lab up --dir DIR --disks many",
        "lab disk-slow --dir DIR 2",
        "lab disk-slow --dir DIR 2 --delay 20",
        "lab disk-slow --dir DIR 2 --delay=-1ms",
        "lab disk-corrupt --dir DIR",
        "lab disk-corrupt --dir DIR 2 --count many",
        "lab disk-corrupt --dir DIR 2 --bytes 4KB",
        "disk show",
        "event list --since 2",
        "event list --since tomorrow",
        "event list --severity bad",
        "event list --limit 0",
        "event list --limit 1001",
        "event show x",
        "disk replace 2",
        "pool create NAME",
        "pool create -x --disk a",
        "pool status -o xml",
        "job show x",
        "completions tcl",
    ] {
        let error = parse(line).err().unwrap_or_else(|| panic!("{line:?} was accepted"));
        assert_eq!(error.exit_code(), Exit::Usage as i32, "{line}");
    }
}

#[test]
fn the_daemon_is_chosen() {
    let global = |line: &str| parse(line).unwrap().global;
    let client = |line: &str| format!("{:?}", global(line).client());
    assert!(client("--dir /d pool status").contains("/d/run/api.sock"));
    assert!(client("--dir /d --socket /s pool status").contains("\"/s\""));
    assert_eq!(global("--dir /d pool status").need_dir().unwrap(), std::path::Path::new("/d"));
    assert_eq!(global("pool status -o json").output, Format::Json);
}

#[test]
fn help_teaches() {
    let mut command = Cli::command();
    let text = command.render_long_help().to_string();
    for expected in ["ashlar lab up", "Exit codes:", "ASHLAR_DIR", "volume attach"] {
        assert!(text.contains(expected), "{expected:?} is not in the help");
    }
    fn walk(command: &mut clap::Command, path: String) {
        for sub in command.get_subcommands_mut() {
            let path = format!("{path} {}", sub.get_name());
            assert!(sub.is_hide_set() || sub.get_about().is_some(), "{path} has no description");
            walk(sub, path);
        }
    }
    walk(&mut command, "ashlar".into());
}

#[test]
fn mistakes_are_told_as_json_to_who_asks_for_it() {
    let asks = |line: &str| asks_for_json(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>());
    for line in
        ["ashlar pool -o json", "ashlar --output json x", "ashlar --output=json", "ashlar -ojson x", "ashlar -o=json"]
    {
        assert!(asks(line), "{line}");
    }
    for line in ["ashlar pool", "ashlar -o table json", "ashlar x -- -o json", "ashlar json", "ashlar x -o"] {
        assert!(!asks(line), "{line}");
    }
    let message = message_of(&parse("volume create NAME --syze 1G").unwrap_err());
    assert!(message.starts_with("unexpected argument '--syze'") && message.contains("--size"), "{message}");
    assert!(!message.contains('\u{1b}'), "{message:?}");
}
