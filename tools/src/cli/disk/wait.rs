//! Waiting until a drive that is being removed is gone.

use std::time::{Duration, Instant};

use blockdev::report::{Alert, DiskInfo, PoolStatus, Rebuild};

use crate::client::Client;
use crate::exit::{CommandResult, Failure};

/// Pause between looks.
const POLL: Duration = Duration::from_millis(300);
/// A removal that finds no room, or meets what cannot be read, and moves nothing for so long is not waited for any more. The engine tries
/// again every two seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// What moves while a drive is emptied: bytes done, bytes in all, bytes without room, bytes on the drive.
type Seen = (u64, u64, u64, u64);

/// Watches whether a removal gets anywhere.
struct Watch {
    seen: Option<Seen>,
    since: Instant,
}

impl Watch {
    /// Why waiting is of no use, at the time `now`.
    fn stuck(&mut self, rebuild: Option<&Rebuild>, alerts: &[Alert], allocated: u64, now: Instant) -> Option<String> {
        let seen = rebuild.map_or((0, 0, 0), |r| (r.done, r.total, r.waiting));
        let seen = Some((seen.0, seen.1, seen.2, allocated));
        if self.seen != seen {
            (self.seen, self.since) = (seen, now);
        }
        let no_room = rebuild.is_some_and(|r| r.waiting > 0);
        let code = match rebuild {
            _ if no_room => "pool.rebuild.no_room",
            // All that can be read was moved.
            None => "pool.damaged",
            Some(_) => return None,
        };
        let alert = alerts.iter().find(|a| a.code == code).filter(|_| now - self.since >= PATIENCE);
        alert.map(|a| a.message.clone())
    }
}

/// Waits until a disk that is being removed is gone, with a bar when somebody watches.
pub async fn until_gone(client: &Client, disk: &DiskInfo) -> CommandResult {
    let bar = crate::cli::job::bar();
    let mut watch = Watch { seen: None, since: Instant::now() };
    loop {
        let status: PoolStatus = client.get("/v1/pool").await?;
        let Some(now) = status.disks.iter().find(|d| d.uuid == disk.uuid) else {
            bar.finish_and_clear();
            return Ok(());
        };
        if let Some(rebuild) = &status.rebuild {
            bar.set_message(format!("disk {}", disk.id));
            bar.set_length(rebuild.total);
            bar.set_position(rebuild.done);
        }
        let id = disk.id;
        if status.health == "failed" {
            bar.finish_and_clear();
            let why: Vec<String> = status.alerts.into_iter().map(|a| a.message).collect();
            return Err(Failure::other(format!("disk {id} cannot be emptied: {}", why.join("; "))));
        }
        if let Some(why) = watch.stuck(status.rebuild.as_ref(), &status.alerts, now.allocated, Instant::now()) {
            bar.finish_and_clear();
            return Err(Failure::other(format!(
                "disk {id} cannot be emptied now: {why}. It goes on by itself once that has changed; `ashlar disk keep {id}` calls it off"
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rebuild(done: u64, waiting: u64) -> Option<Rebuild> {
        Some(Rebuild { cause: "x".into(), total: 100, done, waiting, bytes_per_second: 0, eta_s: None })
    }

    fn alert(code: &str) -> Alert {
        Alert { severity: "critical".into(), code: code.into(), message: format!("M {code}"), ..Alert::default() }
    }

    #[test]
    fn a_removal_that_moves_is_waited_for_whatever_the_alerts() {
        let start = Instant::now();
        let mut watch = Watch { seen: None, since: start };
        let all = ["pool.rebuild.no_room", "pool.damaged"].map(alert);
        let mut look = |rebuild: Option<Rebuild>, allocated, after: u64| {
            watch.stuck(rebuild.as_ref(), &all, allocated, start + Duration::from_secs(after))
        };
        // Each look shows something else.
        for n in 0..10 {
            assert_eq!(look(rebuild(n, 5), 50, n * 60), None, "{n}");
        }
        assert_eq!(look(rebuild(9, 5), 49, 700), None);
        assert_eq!(look(rebuild(9, 5), 49, 709), None);
        // Nothing moved for a while, and there is no room.
        assert_eq!(look(rebuild(9, 5), 49, 710).as_deref(), Some("M pool.rebuild.no_room"));
        // It is worked on, slowly.
        assert_eq!(look(rebuild(9, 0), 49, 711), None);
        assert_eq!(look(rebuild(9, 0), 49, 799), None);
        // All that can be was done, and something is left.
        assert_eq!(look(None, 49, 800), None);
        assert_eq!(look(None, 49, 820).as_deref(), Some("M pool.damaged"));
    }

    #[test]
    fn a_disk_that_only_waits_for_its_turn_to_go_is_waited_for() {
        let now = Instant::now();
        let mut watch = Watch { seen: None, since: now };
        let alerts = [alert("disk.removing"), alert("pool.rebuild.no_room")];
        for after in [0, 99, 999] {
            assert_eq!(watch.stuck(None, &alerts, 0, now + Duration::from_secs(after)), None);
        }
    }
}
