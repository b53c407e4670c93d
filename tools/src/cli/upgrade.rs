//! `ashlar upgrade`: another program takes the daemon's place.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper::Method;

use super::Global;
use crate::client::Client;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, show};
use crate::wire::upgrade::{Upgrade, UpgradeRequest, UpgradeState};
use crate::wire::{Health, Via};

/// Pause between looks.
const POLL: Duration = Duration::from_millis(50);
/// How long the new program may take until it serves: closing the pool and opening it are in there.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a service manager may take to start a daemon that ended.
const RESTART_MAX: Duration = Duration::from_secs(15);

/// What `ashlar upgrade` takes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The new program is checked first; when it cannot serve, nothing changes. Then the daemon stops in order and the program goes on in its process.\nI/O on ublk devices waits meanwhile; clients of NBD have to connect again. A program that cannot open the pool gives way to the old one.\n\nExamples:\n  ashlar upgrade                          # the file the daemon was started from was replaced\n  ashlar upgrade --binary /opt/ashlar-next/ashlar\n  ashlar --dir /tmp/lab upgrade -o json"
)]
pub struct Arguments {
    /// The new program [default: the file the daemon was started from]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Also while loop devices or files of FUSE are in use: they do not outlive the daemon
    #[arg(long)]
    force: bool,
}

pub fn run(arguments: &Arguments, global: &Global) -> CommandResult<Exit> {
    let absolute = |path: &PathBuf| {
        let path = std::path::absolute(path);
        path.map(|p| p.display().to_string()).map_err(|e| Failure::usage(format!("the path of the program: {e}")))
    };
    let binary = arguments.binary.as_ref().map(absolute).transpose()?;
    let request = UpgradeRequest { binary, force: arguments.force };
    let client = global.client();
    let upgrade = super::talk(async {
        let process = client.get::<Health>("/v1/health").await?.pid;
        let begun: Upgrade = client.call(Method::POST, "/v1/daemon/upgrade", Some(&request)).await.map_err(too_old)?;
        until_served(&client, begun, process).await
    })?;
    show(global.output, &upgrade, describe)?;
    let all_there = upgrade.volumes.iter().all(|volume| volume.error.is_none());
    Ok(if upgrade.state == UpgradeState::Done && all_there { Exit::Ok } else { Exit::Failure })
}

/// A daemon of a version that has no upgrades knows no such resource.
fn too_old(failure: Failure) -> Failure {
    if failure.exit != Exit::NotFound {
        return failure;
    }
    let message = "the daemon is of a version that cannot hand over: restart it (systemctl restart ashlar)";
    Failure { exit: Exit::Unsupported, kind: "unsupported".into(), message: message.into() }
}

/// Waits until a daemon serves and knows what came of the upgrade.
async fn until_served(client: &Client, begun: Upgrade, process: u32) -> CommandResult<Upgrade> {
    let since = Instant::now();
    let mut gone: Option<Instant> = None;
    loop {
        match client.get::<Upgrade>("/v1/daemon/upgrade").await {
            Ok(upgrade) if upgrade.id == begun.id && upgrade.state != UpgradeState::Running => return Ok(upgrade),
            // It is about to hand over.
            Ok(upgrade) if upgrade.id == begun.id => {}
            // Another daemon: the new one ended, and was started anew.
            Ok(_) => return Err(ended(client, &begun).await),
            Err(failure) if failure.exit == Exit::NotFound => return Err(ended(client, &begun).await),
            Err(failure) if failure.exit != Exit::Unreachable => return Err(failure),
            Err(_) if !std::path::Path::new(&format!("/proc/{process}")).exists() => {
                if gone.get_or_insert_with(Instant::now).elapsed() > RESTART_MAX {
                    return Err(ended(client, &begun).await);
                }
            }
            Err(_) => {}
        }
        if since.elapsed() > LIMIT {
            let limit = LIMIT.as_secs();
            return Err(Failure::unreachable(format!("{} does not serve after {limit} s; see its log", begun.binary)));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ended(client: &Client, begun: &Upgrade) -> Failure {
    let now = client.get::<Health>("/v1/health").await;
    let now = now.map_or_else(|f| f.message, |h| format!("version {} serves, as process {}", h.version, h.pid));
    Failure::other(format!("{} (version {}) was started and ended; {now}; see its log", begun.binary, begun.to))
}

fn describe(upgrade: &Upgrade) -> String {
    let Upgrade { from, to, binary, .. } = upgrade;
    let waited = crate::output::duration(upgrade.waited_ms.unwrap_or(0) as f64 / 1000.0);
    let mut text = match upgrade.state {
        UpgradeState::Done => format!("version {to} took over from {from}; hosts waited {waited}\n"),
        _ => format!(
            "{binary} (version {to}) could not serve: {}\nversion {from} goes on; hosts waited {waited}\n",
            upgrade.error.as_deref().unwrap_or("it did not say why")
        ),
    };
    if !upgrade.volumes.is_empty() {
        let mut table = Table::new(&[("VOLUME", Align::Left), ("VIA", Align::Left), ("WAITED", Align::Right)]);
        for volume in &upgrade.volumes {
            let waited = match &volume.error {
                None => crate::output::duration(volume.waited_ms as f64 / 1000.0),
                Some(error) => format!("not presented: {error}"),
            };
            table.row([volume.volume.clone(), volume.via.to_string(), waited]);
        }
        text.push_str(&table.render(0));
    }
    if upgrade.volumes.iter().any(|volume| volume.via == Via::Nbd) {
        text.push_str("clients of NBD have to connect again\n");
    }
    for job in &upgrade.ended_jobs {
        text.push_str(&format!("the job {job} was ended by it; start it again\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::upgrade::UpgradedVolume;

    fn upgrade(state: UpgradeState) -> Upgrade {
        let volume = |volume: &str, via, error| UpgradedVolume { volume: volume.into(), via, waited_ms: 1200, error };
        Upgrade {
            id: 1,
            state,
            from: "1.0.0".into(),
            to: "1.1.0".into(),
            binary: "/usr/bin/ashlar".into(),
            ended_jobs: vec!["pool.check".into()],
            waited_ms: Some(1200),
            volumes: vec![volume("a", Via::Ublk, None), volume("b", Via::Nbd, Some("no".into()))],
            error: (state == UpgradeState::FellBack).then(|| "no memory".into()),
        }
    }

    #[test]
    fn what_came_of_it_is_told() {
        let text = describe(&upgrade(UpgradeState::Done));
        for expected in ["1.1.0 took over from 1.0.0", "1.2 s", "not presented: no", "connect again", "pool.check"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        let text = describe(&upgrade(UpgradeState::FellBack));
        assert!(text.contains("could not serve: no memory") && text.contains("1.0.0 goes on"), "{text}");
    }

    #[test]
    fn a_daemon_without_upgrades_is_told_from_one_that_refuses() {
        let failure = too_old(Failure::not_found("there is no such resource"));
        assert!(failure.exit == Exit::Unsupported && failure.message.contains("restart"), "{failure:?}");
        assert_eq!(too_old(Failure::conflict("in use")).exit, Exit::Conflict);
    }
}
