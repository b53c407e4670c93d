//! Rules, policies, groups and secure snapshots as people use them, with kills in between.

use std::process::Command;
use std::time::{Duration, SystemTime};

use ashlar_tests::process::wait_until;
use ashlar_tests::require::{Need, met};
use ashlar_tests::{Lab, run};
use serde_json::Value;

use crate::tools::{SMALL, attach, create, detach, expect_sound, shell};

/// Names of what a list has.
fn names(lab: &Lab, list: &[&str]) -> Vec<String> {
    let all = lab.json(list);
    let name = |v: &Value| v["name"].as_str().expect("a name").to_owned();
    all.as_array().expect("a list").iter().map(name).collect()
}

fn kill(lab: &Lab) {
    lab.lab("kill", &[]).expect_ok();
    lab.lab("start", &[]).expect_ok();
}

/// Words of what is refused.
fn refused(lab: &Lab, arguments: &[&str], why: &str) {
    let output = lab.ashlar(arguments).expect_failure();
    assert!(output.stderr.contains(why), "{arguments:?}: {output}");
}

#[test]
fn a_policy_protects_volumes_and_groups() {
    if !met("a_policy_protects_volumes_and_groups", &["qemu-io"].map(Need::Tool)) {
        return;
    }
    let lab = Lab::up(SMALL);
    for name in ["data", "logs", "alone"] {
        create(&lab, name, "16M");
    }
    lab.ashlar(&["rule", "create", "often", "--every", "5m", "--keep", "2"]).expect_ok();
    lab.ashlar(&["rule", "create", "vault", "--at", "03:00", "--days", "sun", "--for", "4w", "--secure"]).expect_ok();
    lab.ashlar(&["policy", "create", "gold", "--rules", "often", "vault"]).expect_ok();
    lab.ashlar(&["group", "create", "db", "--volumes", "data", "logs", "--policy", "gold"]).expect_ok();
    lab.ashlar(&["policy", "assign", "gold", "--volume", "alone"]).expect_ok();
    kill(&lab);
    // All of it is in the pool.
    assert_eq!(names(&lab, &["rule", "list"]), ["often", "vault"]);
    let policy = lab.json(&["policy", "show", "gold"]);
    assert_eq!((&policy["volumes"][0], &policy["groups"][0]), (&"alone".into(), &"db".into()), "{policy}");
    let volume = lab.json(&["volume", "show", "logs"]);
    assert_eq!((&volume["group"], &volume["policy"]), (&"db".into(), &"gold".into()), "{volume}");
    assert!(lab.json(&["rule", "show", "vault"])["next_s"].as_u64().is_some());

    for _ in 0..3 {
        lab.ashlar(&["policy", "run", "gold"]).expect_ok();
    }
    // Two of three by the one rule; all by the other one.
    let settled = wait_until(Duration::from_secs(30), || names(&lab, &["snapshot", "list"]).len() == 3 * (2 + 3));
    assert!(settled, "{:?}", names(&lab, &["snapshot", "list"]));
    let all = lab.json(&["snapshot", "list", "alone"]);
    let secure = |s: &&Value| s["secure"] == true && s["rule"] == "vault" && s["expires_s"].as_u64().is_some();
    assert_eq!(all.as_array().expect("a list").iter().filter(secure).count(), 3, "{all}");
    let vault = names(&lab, &["snapshot", "list", "data"]).into_iter().find(|n| n.contains("vault")).expect("one");

    // What is in use, or secure, stays, whoever asks.
    kill(&lab);
    refused(&lab, &["snapshot", "delete", &vault], "nobody can delete it before it expires, in 2");
    refused(&lab, &["snapshot", "keep", &vault, "--for", "1d"], "can be more but not less");
    refused(&lab, &["snapshot", "keep", &vault, "--forever"], "must expire some time");
    lab.ashlar(&["snapshot", "keep", &vault, "--for", "5w"]).expect_ok();
    refused(&lab, &["volume", "delete", "data", "--with-snapshots"], "in a group");
    refused(&lab, &["policy", "delete", "gold"], "group db");
    refused(&lab, &["rule", "delete", "vault"], "part of gold");
    lab.ashlar(&["policy", "unassign", "--group", "db", "--volume", "alone"]).expect_ok();
    lab.ashlar(&["group", "remove", "db", "data"]).expect_ok();
    refused(&lab, &["volume", "delete", "data", "--with-snapshots"], "secure");
    lab.ashlar(&["policy", "delete", "gold"]).expect_ok();
    lab.ashlar(&["rule", "delete", "vault"]).expect_ok();
    refused(&lab, &["snapshot", "delete", &vault], "secure");
    expect_sound(&lab);
}

