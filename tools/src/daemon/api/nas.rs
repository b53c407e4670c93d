//! Routes about file systems.

use super::snapshots::kept_as;
use super::*;
use crate::wire::nas::{
    FileSystem, FileSystemCheck, FileSystemClone, FileSystemCreate, FileSystemDelete, FileSystemResize,
    FileSystemRestore, SnapshotMount,
};
use crate::wire::protection::{GroupSnapshot, GroupSnapshotCreate};
use crate::wire::servers::FileSystemServer;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new()
        .routes(routes!(file_systems, file_system_create))
        .routes(routes!(file_system, file_system_resize, file_system_delete))
        .routes(routes!(file_system_check))
        .routes(routes!(file_system_mount))
        .routes(routes!(file_system_assign))
        .routes(routes!(file_system_snapshots, file_system_snapshot_create))
        .routes(routes!(file_system_restore))
        .routes(routes!(file_system_clone))
        .routes(routes!(file_system_snapshot_mount, file_system_snapshot_unmount))
}

/// All file systems, by name.
#[utoipa::path(get, path = "/v1/nas/filesystems", tag = "nas", responses((status = 200, body = [FileSystem])))]
async fn file_systems(State(app): Shared) -> Answer<Vec<FileSystem>> {
    Ok(Json(app.nas.all(&app).await?))
}

/// Makes a file system on two new volumes, and mounts it.
#[utoipa::path(post, path = "/v1/nas/filesystems", tag = "nas", request_body = FileSystemCreate,
    responses((status = 201, body = FileSystem), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 501, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn file_system_create(
    State(app): Shared,
    origin: Origin,
    Body(wanted): Body<FileSystemCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let made = to_the_end(async move {
        app.nas.create(&app, &wanted).await?;
        let message = format!("file system '{}' of {} was made", wanted.name, size(wanted.size));
        app.record(origin.of(told("fs.created", object(&wanted.name), message).detail("size", wanted.size)));
        app.nas.one(&app, &wanted.name).await
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

/// One file system.
#[utoipa::path(get, path = "/v1/nas/filesystems/{name}", tag = "nas", params(("name" = String, Path)),
    responses((status = 200, body = FileSystem), (status = 404, body = ErrorBody)))]
async fn file_system(State(app): Shared, Path(name): Path<String>) -> Answer<FileSystem> {
    Ok(Json(app.nas.one(&app, &name).await?))
}

/// Makes a file system larger, while it is used.
#[utoipa::path(patch, path = "/v1/nas/filesystems/{name}", tag = "nas", params(("name" = String, Path)),
    request_body = FileSystemResize,
    responses((status = 200, body = FileSystem), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 501, body = ErrorBody)))]
async fn file_system_resize(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<FileSystemResize>,
) -> Answer<FileSystem> {
    let resized = to_the_end(async move {
        app.nas.resize(&app, &name, request.size).await?;
        let message = format!("file system '{name}' has {} now", size(request.size));
        app.record(origin.of(told("fs.resized", object(&name), message).detail("size", request.size)));
        app.nas.one(&app, &name).await
    });
    Ok(Json(resized.await?))
}

