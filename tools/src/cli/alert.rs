//! `ashlar alert`.

use super::Global;
use crate::exit::{CommandResult, Exit};
use crate::output::{Align, Table, show, timestamp};
use crate::wire::events::ActiveAlert;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// What is wrong now, most severe first, and since when
    ///
    /// `ashlar event list --kind alert` tells when each was raised and cleared, also of those that are over.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  ashlar alert list\n  ashlar alert list -o json | jq '.[] | select(.severity == \"critical\")'"
    )]
    List,
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    match command {
        Command::List => {
            let alerts: Vec<ActiveAlert> = super::talk(global.client().get("/v1/alerts"))?;
            show(global.output, &alerts, |alerts| table(alerts))?;
        }
    }
    Ok(Exit::Ok)
}

fn table(alerts: &[ActiveAlert]) -> String {
    if alerts.is_empty() {
        return "there are no alerts\n".into();
    }
    let mut table = Table::new(&[
        ("SEVERITY", Align::Left),
        ("SINCE", Align::Left),
        ("CODE", Align::Left),
        ("OBJECT", Align::Left),
        ("MESSAGE", Align::Left),
    ]);
    for ActiveAlert { alert, since_s, .. } in alerts {
        table.row([
            alert.severity.clone(),
            since_s.map_or_else(|| "now".into(), timestamp),
            alert.code.clone(),
            alert.object.clone(),
            alert.message.clone(),
        ]);
    }
    table.render(0)
}

#[cfg(test)]
mod tests {
    use blockdev::report::Alert;

    use super::*;

    #[test]
    fn alerts_are_listed_with_object_and_time() {
        let alert = Alert {
            severity: "critical".into(),
            code: "disk.failed".into(),
            object: "disk/3".into(),
            message: "disk 3 failed".into(),
        };
        let all = [
            ActiveAlert { alert: alert.clone(), since_s: Some(0), event: Some(4) },
            ActiveAlert { alert, since_s: None, event: None },
        ];
        let text = table(&all);
        assert!(text.contains("critical  1970-01-01 00:00:00Z  disk.failed  disk/3  disk 3 failed\n"), "{text}");
        assert!(text.contains("critical  now "), "{text}");
        assert_eq!(table(&[]), "there are no alerts\n");
    }
}
