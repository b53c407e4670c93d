//! `ashlar config`.

use std::path::PathBuf;

use super::Global;
use crate::daemon::config::Flags;
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Table, show};
use crate::wire::ConfigRow;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Each value and where it comes from
    ///
    /// Without --config, asks the running daemon; if none runs in DIR, shows what one started there would use.
    #[command(
        after_help = "Examples:\n  ashlar config show --dir /srv/lab\n  ashlar config show --config /etc/ashlar.toml -o json"
    )]
    Show {
        /// Reads this file instead of asking a daemon
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    },
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let Command::Show { config, flags } = command;
    let running: Option<Vec<ConfigRow>> = match &config {
        Some(_) => None,
        None => match super::talk(global.client().get("/v1/config")) {
            Ok(rows) => Some(rows),
            // With a directory the file can be read instead; without one there is nothing else to show.
            Err(failure) if failure.exit == Exit::Unreachable && global.dir.is_some() => None,
            Err(failure) => return Err(failure),
        },
    };
    let rows = match running {
        Some(rows) => rows,
        None => super::serve::load(config.as_deref(), &flags, global)?.rows(),
    };
    show(global.output, &rows, |rows| {
        let mut table = Table::new(&[("KEY", Align::Left), ("VALUE", Align::Left), ("FROM", Align::Left)]);
        for row in rows {
            let value = if row.value.is_empty() { "-" } else { &row.value };
            table.row([row.key.as_str(), value, &row.origin]);
        }
        table.render(0)
    })?;
    Ok(Exit::Ok)
}
