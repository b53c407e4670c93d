use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use axum::body::Body as RawBody;
use axum::http::Method;
use blockdev::report::{CheckReport, Finding};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::*;
use crate::daemon::attach::Attachments;
use crate::daemon::double::{Memory, MemoryEngine};
use crate::daemon::events::Events;
use crate::daemon::protection::runner::Runs;
use crate::daemon::quiesce::Quiescing;
use crate::wire::{JobState, Via};

struct Daemon {
    engine: Arc<MemoryEngine>,
    memory: Arc<Memory>,
    appliance: Arc<Appliance>,
    router: Router,
    _state: tempfile::TempDir,
}

fn daemon_on(engine: Arc<MemoryEngine>) -> Daemon {
    let state = tempfile::tempdir().unwrap();
    let memory = Arc::new(Memory::default());
    let appliance = Arc::new(Appliance {
        attachments: Attachments::new(engine.clone(), memory.fronts()),
        engine: engine.clone(),
        nas: crate::daemon::nas::FileSystems::new(state.path().join("nas"), 1 << 20),
        servers: crate::daemon::nas::Servers::new(
            state.path().join("run"),
            state.path().join("log"),
            state.path().join("nas"),
            "pool",
        ),
        jobs: Arc::default(),
        events: Arc::new(Events::open(state.path()).unwrap()),
        observer: Default::default(),
        health: crate::daemon::health::Watch::new(
            Arc::new(blockdev::disk::health::read),
            std::time::Duration::from_secs(300),
        ),
        faults: None,
        state_dir: std::path::PathBuf::new(),
        disks: vec![],
        rescans: tokio::sync::Mutex::default(),
        config: vec![],
        stopping: watch::Sender::new(false),
        upgrades: Arc::new(crate::daemon::upgrade::Upgrades::here()),
        upgrading: tokio::sync::Mutex::default(),
        runs: Runs::new(jiff::tz::TimeZone::UTC),
        protection: tokio::sync::Mutex::default(),
        quiescing: Quiescing {
            hooks_dir: std::path::PathBuf::new(),
            hook_limit: std::time::Duration::from_secs(1),
            freeze_limit: std::time::Duration::from_secs(1),
            own: Vec::new(),
            turn: tokio::sync::Mutex::default(),
        },
    });
    let (router, _) = router(appliance.clone());
    Daemon { engine, memory, appliance, router, _state: state }
}

fn daemon() -> Daemon {
    daemon_on(Arc::default())
}

impl Daemon {
    async fn raw(&self, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
        let answer = self.router.clone().oneshot(request.body(RawBody::from(body.to_owned())).unwrap()).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let value = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        (status, value)
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        self.raw(method, path, &if body.is_null() { String::new() } else { body.to_string() }).await
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, Value::Null).await
    }

    async fn create(&self, name: &str) {
        let (status, _) = self.call(Method::POST, "/v1/volumes", json!({ "name": name, "size": 1 << 20 })).await;
        assert_eq!(status, StatusCode::CREATED);
    }

    async fn attach(&self, name: &str, body: Value) -> (StatusCode, Value) {
        self.call(Method::PUT, &format!("/v1/volumes/{name}/attachment"), body).await
    }
}

fn assert_error(answer: (StatusCode, Value), status: StatusCode, kind: &str, message: &str) {
    assert_eq!(answer.0, status, "{}", answer.1);
    assert_eq!(answer.1["kind"], kind);
    let text = answer.1["message"].as_str().unwrap();
    assert!(text.contains(message), "{text:?} does not contain {message:?}");
}