/// Deletes a file system and its volumes. One with snapshots, or with open files, is deleted if that was said.
#[utoipa::path(delete, path = "/v1/nas/filesystems/{name}", tag = "nas", params(("name" = String, Path), FileSystemDelete),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn file_system_delete(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    how: Result<Query<FileSystemDelete>, QueryRejection>,
) -> Result<StatusCode, ApiError> {
    let Query(how) = how.map_err(|e| Error::invalid(format!("the query: {}", e.body_text())))?;
    let deleted = to_the_end(async move {
        app.nas.delete(&app, &name, how.snapshots, how.force).await?;
        app.record(origin.of(told("fs.deleted", object(&name), format!("file system '{name}' was deleted"))));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Checks all metadata of a file system, while it is used. Nothing is changed.
#[utoipa::path(post, path = "/v1/nas/filesystems/{name}/check", tag = "nas", params(("name" = String, Path)),
    responses((status = 200, body = FileSystemCheck), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn file_system_check(State(app): Shared, Path(name): Path<String>) -> Answer<FileSystemCheck> {
    Ok(Json(to_the_end(async move { app.nas.check(&app, &name).await.map(Into::into) }).await?))
}

/// Mounts a file system that is not mounted or has failed.
#[utoipa::path(post, path = "/v1/nas/filesystems/{name}/mount", tag = "nas", params(("name" = String, Path)),
    responses((status = 200, body = FileSystem), (status = 404, body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn file_system_mount(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Answer<FileSystem> {
    let mounted = to_the_end(async move {
        app.nas.remount(&app, &name).await?;
        app.record(origin.of(told("fs.mounted", object(&name), format!("file system '{name}' was mounted"))));
        app.nas.one(&app, &name).await
    });
    Ok(Json(mounted.await?))
}

/// Gives a file system to a NAS server, or takes it from one.
#[utoipa::path(put, path = "/v1/nas/filesystems/{name}/server", tag = "nas", params(("name" = String, Path)),
    request_body = FileSystemServer,
    responses((status = 200, body = FileSystem), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn file_system_assign(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(request): Body<FileSystemServer>,
) -> Answer<FileSystem> {
    let assigned = to_the_end(async move {
        let message = match &request.server {
            Some(server) => format!("file system '{name}' belongs to NAS server '{server}'"),
            None => format!("file system '{name}' belongs to no NAS server"),
        };
        app.nas.assign(&app, &name, request.server).await?;
        app.record(origin.of(told("fs.assigned", object(&name), message)));
        app.nas.one(&app, &name).await
    });
    Ok(Json(assigned.await?))
}

/// Snapshots of a file system, oldest first.
#[utoipa::path(get, path = "/v1/nas/filesystems/{name}/snapshots", tag = "nas", params(("name" = String, Path)),
    responses((status = 200, body = [GroupSnapshot]), (status = 404, body = ErrorBody)))]
async fn file_system_snapshots(State(app): Shared, Path(name): Path<String>) -> Answer<Vec<GroupSnapshot>> {
    Ok(Json(app.nas.snapshots(&app, &name).await?))
}

/// Takes a snapshot of a file system, with all that was done before.
#[utoipa::path(post, path = "/v1/nas/filesystems/{name}/snapshots", tag = "nas", params(("name" = String, Path)),
    request_body = GroupSnapshotCreate,
    responses((status = 201, body = GroupSnapshot), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn file_system_snapshot_create(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(wanted): Body<GroupSnapshotCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let taken = to_the_end(async move {
        let message = format!("snapshot '{}' of file system '{name}' was taken", wanted.name);
        let taken = app.nas.take_snapshot(&app, &name, wanted).await?;
        app.record(origin.of(told("snapshot.created", object(&name), message)));
        Ok(taken)
    });
    Ok((StatusCode::CREATED, Json(taken.await?)))
}

/// Gives a file system the content of one of its snapshots.
#[utoipa::path(post, path = "/v1/nas/filesystems/{name}/snapshots/{snapshot}/restore", tag = "nas",
    params(("name" = String, Path), ("snapshot" = String, Path)), request_body = FileSystemRestore,
    responses((status = 200, body = FileSystem), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn file_system_restore(
    State(app): Shared,
    origin: Origin,
    Path((name, snapshot)): Path<(String, String)>,
    Body(request): Body<FileSystemRestore>,
) -> Answer<FileSystem> {
    let restored = to_the_end(async move {
        let keep = kept_as(&request.keep, "before-restore");
        app.nas.restore(&app, &name, &snapshot, keep.as_deref(), request.force).await?;
        let message = format!("file system '{name}' was restored from '{name}@{snapshot}'");
        app.record(origin.of(told("fs.restored", object(&name), message)));
        app.nas.one(&app, &name).await
    });
    Ok(Json(restored.await?))
}

/// Makes a file system from a snapshot of another one.
#[utoipa::path(post, path = "/v1/nas/filesystems/{name}/snapshots/{snapshot}/clones", tag = "nas",
    params(("name" = String, Path), ("snapshot" = String, Path)), request_body = FileSystemClone,
    responses((status = 201, body = FileSystem), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn file_system_clone(
    State(app): Shared,
    origin: Origin,
    Path((name, snapshot)): Path<(String, String)>,
    Body(wanted): Body<FileSystemClone>,
) -> Result<impl IntoResponse, ApiError> {
    let cloned = to_the_end(async move {
        app.nas.clone_from(&app, &name, &snapshot, &wanted.name).await?;
        let message = format!("file system '{}' was cloned from '{name}@{snapshot}'", wanted.name);
        app.record(origin.of(told("fs.cloned", object(&wanted.name), message)));
        app.nas.one(&app, &wanted.name).await
    });
    Ok((StatusCode::CREATED, Json(cloned.await?)))
}

/// Mounts a snapshot for reading, until it is unmounted or the daemon ends.
#[utoipa::path(post, path = "/v1/nas/filesystems/{name}/snapshots/{snapshot}/mount", tag = "nas",
    params(("name" = String, Path), ("snapshot" = String, Path)),
    responses((status = 200, body = SnapshotMount), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn file_system_snapshot_mount(
    State(app): Shared,
    Path((name, snapshot)): Path<(String, String)>,
) -> Answer<SnapshotMount> {
    let mounted = to_the_end(async move {
        let path = app.nas.mount_snapshot(&app, &name, &snapshot).await?;
        Ok(SnapshotMount { name: format!("{name}@{snapshot}"), path: path.display().to_string() })
    });
    Ok(Json(mounted.await?))
}

/// Unmounts a snapshot.
#[utoipa::path(delete, path = "/v1/nas/filesystems/{name}/snapshots/{snapshot}/mount", tag = "nas",
    params(("name" = String, Path), ("snapshot" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
async fn file_system_snapshot_unmount(
    State(app): Shared,
    Path((name, snapshot)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    to_the_end(async move { app.nas.unmount_snapshot(&app, &name, &snapshot).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn object(name: &str) -> String {
    format!("fs/{name}")
}
