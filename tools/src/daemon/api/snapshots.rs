//! Routes about snapshots, clones, restoring and refreshing.

use std::time::{SystemTime, UNIX_EPOCH};

use blockdev::pool::Kept;
use blockdev::report::Changes;

use super::*;
use crate::daemon::quiesce::Take;
use crate::output::timestamp;
use crate::wire::snapshots::{
    CHANGES_MAX, ChangesQuery, CloneCreate, Keep, Snapshot, SnapshotCreate, SnapshotKeep, SnapshotQuery, VolumeRefresh,
    VolumeRestore,
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new()
        .routes(routes!(snapshots, snapshot_create))
        .routes(routes!(snapshot, snapshot_keep, snapshot_delete))
        .routes(routes!(snapshot_clone))
        .routes(routes!(volume_restore))
        .routes(routes!(volume_refresh))
        .routes(routes!(volume_changes))
}

/// All snapshots, or those of one volume, oldest first.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", params(SnapshotQuery),
    responses((status = 200, body = [Snapshot]), (status = 404, body = ErrorBody)))]
async fn snapshots(State(app): Shared, query: Result<Query<SnapshotQuery>, QueryRejection>) -> Answer<Vec<Snapshot>> {
    let Query(query) = query.map_err(|e| Error::invalid(format!("the query: {}", e.body_text())))?;
    let (all, objects) = (app.engine.snapshots(query.volume.as_deref()).await?, app.objects());
    Ok(Json(all.into_iter().map(|s| objects.snapshot(s)).collect()))
}

/// Takes snapshots, all of one instant.
#[utoipa::path(post, path = "/v1/snapshots", tag = "snapshots", request_body = SnapshotCreate,
    responses((status = 201, body = [Snapshot]), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn snapshot_create(
    State(app): Shared,
    origin: Origin,
    Body(request): Body<SnapshotCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let taken = to_the_end(async move {
        let SnapshotCreate { names, expires_in_s, secure, quiesce } = request;
        let kept = Kept { expires_in_s, secure, ..Kept::default() };
        let taken = app.take(&names, &kept, &quiesce, "").await?;
        for s in &taken {
            let message = format!("snapshot '{}' was taken", s.name);
            app.record(origin.of(told("snapshot.created", snapshot_object(&s.name), message)));
        }
        let objects = app.objects();
        Ok(taken.into_iter().map(|s| objects.snapshot(s)).collect::<Vec<_>>())
    });
    Ok((StatusCode::CREATED, Json(taken.await?)))
}

/// One snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{name}", tag = "snapshots", params(("name" = String, Path)),
    responses((status = 200, body = Snapshot), (status = 404, body = ErrorBody)))]
async fn snapshot(State(app): Shared, Path(name): Path<String>) -> Answer<Snapshot> {
    Ok(Json(app.objects().snapshot(app.engine.snapshot(&name).await?)))
}

