//! `ashlar job`, and waiting for one with a progress bar.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Global;
use crate::client::Client;
use crate::exit::{CommandResult, Exit, Failure};
use crate::output::{Align, Table, interactive, pairs, percent, show, timestamp};
use crate::wire::{Job, JobState};

/// How often a waiting command asks.
const POLL: Duration = Duration::from_millis(150);

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Jobs since the daemon started
    #[command(visible_alias = "ls")]
    List,
    /// One job
    Show {
        /// Number of the job
        id: u64,
    },
    /// Wait for a job to end; the exit code is that of the job
    Wait {
        /// Number of the job
        id: u64,
    },
}

pub fn run(command: Command, global: &Global) -> CommandResult<Exit> {
    let client = global.client();
    match command {
        Command::List => {
            let jobs: Vec<Job> = super::talk(client.get("/v1/jobs"))?;
            show(global.output, &jobs, |jobs| table(jobs))?;
            Ok(Exit::Ok)
        }
        Command::Show { id } => {
            let job: Job = super::talk(client.get(&format!("/v1/jobs/{id}")))?;
            show(global.output, &job, describe)?;
            Ok(Exit::Ok)
        }
        Command::Wait { id } => {
            let job = super::talk(wait(&client, id))?;
            show(global.output, &job, describe)?;
            let clean = job.report.as_ref().is_none_or(|r| r.is_clean());
            Ok(if clean { Exit::Ok } else { Exit::Corrupt })
        }
    }
}

/// A bar, drawn when somebody watches.
pub fn bar() -> ProgressBar {
    let target = if interactive() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    if let Ok(style) = ProgressStyle::with_template("{msg}  [{bar:40}] {percent:>3} %  {elapsed} elapsed, {eta} left") {
        bar.set_style(style.progress_chars("#>-"));
    }
    bar
}

/// Waits until the job ends, with a bar when somebody watches; its error is ours.
pub async fn wait(client: &Client, id: u64) -> CommandResult<Job> {
    let bar = bar();
    loop {
        let job: Job = client.get(&format!("/v1/jobs/{id}")).await?;
        bar.set_message(job.kind.clone());
        bar.set_length(job.total);
        bar.set_position(job.done);
        if job.state != JobState::Running {
            bar.finish_and_clear();
            return match job.error {
                Some(error) => Err(Failure::from_body(error).context(job.kind)),
                None => Ok(job),
            };
        }
        tokio::time::sleep(POLL).await;
    }
}

fn state_word(state: JobState) -> &'static str {
    match state {
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
    }
}

fn table(jobs: &[Job]) -> String {
    let mut table = Table::new(&[
        ("ID", Align::Right),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("DONE", Align::Right),
        ("STARTED", Align::Left),
    ]);
    for job in jobs {
        let through = job.state == JobState::Succeeded;
        let done = format!("{} %", if through { 100 } else { percent(job.done, job.total) });
        table.row([job.id.to_string(), job.kind.clone(), state_word(job.state).into(), done, timestamp(job.started_s)]);
    }
    table.render(0)
}

fn describe(job: &Job) -> String {
    let mut lines = vec![
        ("job", job.id.to_string()),
        ("kind", job.kind.clone()),
        ("state", state_word(job.state).into()),
        ("progress", format!("{} of {} ({} %)", job.done, job.total, percent(job.done, job.total))),
        ("started", timestamp(job.started_s)),
    ];
    lines.extend(job.finished_s.map(|s| ("finished", timestamp(s))));
    lines.extend(job.error.as_ref().map(|e| ("error", e.message.clone())));
    let mut text = pairs(&lines, 0);
    if let Some(report) = &job.report {
        text.push_str(&super::pool::describe_check(report));
    }
    text
}
