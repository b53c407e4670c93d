//! Long work with progress, kept for a while after its end.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use blockdev::error::{Error, ErrorKind, Result};
use blockdev::report::{CheckReport, Damage};
use parking_lot::Mutex;

use super::engine::Progress;
use super::state::now_s;
use crate::wire::{ErrorBody, Job, JobState};

/// What a job that succeeded gives.
pub enum Outcome {
    /// Of a check.
    Check(CheckReport),
    /// Of a search for damage.
    Damage(Damage),
    /// Of work that gives nothing.
    Nothing,
}

/// Finished jobs that are remembered.
const FINISHED_MAX: usize = 64;

/// All jobs since the daemon started, the oldest finished ones forgotten.
#[derive(Default)]
pub struct Jobs {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    last_id: u64,
    jobs: BTreeMap<u64, Job>,
}

fn begun(id: u64, kind: &str) -> Job {
    let (kind, state, started_s) = (kind.to_owned(), JobState::Running, now_s());
    let (finished_s, report, damage, error) = (None, None, None, None);
    Job { id, kind, state, done: 0, total: 0, started_s, finished_s, report, damage, error }
}

impl Jobs {
    /// Starts `work` of this kind, unless one is running: then that one is given.
    pub fn start<F>(self: &Arc<Self>, kind: &str, work: impl FnOnce(Progress) -> F) -> Job
    where
        F: Future<Output = Result<Outcome>> + Send + 'static,
    {
        let job = {
            let mut table = self.table.lock();
            if let Some(running) = table.jobs.values().find(|j| j.kind == kind && j.state == JobState::Running) {
                return running.clone();
            }
            table.last_id += 1;
            let id = table.last_id;
            let job = begun(id, kind);
            table.jobs.insert(id, job.clone());
            job
        };
        let (jobs, id) = (self.clone(), job.id);
        let progress: Progress =
            Arc::new(move |done, total| jobs.change(id, |job| (job.done, job.total) = (done, total)));
        let task = tokio::spawn(work(progress));
        let jobs = self.clone();
        tokio::spawn(async move {
            // A panic inside the work is its failure, not that of the job's keeper.
            let ended = task.await.unwrap_or_else(|e| Err(Error::io(format!("the job ended unexpectedly: {e}"))));
            jobs.finish(id, ended);
        });
        job
    }

    /// Keeps a job for work that goes on by itself: `now` is what is done of how much, nothing when there is no such work.
    pub fn follow(&self, kind: &str, now: Option<(u64, u64)>) {
        let running = {
            let mut table = self.table.lock();
            let running = table.jobs.values().find(|j| j.kind == kind && j.state == JobState::Running).map(|j| j.id);
            if running.is_none() && now.is_some() {
                table.last_id += 1;
                let id = table.last_id;
                table.jobs.insert(id, begun(id, kind));
                Some(id)
            } else {
                running
            }
        };
        match (running, now) {
            (Some(id), Some((done, total))) => self.change(id, |job| (job.done, job.total) = (done, total)),
            (Some(id), None) => self.finish(id, Ok(Outcome::Nothing)),
            (None, _) => {}
        }
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.table.lock().jobs.get_mut(&id) {
            change(job);
        }
    }

    fn finish(&self, id: u64, ended: Result<Outcome>) {
        self.change(id, |job| {
            job.finished_s = Some(now_s());
            match ended {
                Ok(outcome) => {
                    job.state = JobState::Succeeded;
                    job.done = job.total.max(job.done);
                    match outcome {
                        Outcome::Check(report) => job.report = Some(report),
                        Outcome::Damage(damage) => job.damage = Some(damage),
                        Outcome::Nothing => {}
                    }
                }
                Err(e) => {
                    tracing::warn!(job = id, kind = job.kind, error = %e, "job failed");
                    job.state = JobState::Failed;
                    job.error = Some(ErrorBody { kind: e.kind(), message: e.to_string() });
                }
            }
        });
        let mut table = self.table.lock();
        let finished: Vec<u64> = table.jobs.values().filter(|j| j.state != JobState::Running).map(|j| j.id).collect();
        for id in finished.iter().take(finished.len().saturating_sub(FINISHED_MAX)) {
            table.jobs.remove(id);
        }
    }

    /// All jobs, oldest first.
    pub fn list(&self) -> Vec<Job> {
        self.table.lock().jobs.values().cloned().collect()
    }

    /// One job.
    pub fn get(&self, id: u64) -> Result<Job> {
        let found = self.table.lock().jobs.get(&id).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no job {id}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ended(jobs: &Jobs, id: u64) -> Job {
        loop {
            let job = jobs.get(id).unwrap();
            if job.state != JobState::Running {
                return job;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_job_shows_progress_and_result() {
        let jobs = Arc::new(Jobs::default());
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let (told, heard) = tokio::sync::oneshot::channel::<()>();
        let job = jobs.start("pool.check", |progress| async move {
            progress(3, 10);
            told.send(()).unwrap();
            wait.await.unwrap();
            Ok(Outcome::Check(CheckReport { volumes: 2, ..CheckReport::default() }))
        });
        heard.await.unwrap();
        let seen = jobs.get(job.id).unwrap();
        assert_eq!((seen.done, seen.total, seen.state), (3, 10, JobState::Running));
        let same = jobs.start("pool.check", |_| async { Err(Error::io("not run")) });
        assert_eq!(same.id, job.id);
        go.send(()).unwrap();
        let job = ended(&jobs, job.id).await;
        assert_eq!((job.state, job.done), (JobState::Succeeded, 10));
        assert_eq!(job.report.unwrap().volumes, 2);
        assert!(job.finished_s.is_some());
    }

    #[test]
    fn work_that_goes_on_by_itself_has_a_job_while_it_does() {
        let jobs = Jobs::default();
        jobs.follow("pool.rebuild", None);
        assert!(jobs.list().is_empty());
        jobs.follow("pool.rebuild", Some((1, 10)));
        jobs.follow("pool.rebuild", Some((4, 12)));
        let seen = jobs.list();
        assert_eq!((seen.len(), seen[0].done, seen[0].total, seen[0].state), (1, 4, 12, JobState::Running));
        jobs.follow("pool.rebuild", None);
        assert_eq!(jobs.get(seen[0].id).unwrap().state, JobState::Succeeded);
        jobs.follow("pool.rebuild", Some((0, 5)));
        assert_eq!(jobs.list().len(), 2);
    }

    #[tokio::test]
    async fn failures_and_panics_are_told() {
        let jobs = Arc::new(Jobs::default());
        let job = jobs.start("a", |_| async { Err(Error::corrupt("bad page")) });
        let job = ended(&jobs, job.id).await;
        assert_eq!(job.error.unwrap().message, "bad page");
        let job = jobs.start("b", |_| async { panic!("boom") });
        assert_eq!(ended(&jobs, job.id).await.state, JobState::Failed);
        assert_eq!(jobs.get(99).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn old_jobs_are_forgotten() {
        let jobs = Arc::new(Jobs::default());
        for _ in 0..FINISHED_MAX + 5 {
            let job = jobs.start("a", |_| async { Ok(Outcome::Check(CheckReport::default())) });
            ended(&jobs, job.id).await;
        }
        assert!(jobs.list().len() <= FINISHED_MAX + 1);
        assert!(jobs.get(1).is_err());
    }
}
