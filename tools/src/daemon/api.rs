//! The REST API, version 1. Every answer that is not 2xx carries an [`ErrorBody`].

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use blockdev::error::{Error, ErrorKind};
use blockdev::report::{DiskInfo, PoolStats, PoolStatus, Scrub, Severity};
use serde::de::DeserializeOwned;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::engine::{identity, open_new};
use super::events::origin::Origin;
use super::jobs::Outcome;
use super::known_disks;
use super::rescan::rescan;
use super::state::Appliance;
use crate::drives;
use crate::output::{size, tolerance_word};
use crate::values::{check_name, check_volume_size};
use crate::wire::drives::Drive;
use crate::wire::events::Event;
use crate::wire::{
    AttachRequest, Attachment, ConfigRow, Disk, DiskAdd, ErrorBody, Health, Job, PoolChange, Volume, VolumeCreate,
    VolumeDelete, VolumeReserve, VolumeResize,
};

mod events;
mod groups;
mod lab;
mod nas;
mod policies;
mod servers;
mod snapshots;
mod upgrade;

type Shared = State<Arc<Appliance>>;
type Answer<T> = Result<Json<T>, ApiError>;

/// An error on its way to the client.
pub struct ApiError(Error);

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// The HTTP status of an error.
pub fn status_of(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyExists | ErrorKind::Busy => StatusCode::CONFLICT,
        ErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::ReadOnly => StatusCode::FORBIDDEN,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Unavailable | ErrorKind::Fenced => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Io | ErrorKind::Corrupt => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let kind = self.0.kind();
        let status = status_of(kind);
        if status.is_server_error() {
            tracing::warn!(error = %self.0, ?kind, "request failed");
        }
        (status, Json(ErrorBody { kind, message: self.0.to_string() })).into_response()
    }
}

/// A JSON body; what is wrong with it is told as an [`ErrorBody`] too.
pub struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(ApiError(Error::invalid(format!("the request body: {}", rejection.body_text())))),
        }
    }
}

/// Runs a change to its end even when the client hangs up, which drops the handler's future half way.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(change).await.unwrap_or_else(|e| Err(Error::io(format!("the request ended unexpectedly: {e}"))))
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Ashlar",
    description = "Storage appliance: pool, volumes, attachments. Sizes are bytes. Errors are {kind, message}."
))]
struct Description;

/// Routes and their description.
pub fn router(appliance: Arc<Appliance>) -> (Router, utoipa::openapi::OpenApi) {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(health))
        .routes(routes!(config))
        .routes(routes!(pool_status, pool_change))
        .routes(routes!(pool_rebalance))
        .routes(routes!(pool_stats))
        .routes(routes!(pool_check))
        .routes(routes!(pool_damage))
        .routes(routes!(pool_scrub, pool_scrub_stop))
        .routes(routes!(disks, disk_add))
        .routes(routes!(disk_rescan))
        .routes(routes!(disks_available))
        .routes(routes!(disk, disk_remove))
        .routes(routes!(disk_keep))
        .routes(routes!(disk_give_up))
        .routes(routes!(volumes, volume_create))
        .routes(routes!(volume, volume_resize, volume_delete))
        .routes(routes!(volume_reserve))
        .routes(routes!(volume_attach, volume_detach))
        .routes(routes!(jobs))
        .routes(routes!(job))
        .merge(events::routes())
        .merge(groups::routes())
        .merge(lab::routes())
        .merge(nas::routes())
        .merge(servers::routes())
        .merge(policies::routes())
        .merge(snapshots::routes())
        .merge(upgrade::routes())
        .routes(routes!(shutdown))
        .with_state(appliance)
        .split_for_parts();
    let text = description.to_json().unwrap_or_else(|e| format!("{{\"error\":{:?}}}", e.to_string()));
    let document = move || {
        let text = text.clone();
        async move { ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text) }
    };
    let router = router
        .route("/v1/openapi.json", axum::routing::get(document))
        .fallback(|| async {
            ApiError(Error::new(ErrorKind::NotFound, "there is no such resource; see /v1/openapi.json"))
        })
        .method_not_allowed_fallback(|| async {
            let message = "the resource does not take this method; see /v1/openapi.json".into();
            let body = ErrorBody { kind: ErrorKind::Unsupported, message };
            (StatusCode::METHOD_NOT_ALLOWED, Json(body))
        });
    (router, description)
}

