//! Routes about groups of volumes.

use blockdev::pool::Kept;

use super::policies::chosen;
use super::snapshots::{kept_as, kept_in};
use super::*;
use crate::daemon::nas::owns_group;
use crate::daemon::quiesce::Take;
use crate::wire::protection::{
    Group, GroupChange, GroupClone, GroupCreate, GroupRestore, GroupSnapshot, GroupSnapshotCreate,
};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new()
        .routes(routes!(groups, group_create))
        .routes(routes!(group, group_change, group_delete))
        .routes(routes!(group_snapshots, group_snapshot_create))
        .routes(routes!(group_snapshot_delete))
        .routes(routes!(group_restore))
        .routes(routes!(group_clone))
}

impl Appliance {
    async fn group(&self, name: &str) -> Result<Group, Error> {
        self.objects().group(name, &self.engine.snapshots(None).await?)
    }
}

/// All groups, by name.
#[utoipa::path(get, path = "/v1/groups", tag = "protection", responses((status = 200, body = [Group])))]
async fn groups(State(app): Shared) -> Answer<Vec<Group>> {
    Ok(Json(app.objects().groups(&app.engine.snapshots(None).await?)))
}

/// Makes a group of volumes.
#[utoipa::path(post, path = "/v1/groups", tag = "protection", request_body = GroupCreate,
    responses((status = 201, body = Group), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn group_create(
    State(app): Shared,
    origin: Origin,
    Body(wanted): Body<GroupCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let group = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().create_group(&*app.engine, &wanted).await?;
        let message = format!("group '{}' of {} volumes was made", wanted.name, wanted.volumes.len());
        let event = told("group.created", group_object(&wanted.name), message);
        app.record(origin.of(event.detail("volumes", wanted.volumes.join(" "))));
        app.group(&wanted.name).await
    });
    Ok((StatusCode::CREATED, Json(group.await?)))
}

/// One group.
#[utoipa::path(get, path = "/v1/groups/{name}", tag = "protection", params(("name" = String, Path)),
    responses((status = 200, body = Group), (status = 404, body = ErrorBody)))]
async fn group(State(app): Shared, Path(name): Path<String>) -> Answer<Group> {
    Ok(Json(app.group(&name).await?))
}

