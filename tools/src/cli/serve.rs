//! `ashlar serve`.

use std::path::PathBuf;
use std::sync::Arc;

use super::Global;
use crate::daemon::config::{Config, Flags, Machine, Sources};
use crate::daemon::upgrade::Upgrades;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::say_json;
use crate::wire::upgrade::Able;

const EXAMPLES: &str = "\
Examples:
  ashlar serve --config /etc/ashlar.toml
  ashlar serve --dir /srv/lab --memory 2G --log debug
  ashlar serve --config /etc/ashlar.toml --read-only   # too many drives are gone: copy off what is left

A configuration file:
  name = \"store\"                       # the pool's name
  disks = [\"/dev/sdb\", \"/dev/sdc\"]     # in any order: disks are known by their labels
  memory = \"4G\"                        # what the daemon may take: write buffer, caches, index, requests
  compression = \"zstd\"                 # zstd, lz4 or off, for new data
  recompress_after = 86400             # compress harder what has not changed for a day (zstd only); 0, the default: never

  [nbd]
  listen = \"0.0.0.0:10809\"             # TCP besides the unix socket
  tls_cert = \"server.pem\"
  tls_key = \"server.key\"
  tls_ca = \"clients.pem\"               # only clients with a certificate from here

  [fuse]
  mountpoint = \"/srv/volumes\"

Values are taken, later ones winning, from: defaults, the file, the environment (ASHLAR_MEMORY, ASHLAR_COMPRESSION,
ASHLAR_THREADS, ASHLAR_NBD_LISTEN, ASHLAR_LOG), options. `ashlar config show` tells each value and its origin.
SIGTERM or SIGINT stops the daemon: front ends are detached and the pool is closed.";

/// Run the daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Command {
    /// Configuration file; with --dir alone, DIR/ashlar.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// Leave the terminal's session (used by `lab`)
    #[arg(long, hide = true)]
    background: bool,
    /// Only say, as JSON, whether this program could serve with these arguments (what an upgrade asks a new program)
    #[arg(long, hide = true)]
    check: bool,
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    if command.check {
        load(command.config.as_deref(), &command.flags, global)?;
        let formats = vec![blockdev::format::FORMAT_VERSION];
        say_json(&Able { version: env!("CARGO_PKG_VERSION").into(), formats })?;
        return Ok(Exit::Ok);
    }
    let upgrades = Arc::new(Upgrades::here());
    let ended = serve(&command, global, &upgrades);
    if let Err(failure) = &ended {
        upgrades.fall_back(&failure.message);
    }
    ended.map(|()| Exit::Ok)
}

fn serve(command: &Command, global: &Global, upgrades: &Arc<Upgrades>) -> CommandResult {
    if command.background {
        match rustix::process::setsid() {
            // The successor of a daemon that has left it leads one of its own.
            Ok(_) | Err(rustix::io::Errno::PERM) => {}
            Err(e) => return Err(Failure::other(format!("leaving the session: {e}"))),
        }
    }
    let config = load(command.config.as_deref(), &command.flags, global)?;
    Ok(crate::daemon::serve(&config, upgrades)?)
}

/// The configuration a daemon started now would use.
pub fn load(file: Option<&std::path::Path>, flags: &Flags, global: &Global) -> CommandResult<Config> {
    let sources = Sources {
        // A named file stands for itself: a directory from the environment must not bend its defaults.
        dir: if file.is_some() { None } else { global.dir.as_deref() },
        file,
        flags,
        env: &|name| std::env::var(name).ok(),
        machine: Machine::here(),
    };
    Ok(Config::load(&sources)?)
}