#[tokio::test]
async fn volumes_live_and_die() {
    let d = daemon();
    let (status, volume) = d.call(Method::POST, "/v1/volumes", json!({ "name": "a", "size": 8192 })).await;
    assert_eq!((status, &volume["size"]), (StatusCode::CREATED, &json!(8192)));
    let again = d.call(Method::POST, "/v1/volumes", json!({ "name": "a", "size": 8192 })).await;
    assert_error(again, StatusCode::CONFLICT, "already_exists", "'a'");
    d.create("b").await;
    let (_, all) = d.get("/v1/volumes").await;
    assert_eq!(all.as_array().unwrap().iter().map(|v| v["name"].clone()).collect::<Vec<_>>(), ["a", "b"]);

    let (status, volume) = d.call(Method::PATCH, "/v1/volumes/a", json!({ "size": 16384 })).await;
    assert_eq!((status, &volume["size"]), (StatusCode::OK, &json!(16384)));
    let smaller = d.call(Method::PATCH, "/v1/volumes/a", json!({ "size": 4096 })).await;
    assert_error(smaller, StatusCode::BAD_REQUEST, "invalid_argument", "--shrink");
    let (status, _) = d.call(Method::PATCH, "/v1/volumes/a", json!({ "size": 4096, "shrink": true })).await;
    assert_eq!(status, StatusCode::OK);

    assert_eq!(d.call(Method::DELETE, "/v1/volumes/a", Value::Null).await.0, StatusCode::NO_CONTENT);
    for (method, path, body) in [
        (Method::GET, "/v1/volumes/a", Value::Null),
        (Method::DELETE, "/v1/volumes/a", Value::Null),
        (Method::PATCH, "/v1/volumes/a", json!({ "size": 4096 })),
        (Method::PUT, "/v1/volumes/a/attachment", json!({ "via": "nbd" })),
        (Method::DELETE, "/v1/volumes/a/attachment", Value::Null),
    ] {
        assert_error(d.call(method, path, body).await, StatusCode::NOT_FOUND, "not_found", "'a'");
    }
}

