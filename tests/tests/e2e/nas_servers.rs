//! NAS servers and their NFS exports, used by clients of NFS that need no kernel. `platform::nfs` does the same with the kernel's.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ashlar_tests::Lab;
use ashlar_tests::process::{signal, wait_until};
use ashlar_tests::require::{Need, met};

use crate::tools::{SMALL, alerts, expect_refused, expect_sound, shell};

const SERVERS: &[Need] = &[
    Need::Root,
    Need::Fuse,
    Need::Tool("ganesha.nfsd"),
    Need::Tool("rpcbind"),
    Need::Tool("rpc.statd"),
    Need::Tool("ip"),
    Need::Tool("nfs-cp"),
];

/// An address that no other test has.
fn address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("10.{}.{}.{n}", 128 + pid / 250 % 100, pid % 250)
}

/// The server listens within a time in which it does on slow machines, too.
#[track_caller]
fn expect_running(lab: &Lab, server: &str) {
    let running = || lab.json(&["nas", "server", "show", server])["state"] == "running";
    assert!(wait_until(Duration::from_secs(60), running), "{}", lab.json(&["nas", "server", "show", server]));
}

#[track_caller]
fn service(lab: &Lab, name: &str) -> serde_json::Value {
    let server = lab.json(&["nas", "server", "show", "files"]);
    let all = server["services"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|s| s["name"] == name).unwrap_or_else(|| panic!("no service {name}: {server}"))
}

/// A script with `url VERSION PATH`, for the address it is given first.
fn nfs(script: &str, address: &str, more: &[&str]) -> ashlar_tests::process::Output {
    let url = "url() { echo \"nfs://$address$2?version=$1\"; }; no() { if \"$@\" >/dev/null 2>&1; then echo \"it could: $*\" >&2; exit 1; fi; };";
    // After a start of the server clients are told to wait for a while, and these do not wait. What is told so may have been done by half: `calm PATH`
    // comes back when new files can be written there.
    let again = "again() { for i in $(seq 40); do if \"$@\"; then return 0; fi; sleep 0.5; done; echo \"it never could: $*\" >&2; exit 1; }; \
        calm() { for i in $(seq 60); do if nfs-cp /etc/hostname \"$(url 3 $1/calm$i)\" >/dev/null 2>&1; then return 0; fi; sleep 0.5; done; echo 'it never was calm' >&2; exit 1; };";
    shell(&format!("address=$1; shift; {url} {again} {script}"), &[&[address], more].concat())
}

