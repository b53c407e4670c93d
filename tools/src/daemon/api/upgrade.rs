//! Routes by which another program takes the daemon's place.

use super::*;
use crate::wire::JobState;
use crate::wire::upgrade::{Upgrade, UpgradeRequest};

/// Jobs that go on after a restart by themselves.
const GO_ON: &[&str] = &["pool.rebuild", "pool.scrub"];

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new().routes(routes!(upgrade_last, upgrade))
}

/// The newest upgrade of this daemon and what came of it.
#[utoipa::path(get, path = "/v1/daemon/upgrade", tag = "daemon",
    responses((status = 200, body = Upgrade), (status = 404, body = ErrorBody)))]
async fn upgrade_last(State(app): Shared) -> Answer<Upgrade> {
    let none = || Error::new(ErrorKind::NotFound, "this daemon was not upgraded since it was started");
    Ok(Json(app.upgrades.last().ok_or_else(none)?))
}

/// Goes on with another program: it is checked, the daemon stops in order, and the program takes its place in the same process. Answers before that is done;
/// when the program cannot take over, nothing has changed. The same path read again tells what came of it.
#[utoipa::path(post, path = "/v1/daemon/upgrade", tag = "daemon", request_body = UpgradeRequest,
    responses((status = 202, body = Upgrade), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 501, body = ErrorBody)))]
async fn upgrade(
    State(app): Shared,
    origin: Origin,
    Body(request): Body<UpgradeRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let upgrade = to_the_end(async move {
        let _one_at_a_time = app.upgrading.lock().await;
        if *app.stopping.borrow() {
            return Err(Error::new(ErrorKind::Busy, "the daemon is stopping already"));
        }
        let ends = |job: &Job| job.state == JobState::Running && !GO_ON.contains(&job.kind.as_str());
        let jobs = app.jobs.list().into_iter().filter(ends).map(|job| job.kind).collect();
        let presented = app.attachments.all().await.into_values().collect();
        let prepared = app.upgrades.prepare(&request, presented, jobs, &app.state_dir).await;
        let upgrade = prepared.map_err(|e| e.context("the upgrade was not begun, nothing has changed"))?;
        let message = format!("version {} was asked to take over from {}", upgrade.to, upgrade.from);
        app.record(origin.of(told("daemon.upgrade", "daemon", message).detail("binary", &upgrade.binary)));
        app.upgrades.plan(upgrade.clone(), &app.state_dir);
        // Told to stop meanwhile, it stops.
        if app.stopping.send_replace(true) && app.upgrades.call_off() {
            return Err(Error::new(ErrorKind::Busy, "the daemon was told to stop"));
        }
        Ok(upgrade)
    });
    Ok((StatusCode::ACCEPTED, Json(upgrade.await?)))
}
