use std::os::unix::fs::PermissionsExt;

use super::*;

fn upgrade(state: UpgradeState) -> Upgrade {
    Upgrade {
        id: 7,
        state,
        from: "0.0.9".into(),
        to: "0.1.0".into(),
        binary: "/opt/ashlar".into(),
        ended_jobs: vec![],
        waited_ms: None,
        volumes: vec![],
        error: (state == UpgradeState::FellBack).then(|| "no disks".into()),
    }
}

fn upgrades(program: &Path, handover: Option<Handover>) -> Upgrades {
    Upgrades {
        program: program.into(),
        arguments: vec!["serve".into()],
        last: Mutex::default(),
        handover: Mutex::new(handover),
        plan: Mutex::default(),
        left: Mutex::default(),
    }
}

/// An executable script.
fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn the_mark_of_a_replaced_program_is_no_part_of_its_path() {
    assert_eq!(without_mark(Path::new("/usr/bin/ashlar (deleted)")), Path::new("/usr/bin/ashlar"));
    assert_eq!(without_mark(Path::new("/usr/bin/ashlar")), Path::new("/usr/bin/ashlar"));
    assert!(started_from().is_file());
}

#[tokio::test]
async fn a_program_that_cannot_take_over_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let able = format!("echo '{{\"version\":\"9.9.9\",\"formats\":[{FORMAT_VERSION}]}}'");
    let of_format = |format: u32| format!("echo '{{\"version\":\"9.9.9\",\"formats\":[{format}]}}'");
    let answers = |check: &str| {
        format!("case \"$*\" in --version) echo ashlar 9.9.9 ;; 'serve --check') {check} ;; *) exit 9 ;; esac")
    };
    let cases = [
        ("missing", None, "No such file"),
        ("other", Some("echo cat 1.0".to_owned()), "says 'cat 1.0'"),
        ("broken", Some("echo 'error: no library' >&2; exit 127".to_owned()), "no library"),
        ("old", Some(answers("echo 'error: unexpected argument' >&2; exit 2")), "unexpected argument"),
        ("mute", Some(answers("true")), "not understood"),
        ("future", Some(answers(&of_format(FORMAT_VERSION + 1))), "cannot read the pool"),
        ("good", Some(answers(&able)), ""),
    ];
    for (name, text, expected) in cases {
        let path = text.map_or_else(|| dir.path().join(name), |text| script(dir.path(), name, &text));
        let request = UpgradeRequest { binary: Some(path.display().to_string()), force: false };
        let prepared = upgrades(Path::new("/x"), None).prepare(&request, vec![], vec![], dir.path()).await;
        match prepared {
            Ok(upgrade) => assert!(expected.is_empty() && upgrade.to == "9.9.9", "{name}: {upgrade:?}"),
            Err(e) => {
                assert!(!expected.is_empty() && e.to_string().contains(expected), "{name}: {e}");
                assert!(e.to_string().contains(name), "{name}: {e}");
                assert!(!files(dir.path())[0].exists());
            }
        }
    }
    // What serves is kept, and is itself.
    let kept = &files(dir.path())[0];
    assert_eq!(std::fs::metadata(kept).unwrap().len(), std::fs::metadata(MYSELF).unwrap().len());
    assert_eq!(std::fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o700);
    let request = UpgradeRequest { binary: Some("ashlar".into()), force: false };
    let refused = upgrades(Path::new("/x"), None).prepare(&request, vec![], vec![], dir.path()).await;
    assert!(refused.unwrap_err().to_string().contains("absolute"));
}

#[test]
fn a_signal_calls_it_off() {
    let all = upgrades(Path::new("/x"), None);
    assert!(!all.call_off());
    all.hand_over().unwrap();
    all.plan(upgrade(UpgradeState::Running), Path::new("/"));
    assert_eq!(all.successor().as_deref(), Some("0.1.0"));
    assert!(all.call_off() && all.successor().is_none());
    all.hand_over().unwrap();
}

#[test]
fn how_long_each_volume_waited_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    let restored = |volume: &str, ms| Restored { volume: volume.into(), via: Via::Ublk, at: at(ms), error: None };
    let handover = |state| Handover { upgrade: upgrade(state), left_ms: 5_000, program: "/x".into(), kept: None };
    let done = finished(handover(UpgradeState::Running), &[restored("a", 5_300), restored("b", 5_700)], at(9_000));
    assert_eq!((done.state, done.waited_ms), (UpgradeState::Done, Some(700)));
    assert_eq!(done.volumes[0].waited_ms, 300);
    assert_eq!(told(&done).kind, "daemon.upgraded");
    let back = finished(handover(UpgradeState::FellBack), &[], at(9_000));
    assert_eq!((back.state, back.waited_ms), (UpgradeState::FellBack, Some(4_000)));
    let event = told(&back);
    assert!(event.kind == "daemon.upgrade_failed" && event.cause.as_deref() == Some("no disks"), "{event:?}");

    // Told once; the copy goes.
    let all = upgrades(Path::new("/x"), Some(handover(UpgradeState::Running)));
    let kept = &files(dir.path())[0];
    std::fs::write(kept, "").unwrap();
    assert!(all.served(&[], dir.path()).is_some() && !kept.exists());
    assert_eq!(all.last().unwrap().state, UpgradeState::Done);
    assert!(all.served(&[], dir.path()).is_none());
    // Without a program before there is none to go back to.
    all.fall_back("whatever");
}

#[test]
fn what_would_be_lost_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("volume");
    std::fs::write(&file, "x").unwrap();
    let mut attachment = Attachment {
        volume: "v".into(),
        via: Via::Fuse,
        uri: None,
        uris: vec![],
        path: Some(file.display().to_string()),
        device: None,
        error: None,
    };
    assert_eq!(used_and_lost(&attachment), None);
    let mut reader = std::process::Command::new("tail").arg("-f").arg(&file).stdout(Stdio::null()).spawn().unwrap();
    let mut found = None;
    for _ in 0..500 {
        found = used_and_lost(&attachment);
        if found.is_some() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    attachment.via = Via::Ublk;
    let outlives = used_and_lost(&attachment);
    let _ = reader.kill();
    let _ = reader.wait();
    assert!(found.is_some_and(|f| f.contains("open in process")) && outlives.is_none());
}