#[test]
fn a_nas_server_from_its_making_to_its_end() {
    if !met("a_nas_server_from_its_making_to_its_end", SERVERS) {
        return;
    }
    let lab = Lab::up(SMALL);
    let at = address();
    lab.ashlar(&["nas", "server", "create", "files", "--address", &at]).expect_ok();
    lab.ashlar(&["nas", "fs", "create", "home", "--size", "1G", "--server", "files"]).expect_ok();
    let home = lab.json(&["nas", "fs", "show", "home"])["path"].as_str().expect("a path").to_owned();
    shell("mkdir -m 777 \"$1/team\"; echo local >\"$1/team/hello\"; chmod 777 \"$1\"", &[&home]).expect_ok();
    lab.ashlar(&["nas", "export", "create", "files:/home", "--fs", "home", "--access", "rw"]).expect_ok();
    lab.ashlar(&[
        "nas",
        "export",
        "create",
        "files:/only/read",
        "--fs",
        "home",
        "--directory",
        "team",
        "--access",
        "ro",
    ])
    .expect_ok();
    expect_running(&lab, "files");

    // By both versions, and what one writes the other reads, as does whoever is on this machine.
    let both = "for v in 3 4; do [ \"$(again nfs-cat \"$(url $v /home/team/hello)\")\" = local ]; done; \
        head -c 3000000 /dev/urandom >\"$1.new\"; calm /home; nfs-cp \"$1.new\" \"$(url 3 /home/big)\"; cmp \"$1.new\" \"$2/big\"; \
        nfs-cat \"$(url 4 /home/big)\" | cmp - \"$1.new\"; [ \"$(stat -c %u \"$2/big\")\" = 65534 ]";
    let scratch = lab.dir().join("scratch").display().to_string();
    nfs(both, &at, &[&scratch, &home]).expect_ok();
    // What is only to be read is only read, and nothing else is reached by it.
    let only = "[ \"$(nfs-cat \"$(url 3 /only/read/hello)\")\" = local ]; no nfs-cp /etc/hostname \"$(url 3 /only/read/new)\"; \
        no nfs-ls \"$(url 3 /only)\"; no nfs-cat \"$(url 3 /only/read/../big)\"";
    nfs(only, &at, &[]).expect_ok();
    lab.ashlar(&["nas", "export", "set", "files:/only/read", "--access", "none"]).expect_ok();
    nfs("sleep 1; no nfs-cat \"$(url 3 /only/read/hello)\"; nfs-cat \"$(url 3 /home/team/hello)\"", &at, &[])
        .expect_ok();
    lab.ashlar(&["nas", "export", "set", "files:/only/read", "--ro", "169.254.0.1,10.0.0.0/8"]).expect_ok();
    nfs("again nfs-cat \"$(url 3 /only/read/hello)\"", &at, &[]).expect_ok();

    // A file system that is made while the server runs is exported, too.
    lab.ashlar(&["nas", "fs", "create", "late", "--size", "256M"]).expect_ok();
    let late = ["nas", "export", "create", "files:/late", "--fs", "late", "--access", "root"];
    expect_refused(lab.ashlar(&late), 4, "does not belong to NAS server 'files'");
    lab.ashlar(&["nas", "fs", "assign", "late", "--server", "files"]).expect_ok();
    lab.ashlar(&late).expect_ok();
    nfs("calm /late; nfs-cp /etc/passwd \"$(url 3 /late/passwd)\"; nfs-cat \"$(url 3 /late/passwd)\" | cmp - /etc/passwd", &at, &[])
        .expect_ok();
    assert_eq!(lab.json(&["nas", "export", "list"]).as_array().map(Vec::len), Some(3));

    // Its protocol server is killed: it is started again.
    expect_running(&lab, "files");
    let (pid, restarts) = (service(&lab, "nfs")["pid"].clone(), service(&lab, "nfs")["restarts"].clone());
    signal(&pid.to_string(), "KILL");
    let again = || service(&lab, "nfs")["restarts"].as_u64() > restarts.as_u64();
    assert!(wait_until(Duration::from_secs(20), again), "{}", service(&lab, "nfs"));
    expect_running(&lab, "files");
    nfs("again nfs-cat \"$(url 3 /home/team/hello)\"", &at, &[]).expect_ok();

    // The daemon is killed: nothing answers for it, and all of it comes again.
    lab.lab("kill", &[]).expect_ok();
    nfs("no timeout 5 nfs-cat \"$(url 3 /home/team/hello)\"", &at, &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    expect_running(&lab, "files");
    nfs("again nfs-cat \"$(url 3 /late/passwd)\" | cmp - /etc/passwd", &at, &[]).expect_ok();

    // A restored file system is served again at once.
    lab.ashlar(&["nas", "snapshot", "create", "home@before"]).expect_ok();
    shell("rm \"$1/team/hello\"", &[&home]).expect_ok();
    lab.ashlar(&["nas", "fs", "restore", "home@before"]).expect_ok();
    expect_running(&lab, "files");
    nfs("[ \"$(again nfs-cat \"$(url 3 /home/team/hello)\")\" = local ]", &at, &[]).expect_ok();
    assert!(alerts(&lab).is_empty(), "{:?}", alerts(&lab));

    // An orderly restart of the daemon.
    lab.lab("stop", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
    expect_running(&lab, "files");
    lab.ashlar(&["nas", "server", "restart", "files"]).expect_ok();
    expect_running(&lab, "files");

    // Away with it, in the only order that is allowed.
    let namespace =
        lab.json(&["nas", "server", "show", "files"])["namespace"].as_str().expect("a namespace").to_owned();
    shell("[ -e \"/run/netns/$1\" ]", &[&namespace]).expect_ok();
    expect_refused(lab.ashlar(&["nas", "server", "delete", "files"]), 4, "delete its exports first");
    expect_refused(lab.ashlar(&["nas", "fs", "delete", "home", "--snapshots", "--force"]), 4, "is exported");
    for export in ["files:/home", "files:/only/read", "files:/late"] {
        lab.ashlar(&["nas", "export", "delete", export]).expect_ok();
    }
    expect_refused(lab.ashlar(&["nas", "server", "delete", "files"]), 4, "belongs to NAS server 'files'");
    lab.ashlar(&["nas", "fs", "delete", "home", "--snapshots", "--force"]).expect_ok();
    lab.ashlar(&["nas", "fs", "assign", "late", "--none"]).expect_ok();
    lab.ashlar(&["nas", "server", "delete", "files"]).expect_ok();
    shell("[ ! -e \"/run/netns/$1\" ]", &[&namespace]).expect_ok();
    assert_eq!(lab.json(&["nas", "server", "list"]), serde_json::json!([]));
    assert_eq!(lab.json(&["nas", "fs", "list"]).as_array().map(Vec::len), Some(1));
    expect_sound(&lab);
}

#[test]
fn what_a_server_cannot_be_is_refused() {
    if !met("what_a_server_cannot_be_is_refused", SERVERS) {
        return;
    }
    let lab = Lab::up(SMALL);
    let at = address();
    lab.ashlar(&["nas", "server", "create", "files", "--address", &at]).expect_ok();
    lab.ashlar(&["nas", "fs", "create", "home", "--size", "256M", "--server", "files"]).expect_ok();
    lab.ashlar(&["nas", "export", "create", "files:/home", "--fs", "home"]).expect_ok();
    let home = lab.json(&["nas", "fs", "show", "home"])["path"].as_str().expect("a path").to_owned();
    shell("ln -s /etc \"$1/out\"; touch \"$1/file\"; mkdir \"$1/a\"", &[&home]).expect_ok();
    // One that has the name a server's own would have: it is not touched.
    lab.ashlar(&["nas", "fs", "create", "theirs.nas", "--size", "256M"]).expect_ok();
    let other = address();
    let create = |name: &'static str, more: &[&'static str]| [&["nas", "server", "create", name][..], more].concat();
    let export = |name: &'static str, more: &[&'static str]| [&["nas", "export", "create", name][..], more].concat();
    let refused: &[(Vec<&str>, i32, &str)] = &[
        (create("files", &["--address", "10.1.2.3"]), 4, "exists already"),
        (vec!["nas", "server", "create", "other", "--address", &at], 4, "NAS server 'files' has address"),
        (create("other", &["--address", "10.1.2"]), 2, "is no address"),
        (create("other", &["--address", "10.1.2.3/40"]), 2, "is no address"),
        (create("other", &["--address", "127.0.0.1/8"]), 2, "is no address"),
        (create("other", &["--address", "10.1.2.3/24", "--interface", "none-such"]), 3, "no interface 'none-such'"),
        (create("other", &["--address", "10.1.2.3/24", "--gateway", "10.1.2.1"]), 2, "leave the gateway out"),
        (
            create("other", &["--address", "10.1.2.3/24", "--interface", "lo", "--gateway", "fd00::1"]),
            2,
            "cannot be the gateway",
        ),
        (create("other", &["--address", "10.1.2.3", "--dns", "me"]), 2, "no addresses of name servers"),
        (create("a/b", &["--address", "10.1.2.3"]), 2, "a/b"),
        (create("other", &["--address", "10.1.2.3", "--nfs", "2"]), 2, "versions 3 and 4"),
        (create("x".repeat(41).leak(), &["--address", "10.1.2.3"]), 2, "at most 40"),
        (vec!["nas", "server", "show", "nobody"], 3, "no NAS server 'nobody'"),
        (vec!["nas", "server", "restart", "nobody"], 3, "no NAS server 'nobody'"),
        (vec!["nas", "server", "delete", "nobody"], 3, "no NAS server 'nobody'"),
        (vec!["nas", "fs", "create", "more", "--size", "256M", "--server", "nobody"], 3, "no NAS server 'nobody'"),
        (vec!["nas", "fs", "assign", "home", "--server", "nobody"], 3, "no NAS server 'nobody'"),
        (vec!["nas", "fs", "assign", "home", "--none"], 4, "is exported"),
        (vec!["nas", "fs", "delete", "files.nas", "--force"], 4, "holds the state of NAS server 'files'"),
        (vec!["nas", "fs", "assign", "files.nas", "--none"], 4, "holds the state of NAS server 'files'"),
        (export("files:/home", &["--fs", "home"]), 4, "exists already"),
        (export("files:/home/in", &["--fs", "home"]), 4, "cannot lie in each other"),
        (export("files:/state", &["--fs", "files.nas"]), 3, "no file system 'files.nas'"),
        (export("files:/x", &["--fs", "nothing"]), 3, "no file system 'nothing'"),
        (export("files:/x", &["--fs", "home", "--directory", "out"]), 2, "behind a link"),
        (export("files:/x", &["--fs", "home", "--directory", "file"]), 2, "is no directory"),
        (export("files:/x", &["--fs", "home", "--directory", "missing"]), 3, "missing"),
        (export("files:/x", &["--fs", "home", "--directory", "../.."]), 2, "cannot be exported"),
        (export("files:/x", &["--fs", "home", "--rw", "10.0.0.300"]), 2, "is no host"),
        (export("files:/x", &["--fs", "home", "--rw", "0.0.0.0"]), 2, "is no host"),
        (export("files:/x", &["--fs", "home", "--rw", "client.example.com"]), 2, "has no name servers"),
        (create("theirs", &["--address", "10.1.2.3"]), 4, "file system 'theirs.nas' exists already"),
        (vec!["nas", "fs", "restore", "files.nas@s"], 4, "holds the state of NAS server 'files'"),
        (export("files:/x y", &["--fs", "home"]), 2, "cannot be the path"),
        (export("files", &["--fs", "home"]), 2, "SERVER:/PATH"),
        (export("nobody:/x", &["--fs", "home"]), 3, "no NAS server 'nobody'"),
        (vec!["nas", "export", "show", "files:/none"], 3, "no export 'files:/none'"),
        (vec!["nas", "export", "set", "files:/none"], 3, "no export 'files:/none'"),
        (vec!["nas", "export", "delete", "files:/none"], 3, "no export 'files:/none'"),
    ];
    for (arguments, code, message) in refused {
        expect_refused(lab.ashlar(arguments), *code, message);
    }
    // Nothing of it is there.
    assert_eq!(lab.json(&["nas", "server", "list"]).as_array().map(Vec::len), Some(1));
    assert_eq!(lab.json(&["nas", "export", "list"]).as_array().map(Vec::len), Some(1));
    assert_eq!(lab.json(&["nas", "fs", "list"]).as_array().map(Vec::len), Some(3));
    assert_eq!(lab.json(&["nas", "fs", "show", "theirs.nas"])["state"], "mounted");

    // An address of another one's is no hindrance to a second server, which has its own of everything.
    lab.ashlar(&["nas", "server", "create", "other", "--address", &other, "--nfs", "3"]).expect_ok();
    for server in ["files", "other"] {
        expect_running(&lab, server);
    }
    lab.ashlar(&["nas", "fs", "create", "more", "--size", "256M", "--server", "other"]).expect_ok();
    lab.ashlar(&["nas", "export", "create", "other:/home", "--fs", "more", "--access", "root"]).expect_ok();
    nfs("calm /home; nfs-cp /etc/passwd \"$(url 3 /home/passwd)\"", &other, &[]).expect_ok();
    nfs("no nfs-ls \"$(url 3 /home)\"; no timeout 10 nfs-ls \"$(url 4 /home)\"", &at, &[]).expect_ok();
    shell("[ ! -e \"$1/passwd\" ]", &[&home]).expect_ok();
}