#[test]
fn a_group_is_of_one_instant_goes_back_and_is_cloned() {
    let tools = ["qemu-io", "qemu-img"].map(Need::Tool);
    if !met("a_group_is_of_one_instant_goes_back_and_is_cloned", &tools) {
        return;
    }
    let lab = Lab::up(SMALL);
    create(&lab, "data", "16M");
    create(&lab, "logs", "16M");
    lab.ashlar(&["group", "create", "db", "--volumes", "data", "logs"]).expect_ok();
    let uris = ["data", "logs"].map(|name| attach(&lab, name, &["nbd"]));
    // One writer: a number to the log, flushed, then to the data. The log is never behind.
    let script = r#"
        i=0
        while [ ! -e "$3" ]; do
            i=$((i + 1)); p=$((i % 250 + 1))
            qemu-io -f raw -c "write -q -P $p 0 64k" -c flush "$2" && qemu-io -f raw -c "write -q -P $p 0 64k" -c flush "$1" || exit 1
        done"#;
    let stop = lab.dir().join("stop");
    let writer = {
        let (stop, uris) = (stop.display().to_string(), uris.clone());
        std::thread::spawn(move || shell(script, &[&uris[0], &uris[1], &stop]).ok())
    };
    for n in 0..8 {
        lab.ashlar(&["group", "snapshot", &format!("db@s{n}"), "--for", "1d"]).expect_ok();
        std::thread::sleep(Duration::from_millis(150));
    }
    std::fs::write(&stop, "").expect("written");
    assert!(writer.join().expect("ended"), "the writer met an error");
    let pattern = |name: &str| {
        let file = lab.dir().join("first.raw").display().to_string();
        let uri = attach(&lab, name, &["nbd"]);
        shell("qemu-img dd -f raw -O raw bs=4096 count=1 if=\"$1\" of=\"$2\"", &[&uri, &file]).expect_ok();
        detach(&lab, name);
        i32::from(std::fs::read(&file).expect("a copy")[100])
    };
    for n in 0..8 {
        let (data, logs) = (pattern(&format!("data@s{n}")), pattern(&format!("logs@s{n}")));
        let ahead = (logs - data).rem_euclid(250);
        assert!(ahead <= 1 || data == 0, "snapshot {n}: the log has {logs}, the data {data}");
    }
    refused(&lab, &["group", "restore", "db@s3"], "detach it first");
    detach(&lab, "data");
    detach(&lab, "logs");
    let then = ["data@s3", "logs@s3"].map(pattern);
    lab.ashlar(&["group", "restore", "db@s3", "--keep", "end"]).expect_ok();
    kill(&lab);
    assert_eq!(["data", "logs"].map(pattern), then);
    lab.ashlar(&["group", "clone", "db@end", "copy"]).expect_ok();
    assert_eq!(["data-copy", "logs-copy"].map(pattern), ["data@end", "logs@end"].map(pattern));
    let shown = lab.json(&["group", "show", "db"]);
    assert_eq!(shown["snapshots"].as_array().map(Vec::len), Some(9), "{shown}");
    lab.ashlar(&["group", "delete-snapshot", "db@s3"]).expect_ok();
    assert_eq!(names(&lab, &["snapshot", "list", "logs"]).len(), 8);
    lab.ashlar(&["group", "delete", "db"]).expect_ok();
    assert_eq!(names(&lab, &["group", "list"]), ["copy"]);
    expect_sound(&lab);
}

#[test]
fn what_was_missed_while_the_daemon_was_down_is_made_up_for_once() {
    let lab = Lab::up(SMALL);
    create(&lab, "data", "16M");
    // The next minute that is far enough.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let soon = (now + 20).next_multiple_of(60);
    let time = run(Command::new("date").args(["-d", &format!("@{soon}"), "+%H:%M"]), Duration::from_secs(10)).stdout;
    lab.ashlar(&["rule", "create", "r", "--at", time.trim(), "--keep", "5"]).expect_ok();
    lab.ashlar(&["policy", "create", "p", "--rules", "r"]).expect_ok();
    lab.ashlar(&["policy", "assign", "p", "--volume", "data"]).expect_ok();
    lab.ashlar(&["policy", "run", "p"]).expect_ok();
    let taken = || names(&lab, &["snapshot", "list"]);
    assert_eq!(taken().len(), 1);
    lab.lab("kill", &[]).expect_ok();
    let past = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|n| n.as_secs() > soon + 2);
    assert!(wait_until(Duration::from_secs(120), past));
    lab.lab("start", &[]).expect_ok();
    assert!(wait_until(Duration::from_secs(20), || taken().len() == 2), "{:?}", taken());
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(taken().len(), 2);
    let events = lab.ashlar(&["event", "list"]).expect_ok().stdout;
    assert_eq!(events.matches("taken by rule 'r' of policy 'p'").count(), 2, "{events}");
}