#[tokio::test]
async fn bad_requests_are_explained() {
    let d = daemon();
    d.create("a").await;
    for (body, message) in [
        (r#"{"name":"../x","size":4096}"#, "cannot be the name"),
        (r#"{"name":"x","size":4095}"#, "multiple of 4096"),
        (r#"{"name":"x","size":0}"#, "size of 0"),
        (r#"{"name":"x","size":-1}"#, "invalid value"),
        (r#"{"name":"x"}"#, "missing field `size`"),
        (r#"{"name":"x","size":4096,"colour":1}"#, "unknown field `colour`"),
        (r#"{"name":"x","#, "request body"),
        ("", "request body"),
    ] {
        let answer = d.raw(Method::POST, "/v1/volumes", body).await;
        assert_error(answer, StatusCode::BAD_REQUEST, "invalid_argument", message);
    }
    let answer = d.attach("a", json!({ "via": "scsi" })).await;
    assert_error(answer, StatusCode::BAD_REQUEST, "invalid_argument", "scsi");
    assert_error(d.get("/v2/volumes").await, StatusCode::NOT_FOUND, "not_found", "openapi");
    assert_error(d.get("/v1/jobs/7").await, StatusCode::NOT_FOUND, "not_found", "job 7");
    assert_error(d.get("/v1/jobs/x").await, StatusCode::BAD_REQUEST, "invalid_argument", "'x'");
    let answer = d.call(Method::DELETE, "/v1/pool", Value::Null).await;
    assert_error(answer, StatusCode::METHOD_NOT_ALLOWED, "unsupported", "method");
    for (what, body) in
        [("pull", Value::Null), ("push", Value::Null), ("slow", json!({ "delay_us": 1 })), ("corrupt", json!({}))]
    {
        let answer = d.call(Method::POST, &format!("/v1/lab/disks/0/{what}"), body).await;
        assert_error(answer, StatusCode::NOT_IMPLEMENTED, "unsupported", "laboratory");
    }
    assert_error(d.get("/v1/lab/disks").await, StatusCode::NOT_IMPLEMENTED, "unsupported", "laboratory");
    let answer = d.call(Method::POST, "/v1/lab/disks/0/corrupt", json!({ "places": 1 })).await;
    assert_error(answer, StatusCode::BAD_REQUEST, "invalid_argument", "unknown field `places`");
    assert_error(d.get("/v1/disks/7").await, StatusCode::NOT_FOUND, "not_found", "no disk 7");
    assert_error(d.get("/v1/disks/x").await, StatusCode::BAD_REQUEST, "invalid_argument", "'x'");
    assert_eq!(d.get("/v1/disks/0").await.1["path"], "/lab/disks/disk0.img");
}

#[tokio::test]
async fn one_protocol_at_a_time() {
    let d = daemon();
    d.create("a").await;
    let (status, first) = d.attach("a", json!({ "via": "nbd" })).await;
    assert_eq!((status, first["uri"].as_str().unwrap()), (StatusCode::OK, "nbd+unix:///a?socket=/s"));
    assert_eq!(first["uris"].as_array().unwrap().len(), 2);
    assert_eq!(d.attach("a", json!({ "via": "nbd" })).await, (StatusCode::OK, first.clone()));
    let other = d.attach("a", json!({ "via": "fuse" })).await;
    assert_error(other, StatusCode::CONFLICT, "busy", "one protocol at a time");
    let (_, shown) = d.get("/v1/volumes/a").await;
    assert_eq!((&shown["attachment"], &shown["attached"]), (&first, &json!("nbd")));
    let deleted = d.call(Method::DELETE, "/v1/volumes/a", Value::Null).await;
    assert_error(deleted, StatusCode::CONFLICT, "busy", "attached via nbd");

    let detach = || d.call(Method::DELETE, "/v1/volumes/a/attachment", Value::Null);
    assert_eq!(detach().await.0, StatusCode::NO_CONTENT);
    assert!(d.memory.shown.lock().is_empty());
    assert_error(detach().await, StatusCode::NOT_FOUND, "not_found", "not attached");
    assert_eq!(d.attach("a", json!({ "via": "fuse" })).await.1["path"], "/mnt/a");
    for body in [json!({ "via": "ublk", "loop": true }), json!({ "via": "nbd", "loop": true })] {
        d.create("x").await;
        let (status, error) = d.attach("x", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        d.call(Method::DELETE, "/v1/volumes/x", Value::Null).await;
    }
}

#[tokio::test]
async fn block_devices_follow_the_size_where_the_kernel_can() {
    let d = daemon();
    d.create("a").await;
    let (_, shown) = d.attach("a", json!({ "via": "ublk" })).await;
    assert_eq!((&shown["path"], &shown["uri"]), (&json!("/dev/ashlar/a"), &Value::Null));
    assert!(shown["device"].as_str().unwrap().starts_with("/dev/ublkb"));
    assert_eq!(d.get("/v1/volumes/a").await.1["attached"], "ublk");
    let resize = |size: u64| d.call(Method::PATCH, "/v1/volumes/a", json!({ "size": size }));
    assert_eq!(resize(2 << 20).await.0, StatusCode::OK);
    assert_eq!(d.memory.refreshed.load(Ordering::Relaxed), 1);

    // Refused before anything changes.
    d.memory.mounted.store(true, Ordering::Relaxed);
    assert_error(resize(3 << 20).await, StatusCode::NOT_IMPLEMENTED, "unsupported", "resizing volume 'a'");
    assert_eq!(d.get("/v1/volumes/a").await.1["size"], 2 << 20);
    let detach = || d.call(Method::DELETE, "/v1/volumes/a/attachment", Value::Null);
    assert_error(detach().await, StatusCode::CONFLICT, "busy", "/dev/ublkb");
    d.memory.mounted.store(false, Ordering::Relaxed);
    assert_eq!(detach().await.0, StatusCode::NO_CONTENT);
    assert_eq!(resize(3 << 20).await.0, StatusCode::OK);
    assert!(d.memory.shown.lock().is_empty() && d.memory.loops.lock().is_empty());
}

#[tokio::test]
async fn loop_devices_come_and_go_with_their_file() {
    let d = daemon();
    d.create("a").await;
    d.attach("a", json!({ "via": "fuse" })).await;
    let (_, with) = d.attach("a", json!({ "via": "fuse", "loop": true })).await;
    assert_eq!(with["device"], "/dev/loop-a");
    assert_eq!(d.attach("a", json!({ "via": "fuse", "loop": true })).await.1, with);
    assert_eq!(d.get("/v1/volumes/a").await.1["attached"], "fuse+loop");
    d.call(Method::PATCH, "/v1/volumes/a", json!({ "size": 2 << 20 })).await;
    assert_eq!(d.memory.refreshed.load(Ordering::Relaxed), 1);

    d.memory.mounted.store(true, Ordering::Relaxed);
    let busy = d.call(Method::DELETE, "/v1/volumes/a/attachment", Value::Null).await;
    assert_error(busy, StatusCode::CONFLICT, "busy", "detaching volume 'a'");
    assert_eq!(d.get("/v1/volumes/a").await.1["attachment"], with);
    d.create("b").await;
    let refused = d.attach("b", json!({ "via": "fuse", "loop": true })).await;
    assert_error(refused, StatusCode::NOT_IMPLEMENTED, "unsupported", "loop device");
    assert_eq!(*d.memory.shown.lock(), BTreeSet::from(["a".to_owned()]));

    d.memory.mounted.store(false, Ordering::Relaxed);
    assert_eq!(d.call(Method::DELETE, "/v1/volumes/a/attachment", Value::Null).await.0, StatusCode::NO_CONTENT);
    assert!(d.memory.loops.lock().is_empty() && d.memory.shown.lock().is_empty());
}

#[tokio::test]
async fn an_attachment_that_cannot_be_kept_is_undone() {
    let d = daemon();
    d.create("a").await;
    d.engine.fail_attachments.store(true, Ordering::Relaxed);
    let refused = d.attach("a", json!({ "via": "nbd" })).await;
    assert_error(refused, StatusCode::INSUFFICIENT_STORAGE, "no_space", "full");
    assert!(d.memory.shown.lock().is_empty());
    assert_eq!(d.get("/v1/volumes/a").await.1["attachment"], Value::Null);
    assert_eq!(d.attach("a", json!({ "via": "nbd" })).await.0, StatusCode::OK);
}

#[tokio::test]
async fn attachments_come_back_after_a_restart() {
    let d = daemon();
    for (name, body) in
        [("a", json!({ "via": "nbd" })), ("b", json!({ "via": "fuse", "loop": true })), ("c", json!({ "via": "fuse" }))]
    {
        d.create(name).await;
        assert_eq!(d.attach(name, body).await.0, StatusCode::OK);
    }
    d.create("d").await;
    let before = d.get("/v1/volumes").await;
    d.appliance.attachments.stop().await;
    assert!(d.memory.shown.lock().is_empty() && d.memory.loops.lock().is_empty());

    let again = daemon_on(d.engine.clone());
    again.appliance.attachments.restore().await;
    assert_eq!(again.get("/v1/volumes").await, before);

    let broken = daemon_on(d.engine.clone());
    broken.memory.broken.store(true, Ordering::Relaxed);
    broken.appliance.attachments.restore().await;
    let (_, status) = broken.get("/v1/pool").await;
    assert_eq!(status["alerts"].as_array().unwrap().len(), 3);
    assert!(status["alerts"][0]["message"].as_str().unwrap().contains("out of order"));
    let deleted = broken.call(Method::DELETE, "/v1/volumes/a", Value::Null).await;
    assert_error(deleted, StatusCode::CONFLICT, "busy", "attached");
    broken.memory.broken.store(false, Ordering::Relaxed);
    assert_eq!(broken.attach("a", json!({ "via": "nbd" })).await.0, StatusCode::OK);
    assert_eq!(broken.call(Method::DELETE, "/v1/volumes/c/attachment", Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(broken.get("/v1/pool").await.1["alerts"].as_array().unwrap().len(), 1);
}

/// Its host would go on with what it remembers, once the device is served again.
#[tokio::test]
async fn a_device_in_use_that_could_not_be_presented_keeps_its_volume_as_it_is() {
    let d = daemon();
    d.create("a").await;
    assert_eq!(d.attach("a", json!({ "via": "ublk" })).await.0, StatusCode::OK);
    let again = daemon_on(d.engine.clone());
    again.memory.broken.store(true, Ordering::Relaxed);
    again.memory.mounted.store(true, Ordering::Relaxed);
    again.appliance.attachments.restore().await;
    let detach = || again.call(Method::DELETE, "/v1/volumes/a/attachment", Value::Null);
    let resize = || again.call(Method::PATCH, "/v1/volumes/a", json!({ "size": 2 << 20 }));
    assert_error(detach().await, StatusCode::CONFLICT, "busy", "mounted");
    assert_error(resize().await, StatusCode::CONFLICT, "busy", "mounted");
    assert_eq!(again.get("/v1/volumes/a").await.1["attached"], "ublk");
    again.memory.mounted.store(false, Ordering::Relaxed);
    assert_eq!(resize().await.0, StatusCode::OK);
    assert_eq!(detach().await.0, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_check_is_a_job() {
    let d = daemon();
    d.create("a").await;
    d.engine.findings.lock().push(Finding { code: "refcount.low".into(), message: "x".into() });
    let (status, job) = d.call(Method::POST, "/v1/pool/check", Value::Null).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let job = loop {
        let (_, job) = d.get(&format!("/v1/jobs/{}", job["id"])).await;
        let job: Job = serde_json::from_value(job).unwrap();
        if job.state != JobState::Running {
            break job;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((job.done, job.total), (2, 2));
    let report: CheckReport = job.report.unwrap();
    assert_eq!((report.volumes, report.findings.len()), (1, 1));
    assert_eq!(d.get("/v1/jobs").await.1.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_rest_answers() {
    let d = daemon();
    assert_eq!(d.get("/v1/health").await.1["status"], "ok");
    assert_eq!(d.get("/v1/pool").await.1["name"], "memory");
    assert_eq!(d.get("/v1/pool/stats").await.1["host_writes"], 5);
    assert_eq!(d.get("/v1/disks").await.1[0]["state"], "online");
    assert_eq!(d.get("/v1/disks").await.1[0]["health"]["state"], "not_reported");
    assert_eq!(d.get("/v1/config").await.1, json!([]));
    let (status, health) = d.call(Method::POST, "/v1/shutdown", Value::Null).await;
    assert_eq!((status, &health["status"]), (StatusCode::ACCEPTED, &json!("stopping")));
    assert!(*d.appliance.stopping.borrow());
}

#[tokio::test]
async fn changes_are_events_and_failures_are_not() {
    let d = daemon();
    d.create("a").await;
    d.call(Method::POST, "/v1/volumes", json!({ "name": "a", "size": 8192 })).await;
    d.call(Method::PATCH, "/v1/volumes/a", json!({ "size": 2 << 20 })).await;
    d.call(Method::PATCH, "/v1/volumes/a", json!({ "size": 2 << 20 })).await;
    for _ in 0..2 {
        d.attach("a", json!({ "via": "nbd" })).await;
    }
    d.call(Method::DELETE, "/v1/volumes/a", Value::Null).await;
    d.call(Method::DELETE, "/v1/volumes/a/attachment", Value::Null).await;
    d.call(Method::DELETE, "/v1/volumes/a", Value::Null).await;
    d.call(Method::POST, "/v1/pool/scrub", Value::Null).await;
    d.call(Method::PATCH, "/v1/pool", json!({ "tolerance": "double" })).await;
    let (status, page) = d.get("/v1/events").await;
    assert_eq!(status, StatusCode::OK);
    let kinds = |page: &Value| {
        let kinds = page["events"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<String>>().join(" ")
    };
    let all = "volume.created volume.resized volume.attached volume.detached volume.deleted pool.scrub";
    assert_eq!(kinds(&page), all);
    let events = page["events"].as_array().unwrap();
    assert!(events.iter().enumerate().all(|(n, e)| e["seq"] == n + 1), "{page}");
    assert_eq!((&events[1]["object"], &events[1]["details"]["size"]), (&json!("volume/a"), &json!("2097152")));
    assert_eq!((&events[1]["message"], &page["next"]), (&json!("volume 'a' has 2 MiB now (had 1 MiB)"), &json!(6)));
    for (query, expected) in [
        ("object=volume/a&limit=1", "volume.deleted"),
        ("after=4", "volume.deleted pool.scrub"),
        ("after=1&limit=1", "volume.resized"),
        ("kind=pool", "pool.scrub"),
        ("severity=warning", ""),
        ("since_s=99999999999", ""),
    ] {
        assert_eq!(kinds(&d.get(&format!("/v1/events?{query}")).await.1), expected, "{query}");
    }
    for query in ["severity=bad", "limit=-1", "colour=1", "after=x"] {
        let answer = d.get(&format!("/v1/events?{query}")).await;
        assert_error(answer, StatusCode::BAD_REQUEST, "invalid_argument", "the query");
    }
}

#[tokio::test]
async fn a_follower_waits_for_events_and_not_beyond_the_end() {
    let d = daemon();
    let (_, page) = d.get("/v1/events?after=0&wait_s=0").await;
    assert_eq!(page, json!({ "events": [], "next": 0 }));
    let waiting = d.get("/v1/events?after=0&wait_s=60&object=volume");
    let change = async {
        // One that is not asked for does not end the wait.
        d.call(Method::POST, "/v1/pool/scrub", Value::Null).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        d.create("a").await;
    };
    let ((_, page), ()) = tokio::join!(waiting, change);
    assert_eq!((&page["events"][0]["kind"], &page["next"]), (&json!("volume.created"), &json!(2)));
    let waiting = d.get("/v1/events?after=2&wait_s=60");
    let stop = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        d.appliance.stopping.send_replace(true);
    };
    let ((_, page), ()) = tokio::join!(waiting, stop);
    assert_eq!(page["events"], json!([]));
}

#[tokio::test]
async fn alerts_tell_since_when_they_hold() {
    let d = daemon();
    d.create("a").await;
    d.attach("a", json!({ "via": "nbd" })).await;
    let again = daemon_on(d.engine.clone());
    again.memory.broken.store(true, Ordering::Relaxed);
    again.appliance.attachments.restore().await;
    let (_, alerts) = again.get("/v1/alerts").await;
    let new = (&alerts[0]["code"], &alerts[0]["object"], &alerts[0]["since_s"]);
    assert_eq!(new, (&json!("volume.attachment"), &json!("volume/a"), &Value::Null));
    again.appliance.observe(&again.appliance.status().await);
    let (_, alerts) = again.get("/v1/alerts").await;
    assert_eq!(alerts.as_array().unwrap().len(), 1);
    assert!(alerts[0]["since_s"].as_u64() > Some(1_600_000_000) && alerts[0]["event"] == 1, "{alerts}");
    again.memory.broken.store(false, Ordering::Relaxed);
    again.attach("a", json!({ "via": "nbd" })).await;
    again.appliance.observe(&again.appliance.status().await);
    assert_eq!(again.get("/v1/alerts").await.1, json!([]));
    let kinds: Vec<String> = again.appliance.events.all().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["alert.raised", "volume.attached", "alert.cleared"]);
}

#[tokio::test]
async fn a_device_that_is_served_no_longer_is_an_alert() {
    let d = daemon();
    for name in ["a", "b"] {
        d.create(name).await;
    }
    d.attach("a", json!({ "via": "ublk" })).await;
    d.attach("b", json!({ "via": "nbd" })).await;
    assert_eq!(d.get("/v1/alerts").await.1, json!([]));
    d.memory.unserved.store(true, Ordering::Relaxed);
    let (_, alerts) = d.get("/v1/alerts").await;
    assert_eq!(alerts.as_array().unwrap().len(), 1, "{alerts}");
    let said = (&alerts[0]["severity"], &alerts[0]["code"], &alerts[0]["object"]);
    assert_eq!(said, (&json!("critical"), &json!("volume.unserved"), &json!("volume/a")));
    let message = alerts[0]["message"].as_str().unwrap();
    assert!(message.contains("queue 1") && message.contains("Restart the daemon"), "{message}");
}

#[tokio::test]
async fn the_description_fits_the_api() {
    let d = daemon();
    let (status, document) = d.get("/v1/openapi.json").await;
    assert_eq!(status, StatusCode::OK);
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let mut operations = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["summary"].is_string(), "{method} {path} is not described");
            operations.insert(operation["operationId"].as_str().unwrap().to_owned());
            // Everything described is served: neither the resource nor the method is unknown.
            let url = path
                .replace("{name}", "nothing")
                .replace("{id}", "1")
                .replace("{disk}", "0")
                .replace("{snapshot}", "none");
            let method: Method = method.to_uppercase().parse().unwrap();
            let (status, answer) = d.call(method.clone(), &url, Value::Null).await;
            assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert!(!answer["message"].as_str().unwrap_or("").contains("no such resource"), "{method} {path}");
        }
    }
    assert_eq!(operations.len(), 92, "{operations:?}");
    for reference in document.to_string().split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "{name} is referred to and not described");
    }
}

#[test]
fn words_of_protocols_agree() {
    for via in [Via::Nbd, Via::Fuse, Via::Ublk] {
        assert_eq!(serde_json::to_value(via).unwrap(), via.to_string());
    }
}

#[tokio::test]
async fn an_upgrade_that_cannot_be_changes_nothing() {
    let d = daemon();
    assert_error(d.get("/v1/daemon/upgrade").await, StatusCode::NOT_FOUND, "not_found", "was not upgraded");
    for (binary, expected) in
        [("ashlar", "absolute"), ("/nonexistent/ashlar", "/nonexistent/ashlar"), ("/bin/true", "says 'true")]
    {
        let answer = d.call(Method::POST, "/v1/daemon/upgrade", json!({ "binary": binary })).await;
        assert_error(answer, StatusCode::BAD_REQUEST, "invalid_argument", expected);
    }
    assert!(!*d.appliance.stopping.borrow() && !d.appliance.upgrades.call_off());
    d.appliance.stopping.send_replace(true);
    let answer = d.call(Method::POST, "/v1/daemon/upgrade", json!({})).await;
    assert_error(answer, StatusCode::CONFLICT, "busy", "stopping already");
}