/// Whether the daemon serves.
#[utoipa::path(get, path = "/v1/health", tag = "daemon", responses((status = 200, body = Health)))]
async fn health(State(app): Shared) -> Json<Health> {
    let status = app.engine.status().await;
    Json(Health {
        status: if *app.stopping.borrow() { "stopping" } else { "ok" }.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        pool: status.name,
        pool_health: status.health,
    })
}

/// The configuration in effect and where each value came from.
#[utoipa::path(get, path = "/v1/config", tag = "daemon", responses((status = 200, body = [ConfigRow])))]
async fn config(State(app): Shared) -> Json<Vec<ConfigRow>> {
    Json(app.config.clone())
}

/// Stops the daemon: front ends are detached, the pool is closed. Answers before that is done.
#[utoipa::path(post, path = "/v1/shutdown", tag = "daemon", responses((status = 202, body = Health)))]
async fn shutdown(State(app): Shared, origin: Origin) -> impl IntoResponse {
    app.record(origin.of(told("daemon.shutdown", "daemon", "the daemon was asked to stop")));
    app.stopping.send_replace(true);
    (StatusCode::ACCEPTED, health(State(app)).await)
}

/// The pool at a glance.
#[utoipa::path(get, path = "/v1/pool", tag = "pool", responses((status = 200, body = PoolStatus)))]
async fn pool_status(State(app): Shared) -> Json<PoolStatus> {
    Json(app.status().await)
}