/// Interfaces and a namespace of a test's own.
struct Links(Vec<String>, String);

impl Drop for Links {
    fn drop(&mut self) {
        for link in &self.0 {
            let _ = shell("ip link del \"$1\" 2>/dev/null || true", &[link]);
        }
        let _ = shell("ip netns del \"$1\" 2>/dev/null || true", &[&self.1]);
    }
}

#[test]
fn others_reach_a_server_by_an_interface() {
    if !met("others_reach_a_server_by_an_interface", SERVERS) {
        return;
    }
    let lab = Lab::up(SMALL);
    let id = std::process::id() % 100_000;
    let (bridge, near, client) = (format!("tb{id}"), format!("tm{id}"), format!("ashlar-test-{id}"));
    let network = address();
    let network = network.rsplit_once('.').expect("four numbers").0;
    let of = |host: u8| format!("{network}.{host}/26");
    let _links = Links(vec![bridge.clone(), near.clone()], client.clone());
    // A bridge that this machine has an address on; and a cable to another machine.
    let make = "ip link add \"$1\" type bridge; ip addr add \"$4\" dev \"$1\"; ip link set \"$1\" up; \
        ip netns add \"$3\"; ip link add \"$2\" type veth peer name eth0 netns \"$3\"; ip link set \"$2\" up; \
        ip -n \"$3\" addr add \"$5\" dev eth0; ip -n \"$3\" link set eth0 up";
    shell(make, &[&bridge, &near, &client, &of(1), &of(65)]).expect_ok();
    lab.ashlar(&["nas", "server", "create", "files", "--address", &of(2), "--interface", &bridge]).expect_ok();
    let more = ["nas", "server", "create", "more", "--address", &of(66), "--interface", &near, "--gateway"];
    lab.ashlar(&[&more[..], &[&format!("{network}.65")]].concat()).expect_ok();
    for (server, fs) in [("files", "one"), ("more", "two")] {
        lab.ashlar(&["nas", "fs", "create", fs, "--size", "256M", "--server", server]).expect_ok();
        lab.ashlar(&["nas", "export", "create", &format!("{server}:/{fs}"), "--fs", fs, "--access", "root"])
            .expect_ok();
        expect_running(&lab, server);
    }
    nfs("calm /one; nfs-ls \"$(url 3 /one)\" | grep -q calm", &format!("{network}.2"), &[]).expect_ok();
    let there = "nfs-cp() { ip netns exec \"$client\" nfs-cp \"$@\"; }; client=$1; calm /two; \
        ip netns exec \"$client\" nfs-ls \"$(url 3 /two)\" | grep -q calm";
    nfs(there, &format!("{network}.66"), &[&client]).expect_ok();
    // One with an address of version 6, which only this machine reaches.
    let six = format!("fd77:{:x}:{:x}::2", std::process::id() >> 16, std::process::id() & 0xffff);
    lab.ashlar(&["nas", "server", "create", "six", "--address", &six]).expect_ok();
    expect_running(&lab, "six");
    shell("for port in 111 2049; do exec 3<>\"/dev/tcp/$1/$port\"; done", &[&six]).expect_ok();
    // The neighbours know by themselves who has the address after a start: no frame goes to the old interface's address.
    let mac = "ip -n \"$1\" neigh show \"$2\" | grep -o 'lladdr [^ ]*'";
    let before = shell(mac, &[&client, &format!("{network}.66")]).expect_ok().stdout;
    lab.ashlar(&["nas", "server", "restart", "more"]).expect_ok();
    expect_running(&lab, "more");
    let told = || shell(mac, &[&client, &format!("{network}.66")]).stdout != before;
    assert!(wait_until(Duration::from_secs(10), told), "the client still has {before}");
    nfs(there, &format!("{network}.66"), &[&client]).expect_ok();
}