/// Changes how long a snapshot is kept. One that is secure is kept no shorter than before.
#[utoipa::path(patch, path = "/v1/snapshots/{name}", tag = "snapshots", params(("name" = String, Path)),
    request_body = SnapshotKeep,
    responses((status = 200, body = Snapshot), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn snapshot_keep(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<SnapshotKeep>,
) -> Answer<Snapshot> {
    let kept = to_the_end(async move {
        let kept = app.engine.keep_snapshot(&name, request.expires_in_s, request.secure).await?;
        let until = kept.expires_s.map_or("for ever".into(), |s| format!("until {}", timestamp(s)));
        let message = format!("snapshot '{name}' is kept {until}{}", if kept.secure { ", secure" } else { "" });
        app.record(origin.of(told("snapshot.kept", snapshot_object(&name), message)));
        Ok(app.objects().snapshot(kept))
    });
    Ok(Json(kept.await?))
}

/// Deletes a snapshot that is not attached. Its space comes back in the background.
#[utoipa::path(delete, path = "/v1/snapshots/{name}", tag = "snapshots", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn snapshot_delete(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let deleted = to_the_end(async move {
        let _held = app.attachments.hold().await;
        app.engine.delete_snapshots(std::slice::from_ref(&name)).await?;
        let message = format!("snapshot '{name}' was deleted");
        app.record(origin.of(told("snapshot.deleted", snapshot_object(&name), message)));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a volume that begins with what a snapshot holds.
#[utoipa::path(post, path = "/v1/snapshots/{name}/clones", tag = "snapshots", params(("name" = String, Path)),
    request_body = CloneCreate,
    responses((status = 201, body = Volume), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn snapshot_clone(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<CloneCreate>,
) -> Result<impl IntoResponse, ApiError> {
    check_name("volume", &request.name)?;
    let info = to_the_end(async move {
        let info = app.engine.clone_snapshot(&name, &request.name).await?;
        let message = format!("volume '{}' was cloned from '{name}'", info.name);
        app.record(origin.of(told("volume.cloned", volume_object(&info.name), message).detail("snapshot", &*name)));
        Ok(info)
    });
    Ok((StatusCode::CREATED, Json(Volume::new(info.await?))))
}

/// Gives a volume the content and size that a snapshot holds. The volume must not be attached.
#[utoipa::path(post, path = "/v1/volumes/{name}/restore", tag = "snapshots", params(("name" = String, Path)),
    request_body = VolumeRestore,
    responses((status = 200, body = Volume), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn volume_restore(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<VolumeRestore>,
) -> Answer<Volume> {
    let VolumeRestore { snapshot, keep } = request;
    exchange(app, origin, (name, snapshot), keep, Exchange::Restore).await
}

/// Gives a volume the content and size that a related one has now: a clone that of its parent, or the other way round. The volume must not
/// be attached.
#[utoipa::path(post, path = "/v1/volumes/{name}/refresh", tag = "snapshots", params(("name" = String, Path)),
    request_body = VolumeRefresh,
    responses((status = 200, body = Volume), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn volume_refresh(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<VolumeRefresh>,
) -> Answer<Volume> {
    let VolumeRefresh { from, keep } = request;
    exchange(app, origin, (name, from), keep, Exchange::Refresh).await
}

/// Why a volume takes another content.
#[derive(Clone, Copy)]
enum Exchange {
    Restore,
    Refresh,
}

/// Gives a volume the content of another version, while nothing begins to be presented or ends.
async fn exchange(
    app: Arc<Appliance>,
    origin: Origin,
    (name, from): (String, String),
    keep: Keep,
    why: Exchange,
) -> Answer<Volume> {
    let volume = to_the_end(async move {
        let (kind, done, kept) = match why {
            Exchange::Restore => ("volume.restored", "restored", "before-restore"),
            Exchange::Refresh => ("volume.refreshed", "refreshed", "before-refresh"),
        };
        let keep = kept_as(&keep, kept);
        let held = app.attachments.hold().await;
        match why {
            Exchange::Restore => app.engine.restore_volume(&name, &from, keep.as_deref()).await?,
            Exchange::Refresh => app.engine.refresh_volume(&name, &from, keep.as_deref()).await?,
        };
        let message = format!("volume '{name}' was {done} from '{from}'{}", kept_in(&name, &keep));
        app.record(origin.of(told(kind, volume_object(&name), message)));
        drop(held);
        app.volume(&name).await
    });
    Ok(Json(volume.await?))
}

/// What differs between a volume, or snapshot, and another one that it has an ancestor in common with. Costs as much as was changed, whatever the size.
#[utoipa::path(get, path = "/v1/volumes/{name}/changes", tag = "snapshots", params(("name" = String, Path), ChangesQuery),
    responses((status = 200, body = Changes), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn volume_changes(
    State(app): Shared,
    Path(name): Path<String>,
    query: Result<Query<ChangesQuery>, QueryRejection>,
) -> Answer<Changes> {
    let Query(query) = query.map_err(|e| Error::invalid(format!("the query: {}", e.body_text())))?;
    let limit = query.limit.unwrap_or(CHANGES_MAX).clamp(1, CHANGES_MAX);
    Ok(Json(app.engine.changes(&name, &query.since, query.offset.unwrap_or(0), limit).await?))
}

fn snapshot_object(name: &str) -> String {
    format!("snapshot/{name}")
}

/// The name of the snapshot that keeps what a volume was.
pub(super) fn kept_as(keep: &Keep, why: &str) -> Option<String> {
    match keep {
        Keep::Nothing => None,
        Keep::As(name) => Some(name.clone()),
        Keep::Named => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let now: String = timestamp(since.as_secs()).chars().filter(|c| *c != '-' && *c != ':').collect();
            Some(format!("{why}-{}-{:03}", now.replace(' ', "-"), since.subsec_millis()))
        }
    }
}

pub(super) fn kept_in(volume: &str, keep: &Option<String>) -> String {
    keep.as_ref().map_or(String::new(), |keep| format!("; what it was is '{volume}@{keep}'"))
}