/// Changes how many failures the pool survives. What is stored follows in the background; `rebuild` of the status tells how far it is.
#[utoipa::path(patch, path = "/v1/pool", tag = "pool", request_body = PoolChange,
    responses((status = 202, body = PoolStatus), (status = 400, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn pool_change(
    State(app): Shared,
    origin: Origin,
    Body(request): Body<PoolChange>,
) -> Result<impl IntoResponse, ApiError> {
    let status = to_the_end(async move {
        app.engine.set_tolerance(request.tolerance).await?;
        let message = format!("the tolerance was asked to be {}", tolerance_word(request.tolerance));
        app.record(origin.of(told("pool.set_tolerance", "pool", message)));
        Ok(app.status().await)
    });
    Ok((StatusCode::ACCEPTED, Json(status.await?)))
}

/// Begins to spread data evenly over the drives; `rebuild` of the status tells how far it is.
#[utoipa::path(post, path = "/v1/pool/rebalance", tag = "pool", responses((status = 202, body = PoolStatus)))]
async fn pool_rebalance(State(app): Shared, origin: Origin) -> Result<impl IntoResponse, ApiError> {
    app.engine.rebalance().await?;
    app.record(origin.of(told("pool.rebalance", "pool", "data was asked to be spread evenly")));
    Ok((StatusCode::ACCEPTED, Json(app.status().await)))
}

/// Counters since the pool was opened.
#[utoipa::path(get, path = "/v1/pool/stats", tag = "pool", responses((status = 200, body = PoolStats)))]
async fn pool_stats(State(app): Shared) -> Json<PoolStats> {
    Json(app.engine.stats().await)
}

/// Starts a check of the whole pool, read-only, as a job; gives the running one if there is one.
#[utoipa::path(post, path = "/v1/pool/check", tag = "pool", responses((status = 202, body = Job)))]
async fn pool_check(State(app): Shared) -> impl IntoResponse {
    let engine = app.engine.clone();
    let job = app.jobs.start("pool.check", |progress| async move { engine.check(progress).await.map(Outcome::Check) });
    (StatusCode::ACCEPTED, Json(job))
}

/// Begins a scrub of the whole pool, or lets the one that is running go on; `scrub` of the pool's status tells how far it is.
#[utoipa::path(post, path = "/v1/pool/scrub", tag = "pool", responses((status = 202, body = Scrub)))]
async fn pool_scrub(State(app): Shared, origin: Origin) -> Result<impl IntoResponse, ApiError> {
    let scrub = to_the_end(async move {
        let scrub = app.engine.start_scrub().await?;
        app.record(origin.of(told("pool.scrub", "pool", "a scrub was asked for")));
        Ok(scrub)
    });
    let scrub = scrub.await?;
    Ok((StatusCode::ACCEPTED, Json(scrub)))
}

/// Ends a scrub before it is through.
#[utoipa::path(delete, path = "/v1/pool/scrub", tag = "pool", responses((status = 200, body = Scrub)))]
async fn pool_scrub_stop(State(app): Shared, origin: Origin) -> Answer<Scrub> {
    let scrub = to_the_end(async move {
        let scrub = app.engine.stop_scrub().await?;
        app.record(origin.of(told("pool.scrub_stop", "pool", "the scrub was asked to stop")));
        Ok(scrub)
    });
    Ok(Json(scrub.await?))
}

/// Starts a search for what cannot be read, as a job; gives the running one if there is one.
#[utoipa::path(post, path = "/v1/pool/damage", tag = "pool", responses((status = 202, body = Job)))]
async fn pool_damage(State(app): Shared) -> impl IntoResponse {
    let engine = app.engine.clone();
    let job =
        app.jobs.start("pool.damage", |progress| async move { engine.damage(progress).await.map(Outcome::Damage) });
    (StatusCode::ACCEPTED, Json(job))
}

/// The drives of the pool, and what they tell about their health.
#[utoipa::path(get, path = "/v1/disks", tag = "pool", responses((status = 200, body = [Disk])))]
async fn disks(State(app): Shared) -> Json<Vec<Disk>> {
    Json(app.engine.status().await.disks.into_iter().map(|info| app.disk(info)).collect())
}

/// Drives of the machine that are not of the pool: those it could be given, and what the others hold.
#[utoipa::path(get, path = "/v1/disks/available", tag = "pool", responses((status = 200, body = [Drive])))]
async fn disks_available(State(app): Shared) -> Answer<Vec<Drive>> {
    let disks = app.engine.status().await.disks;
    let look = move || {
        let ours: Vec<_> = disks.iter().filter_map(|d| identity(std::path::Path::new(&d.path))).collect();
        let is_ours = |path: &std::path::Path| identity(path).is_some_and(|identity| ours.contains(&identity));
        drives::all(&drives::System::default(), &is_ours)
    };
    let found = tokio::task::spawn_blocking(look).await;
    Ok(Json(found.map_err(|e| Error::io(format!("looking at the drives: {e}")))?))
}

/// Adds a drive to the pool. New data goes to it at once; what is there is spread over all drives in the background.
#[utoipa::path(post, path = "/v1/disks", tag = "pool", request_body = DiskAdd,
    responses((status = 201, body = DiskInfo), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn disk_add(
    State(app): Shared,
    origin: Origin,
    Body(request): Body<DiskAdd>,
) -> Result<impl IntoResponse, ApiError> {
    let path = PathBuf::from(&request.path);
    if !path.is_absolute() {
        return Err(Error::invalid(format!("'{}' is not an absolute path", request.path)).into());
    }
    let info = to_the_end(async move {
        // A disk that was removed, or that the pool could not use, may be open still.
        if app.engine.release_disk(&path) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("{} is a disk of the pool already", path.display()),
            ));
        }
        if let Some(faults) = &app.faults {
            faults.forget(&path);
        }
        let (disk, drive) = open_new(&path, app.faults.is_some()).await?;
        let info = app.engine.add_disk(disk, request.force, request.replaces).await?;
        if let (Some(faults), Some(drive)) = (&app.faults, drive) {
            faults.add(drive);
        }
        let message = format!("disk {} ({}) of {} joined the pool", info.id, info.path, size(info.size));
        app.record(origin.of(told("disk.added", format!("disk/{}", info.id), message).detail("path", &info.path)));
        let (known, disks) = (known_disks::load(&app.state_dir), app.engine.status().await.disks);
        known_disks::keep(&app.state_dir, known, &disks);
        known_disks::keep_added(&app.state_dir, &disks, Some(&path));
        Ok(info)
    });
    Ok((StatusCode::CREATED, Json(info.await?)))
}

/// Looks for drives of the pool that failed or are missing, wherever they are now, and takes back those that answer.
#[utoipa::path(post, path = "/v1/disks/rescan", tag = "pool",
    responses((status = 200, body = [DiskInfo]), (status = 500, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn disk_rescan(State(app): Shared) -> Answer<Vec<DiskInfo>> {
    Ok(Json(to_the_end(async move { rescan(&app).await }).await?))
}

/// One drive.
#[utoipa::path(get, path = "/v1/disks/{id}", tag = "pool", params(("id" = u16, Path)),
    responses((status = 200, body = Disk), (status = 404, body = ErrorBody)))]