#[test]
fn a_kill_leaves_no_half_of_a_server() {
    if !met("a_kill_leaves_no_half_of_a_server", SERVERS) {
        return;
    }
    let lab = Lab::up(SMALL);
    let at = address();
    let (program, dir) = (ashlar_tests::binary::ashlar().display().to_string(), lab.dir().display().to_string());
    let pool = lab.json(&["pool", "status"])["uuid"].as_str().expect("an identity").replace('-', "");
    let namespace = format!("ashlar-{}-files", &pool[..8]);
    for round in 0..6_u32 {
        let making = round % 2 == 0;
        let verb = if making { format!("create files --address {at}") } else { "delete files".into() };
        // While it is made, or deleted.
        let delay = f64::from(round) * 0.012;
        let script = format!(
            "\"$1\" --dir \"$2\" nas server {verb} >/dev/null 2>&1 & sleep {delay}; \"$1\" lab kill --dir \"$2\"; wait || true"
        );
        shell(&script, &[&program, &dir]).expect_ok();
        lab.lab("start", &[]).expect_ok();
        let servers = lab.json(&["nas", "server", "list"]);
        let states = lab.json(&["nas", "fs", "list"]);
        match servers.as_array().map(Vec::len) {
            Some(0) => {
                assert_eq!(states, serde_json::json!([]), "round {round}");
                shell("[ ! -e \"/run/netns/$1\" ]", &[&namespace]).expect_ok();
                if making {
                    lab.ashlar(&["nas", "server", "create", "files", "--address", &at]).expect_ok();
                }
            }
            _ => {
                assert_eq!(states.as_array().map(Vec::len), Some(1), "round {round}: {states}");
                expect_running(&lab, "files");
                if !making {
                    lab.ashlar(&["nas", "server", "delete", "files"]).expect_ok();
                }
            }
        }
    }
    // However fast one start follows another, no two are in one second: by that clients know what they have to write again.
    lab.ashlar(&["nas", "server", "create", "files", "--address", &at]).expect_ok();
    for _ in 0..4 {
        expect_running(&lab, "files");
        lab.lab("kill", &[]).expect_ok();
        lab.lab("start", &[]).expect_ok();
    }
    expect_running(&lab, "files");
    let log = service(&lab, "nfs")["log"].as_str().expect("a log").to_owned();
    let starts = "grep -o 'epoch [0-9a-f]* .*Ganesha Version' \"$1\" | cut -d ' ' -f 2 >\"$1.starts\"; sort -u \"$1.starts\" | cmp - <(sort \"$1.starts\"); wc -l <\"$1.starts\"; rm \"$1.starts\"";
    let starts = shell(starts, &[&log]).expect_ok().stdout;
    assert!(starts.trim().parse::<u32>().is_ok_and(|n| n >= 5), "{starts} starts are in {log}");
    lab.ashlar(&["nas", "server", "delete", "files"]).expect_ok();
    // One that is killed and not started again is taken away with its namespace.
    lab.ashlar(&["nas", "server", "create", "files", "--address", &at]).expect_ok();
    assert_eq!(lab.json(&["nas", "server", "show", "files"])["namespace"], namespace);
    lab.lab("kill", &[]).expect_ok();
    let left = lab.lab("down", &["-o", "json"]).expect_ok().json();
    assert_eq!(left["left"], serde_json::json!([]));
    shell("[ ! -e \"/run/netns/$1\" ]", &[&namespace]).expect_ok();
}