/// Puts volumes into a group, takes others out, gives it a policy: all at once.
#[utoipa::path(patch, path = "/v1/groups/{name}", tag = "protection", params(("name" = String, Path)),
    request_body = GroupChange,
    responses((status = 200, body = Group), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn group_change(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(change): Body<GroupChange>,
) -> Answer<Group> {
    let group = to_the_end(async move {
        let _turn = app.protection.lock().await;
        if !change.add.is_empty() || !change.remove.is_empty() {
            refuse_owned(&app, &name)?;
        }
        app.objects().change_group(&*app.engine, &name, &change).await?;
        if !change.add.is_empty() || !change.remove.is_empty() {
            let event = told("group.changed", group_object(&name), format!("group '{name}' was changed"));
            let event = event.detail("added", change.add.join(" ")).detail("removed", change.remove.join(" "));
            app.record(origin.of(event));
        }
        if let Some(choice) = &change.policy {
            app.record(origin.of(told("policy.assigned", group_object(&name), chosen("group", &name, choice))));
        }
        app.group(&name).await
    });
    Ok(Json(group.await?))
}

/// Deletes a group. Its volumes stay, and their snapshots.
#[utoipa::path(delete, path = "/v1/groups/{name}", tag = "protection", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
async fn group_delete(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let deleted = to_the_end(async move {
        let _turn = app.protection.lock().await;
        refuse_owned(&app, &name)?;
        app.objects().delete_group(&*app.engine, &name).await?;
        app.record(origin.of(told("group.deleted", group_object(&name), format!("group '{name}' was deleted"))));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Snapshots of a group, oldest first.
#[utoipa::path(get, path = "/v1/groups/{name}/snapshots", tag = "protection", params(("name" = String, Path)),
    responses((status = 200, body = [GroupSnapshot]), (status = 404, body = ErrorBody)))]
async fn group_snapshots(State(app): Shared, Path(name): Path<String>) -> Answer<Vec<GroupSnapshot>> {
    Ok(Json(app.objects().group_snapshots(&name, &app.engine.snapshots(None).await?)?))
}

/// Takes a snapshot of all volumes of a group, of one instant.
#[utoipa::path(post, path = "/v1/groups/{name}/snapshots", tag = "protection", params(("name" = String, Path)),
    request_body = GroupSnapshotCreate,
    responses((status = 201, body = GroupSnapshot), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn group_snapshot_create(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(wanted): Body<GroupSnapshotCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let taken = to_the_end(async move {
        let GroupSnapshotCreate { name: snapshot, expires_in_s, secure, quiesce } = wanted;
        let kept = Kept { expires_in_s, secure, ..Kept::default() };
        let all = app.engine.snapshots(None).await?;
        let (names, kept) = app.objects().group_names(&name, &snapshot, kept, &all)?;
        app.take(&names, &kept, &quiesce, "").await?;
        let message = format!("snapshot '{snapshot}' of group '{name}' was taken");
        app.record(origin.of(told("snapshot.created", group_object(&name), message)));
        app.objects().group_snapshot(&name, &snapshot, &app.engine.snapshots(None).await?)
    });
    Ok((StatusCode::CREATED, Json(taken.await?)))
}

/// Deletes the snapshots of one name that were taken of a group: all or none.
#[utoipa::path(delete, path = "/v1/groups/{name}/snapshots/{snapshot}", tag = "protection",
    params(("name" = String, Path), ("snapshot" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn group_snapshot_delete(
    State(app): Shared,
    origin: Origin,
    Path((name, snapshot)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let deleted = to_the_end(async move {
        let _turn = app.protection.lock().await;
        let _held = app.attachments.hold().await;
        let found = app.objects().group_snapshot(&name, &snapshot, &app.engine.snapshots(None).await?)?;
        app.engine.delete_snapshots(&found.snapshots).await?;
        let message = format!("snapshot '{snapshot}' of group '{name}' was deleted");
        app.record(origin.of(told("snapshot.deleted", group_object(&name), message)));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Gives all volumes of a group the content of one of its snapshots: all of them, or none. None may be attached.
#[utoipa::path(post, path = "/v1/groups/{name}/snapshots/{snapshot}/restore", tag = "protection",
    params(("name" = String, Path), ("snapshot" = String, Path)), request_body = GroupRestore,
    responses((status = 200, body = Group), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn group_restore(
    State(app): Shared,
    origin: Origin,
    Path((name, snapshot)): Path<(String, String)>,
    Body(request): Body<GroupRestore>,
) -> Answer<Group> {
    let group = to_the_end(async move {
        let _turn = app.protection.lock().await;
        let keep = kept_as(&request.keep, "before-restore");
        let _held = app.attachments.hold().await;
        app.objects().restore_group(&*app.engine, &name, &snapshot, keep.as_deref()).await?;
        let message = format!("group '{name}' was restored from '{name}@{snapshot}'{}", kept_in(&name, &keep));
        app.record(origin.of(told("group.restored", group_object(&name), message)));
        app.group(&name).await
    });
    Ok(Json(group.await?))
}

/// Makes a group of clones from a snapshot of a group.
#[utoipa::path(post, path = "/v1/groups/{name}/snapshots/{snapshot}/clones", tag = "protection",
    params(("name" = String, Path), ("snapshot" = String, Path)), request_body = GroupClone,
    responses((status = 201, body = Group), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn group_clone(
    State(app): Shared,
    origin: Origin,
    Path((name, snapshot)): Path<(String, String)>,
    Body(wanted): Body<GroupClone>,
) -> Result<impl IntoResponse, ApiError> {
    let group = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().clone_group(&*app.engine, &name, &snapshot, &wanted).await?;
        let message = format!("group '{}' was cloned from '{name}@{snapshot}'", wanted.name);
        app.record(origin.of(told("group.cloned", group_object(&wanted.name), message)));
        app.group(&wanted.name).await
    });
    Ok((StatusCode::CREATED, Json(group.await?)))
}

/// Fails for the group of a file system: its volumes belong together.
fn refuse_owned(app: &Appliance, group: &str) -> Result<(), Error> {
    if !owns_group(&*app.engine, group) {
        return Ok(());
    }
    let text = format!("group '{group}' is that of file system '{group}': see ashlar nas fs --help");
    Err(Error::new(ErrorKind::Busy, text))
}

fn group_object(name: &str) -> String {
    format!("group/{name}")
}