async fn disk(State(app): Shared, Path(id): Path<String>) -> Answer<Disk> {
    let id = disk_id(&id)?;
    let found = app.engine.status().await.disks.into_iter().find(|d| d.id == id);
    let missing = || Error::new(ErrorKind::NotFound, format!("there is no disk {id}; `ashlar disk list` shows them"));
    Ok(Json(app.disk(found.ok_or_else(missing)?)))
}

/// Begins to remove a drive: what lies on it moves to the others, then it is let go and its label is wiped.
#[utoipa::path(delete, path = "/v1/disks/{id}", tag = "pool", params(("id" = u16, Path)),
    responses((status = 202, body = DiskInfo), (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn disk_remove(
    State(app): Shared,
    origin: Origin,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let id = disk_id(&id)?;
    let info = to_the_end(async move {
        let info = app.engine.remove_disk(id).await?;
        let message = format!("disk {id} ({}) is to leave the pool", info.path);
        app.record(origin.of(told("disk.remove", format!("disk/{id}"), message)));
        Ok(info)
    });
    Ok((StatusCode::ACCEPTED, Json(info.await?)))
}

/// Calls the removal of a drive off: it takes data again. One that was declared failed is taken back.
#[utoipa::path(post, path = "/v1/disks/{id}/keep", tag = "pool", params(("id" = u16, Path)),
    responses((status = 200, body = DiskInfo), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn disk_keep(State(app): Shared, origin: Origin, Path(id): Path<String>) -> Answer<DiskInfo> {
    let id = disk_id(&id)?;
    let kept = async move {
        let info = app.engine.keep_disk(id).await?;
        let message = format!("disk {id} ({}) is to stay in the pool", info.path);
        app.record(origin.of(told("disk.keep", format!("disk/{id}"), message)));
        if !info.state.is_absent() {
            return Ok(info);
        }
        // It was declared failed, and is not open any more: perhaps it is found.
        let disks = rescan(&app).await?;
        Ok(disks.into_iter().find(|d| d.id == id).unwrap_or(info))
    };
    Ok(Json(to_the_end(kept).await?))
}

/// Declares a drive failed: what it held is rebuilt on the others at once. It stays out, also after a restart, until it is kept.
#[utoipa::path(post, path = "/v1/disks/{id}/fail", tag = "pool", params(("id" = u16, Path)),
    responses((status = 202, body = DiskInfo), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn disk_give_up(
    State(app): Shared,
    origin: Origin,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let id = disk_id(&id)?;
    let info = to_the_end(async move {
        let info = app.engine.fail_disk(id).await?;
        let message = format!("disk {id} ({}) was given up", info.path);
        app.record(origin.of(told("disk.fail", format!("disk/{id}"), message)));
        Ok(info)
    });
    Ok((StatusCode::ACCEPTED, Json(info.await?)))
}

/// An event about what somebody asked for.
fn told(kind: &str, object: impl Into<String>, message: impl Into<String>) -> Event {
    Event::new(Severity::Info, kind, object, message)
}

fn volume_object(name: &str) -> String {
    format!("volume/{name}")
}

fn disk_id(text: &str) -> Result<u16, Error> {
    text.parse()
        .map_err(|_| Error::invalid(format!("'{text}' is not the number of a disk; `ashlar disk list` shows them")))
}

/// All volumes, by name.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes", responses((status = 200, body = [Volume])))]
async fn volumes(State(app): Shared) -> Json<Vec<Volume>> {
    Json(app.volumes().await)
}

/// Makes a volume.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = VolumeCreate,
    responses((status = 201, body = Volume), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 507, body = ErrorBody)))]
async fn volume_create(
    State(app): Shared,
    origin: Origin,
    Body(request): Body<VolumeCreate>,
) -> Result<impl IntoResponse, ApiError> {
    check_name("volume", &request.name)?;
    check_volume_size(request.size)?;
    let info = to_the_end(async move {
        let info = app.engine.create_volume(&request.name, request.size, request.reserved.map(Into::into)).await?;
        let message = format!("volume '{}' of {} was made", info.name, size(info.size));
        app.record(origin.of(told("volume.created", volume_object(&info.name), message).detail("size", info.size)));
        Ok(info)
    });
    let info = info.await?;
    Ok((StatusCode::CREATED, Json(Volume::new(info))))
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    responses((status = 200, body = Volume), (status = 404, body = ErrorBody)))]
async fn volume(State(app): Shared, Path(name): Path<String>) -> Answer<Volume> {
    Ok(Json(app.volume(&name).await?))
}

/// Changes a volume's size, also while it is in use. Making it smaller must be asked for.
#[utoipa::path(patch, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path)),
    request_body = VolumeResize,
    responses((status = 200, body = Volume), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)))]
async fn volume_resize(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<VolumeResize>,
) -> Answer<Volume> {
    check_volume_size(request.size)?;
    let before = app.engine.volume_info(&name).await?.size;
    if request.size < before && !request.shrink {
        return Err(ApiError(Error::invalid(format!(
            "volume '{name}' has {before} bytes; making it smaller ({} bytes) drops the data beyond the new end for good: \
             ask for it with --shrink",
            request.size
        ))));
    }
    let volume = to_the_end(async move {
        let resized = app.attachments.resize(&name, request.size).await;
        // The volume may have its new size although what it is presented by does not.
        let now = app.engine.volume_info(&name).await?.size;
        if now != before {
            let message = format!("volume '{name}' has {} now (had {})", size(now), size(before));
            let event = told("volume.resized", volume_object(&name), message);
            app.record(origin.of(event.detail("size", now).detail("size_before", before)));
        }
        resized?;
        app.volume(&name).await
    });
    Ok(Json(volume.await?))
}

/// Reserves space for a volume: what it can write and overwrite whatever others do. Refused (507, `no_space`) when there is not enough.
#[utoipa::path(put, path = "/v1/volumes/{name}/reservation", tag = "volumes", params(("name" = String, Path)),
    request_body = VolumeReserve,
    responses((status = 200, body = Volume), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn volume_reserve(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<VolumeReserve>,
) -> Answer<Volume> {
    let volume = to_the_end(async move {
        let before = app.engine.volume_info(&name).await?.reserved;
        let now = app.engine.reserve_volume(&name, request.reserved.into()).await?.reserved;
        if now != before {
            let message = format!("{} are reserved for volume '{name}' now ({} were)", size(now), size(before));
            app.record(origin.of(told("volume.reserved", volume_object(&name), message).detail("reserved", now)));
        }
        app.volume(&name).await
    });
    Ok(Json(volume.await?))
}

/// Deletes a volume that is not attached. One with snapshots is deleted if they are to go as well.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "volumes", params(("name" = String, Path), VolumeDelete),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn volume_delete(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    query: Result<Query<VolumeDelete>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(query) = query.map_err(|e| Error::invalid(format!("the query: {}", e.body_text())))?;
    let deleted = to_the_end(async move {
        app.attachments.delete(&name, query.snapshots).await?;
        app.record(origin.of(told("volume.deleted", volume_object(&name), format!("volume '{name}' was deleted"))));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Presents a volume, by one protocol at a time. The same again changes nothing.
#[utoipa::path(put, path = "/v1/volumes/{name}/attachment", tag = "volumes", params(("name" = String, Path)),
    request_body = AttachRequest,
    responses((status = 200, body = Attachment), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 501, body = ErrorBody)))]
async fn volume_attach(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<AttachRequest>,
) -> Answer<Attachment> {
    let attachment = to_the_end(async move {
        let before = app.attachments.get(&name).await;
        let attachment = app.attachments.attach(&name, &request).await?;
        if before.as_ref() != Some(&attachment) {
            let message = format!("volume '{name}' is attached via {}: {}", attachment.via, attachment.target());
            app.record(origin.of(told("volume.attached", volume_object(&name), message)));
        }
        Ok(attachment)
    });
    Ok(Json(attachment.await?))
}

/// Ends the presentation of a volume.
#[utoipa::path(delete, path = "/v1/volumes/{name}/attachment", tag = "volumes", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn volume_detach(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let detached = to_the_end(async move {
        app.attachments.detach(&name).await?;
        app.record(origin.of(told("volume.detached", volume_object(&name), format!("volume '{name}' was detached"))));
        Ok(())
    });
    detached.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Jobs since the daemon started, oldest first; finished ones are forgotten after a while.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs", responses((status = 200, body = [Job])))]
async fn jobs(State(app): Shared) -> Json<Vec<Job>> {
    Json(app.jobs.list())
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{id}", tag = "jobs", params(("id" = u64, Path)),
    responses((status = 200, body = Job), (status = 404, body = ErrorBody)))]
async fn job(State(app): Shared, Path(id): Path<String>) -> Answer<Job> {
    let id = id.parse().map_err(|_| Error::invalid(format!("'{id}' is not the number of a job")))?;
    Ok(Json(app.jobs.get(id)?))
}

#[cfg(test)]
mod tests;
