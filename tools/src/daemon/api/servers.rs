//! Routes about NAS servers and what they export.

use super::*;
use crate::wire::servers::{ExportRules, NasExport, NasExportCreate, NasServer, NasServerCreate};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new()
        .routes(routes!(servers, server_create))
        .routes(routes!(server, server_delete))
        .routes(routes!(server_restart))
        .routes(routes!(all_exports))
        .routes(routes!(export_create))
        .routes(routes!(export_change, export_delete))
}

/// All NAS servers, by name.
#[utoipa::path(get, path = "/v1/nas/servers", tag = "nas", responses((status = 200, body = [NasServer])))]
async fn servers(State(app): Shared) -> Answer<Vec<NasServer>> {
    Ok(Json(app.servers.all(&app)))
}

/// Makes a NAS server with an address of its own, and starts it.
#[utoipa::path(post, path = "/v1/nas/servers", tag = "nas", request_body = NasServerCreate,
    responses((status = 201, body = NasServer), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 501, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn server_create(
    State(app): Shared,
    origin: Origin,
    Body(wanted): Body<NasServerCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let made = to_the_end(async move {
        app.servers.create(&app, &wanted).await?;
        let message = format!("NAS server '{}' with address {} was made", wanted.name, wanted.address);
        app.record(origin.of(told("nas.created", object(&wanted.name), message)));
        app.servers.one(&app, &wanted.name)
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

/// One NAS server.
#[utoipa::path(get, path = "/v1/nas/servers/{name}", tag = "nas", params(("name" = String, Path)),
    responses((status = 200, body = NasServer), (status = 404, body = ErrorBody)))]
async fn server(State(app): Shared, Path(name): Path<String>) -> Answer<NasServer> {
    Ok(Json(app.servers.one(&app, &name)?))
}

/// Deletes a NAS server that has neither exports nor file systems any more.
#[utoipa::path(delete, path = "/v1/nas/servers/{name}", tag = "nas", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn server_delete(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let deleted = to_the_end(async move {
        app.servers.delete(&app, &name).await?;
        app.record(origin.of(told("nas.deleted", object(&name), format!("NAS server '{name}' was deleted"))));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Stops a NAS server and starts it again. Clients wait meanwhile.
#[utoipa::path(post, path = "/v1/nas/servers/{name}/restart", tag = "nas", params(("name" = String, Path)),
    responses((status = 200, body = NasServer), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn server_restart(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Answer<NasServer> {
    let restarted = to_the_end(async move {
        app.servers.restart(&app, &name).await?;
        app.record(origin.of(told("nas.restarted", object(&name), format!("NAS server '{name}' was restarted"))));
        app.servers.one(&app, &name)
    });
    Ok(Json(restarted.await?))
}

/// What all NAS servers export.
#[utoipa::path(get, path = "/v1/nas/exports", tag = "nas", responses((status = 200, body = [NasExport])))]
async fn all_exports(State(app): Shared) -> Answer<Vec<NasExport>> {
    Ok(Json(app.servers.exports(&app, None)?))
}

/// Exports a directory of a file system.
#[utoipa::path(post, path = "/v1/nas/servers/{name}/exports", tag = "nas", params(("name" = String, Path)),
    request_body = NasExportCreate,
    responses((status = 201, body = NasExport), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn export_create(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(wanted): Body<NasExportCreate>,
) -> Result<impl IntoResponse, ApiError> {
    let made = to_the_end(async move {
        let (path, fs) = (wanted.path.clone(), wanted.rules.file_system.clone());
        app.servers.create_export(&app, &name, wanted).await?;
        let message = format!("file system '{fs}' is exported as '{name}:{path}'");
        app.record(origin.of(told("export.created", object(&name), message)));
        app.servers.export(&app, &name, &path)
    });
    Ok((StatusCode::CREATED, Json(made.await?)))
}

/// Changes who may do what in an export.
#[utoipa::path(put, path = "/v1/nas/servers/{name}/exports/{*path}", tag = "nas",
    params(("name" = String, Path), ("path" = String, Path)), request_body = ExportRules,
    responses((status = 200, body = NasExport), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 501, body = ErrorBody)))]
async fn export_change(
    State(app): Shared,
    origin: Origin,
    Path((name, path)): Path<(String, String)>,
    Body(rules): Body<ExportRules>,
) -> Answer<NasExport> {
    let changed = to_the_end(async move {
        let path = format!("/{path}");
        app.servers.change_export(&app, &name, &path, rules).await?;
        let message = format!("who may do what in export '{name}:{path}' was changed");
        app.record(origin.of(told("export.changed", object(&name), message)));
        app.servers.export(&app, &name, &path)
    });
    Ok(Json(changed.await?))
}

/// Exports a directory no more. What it holds stays.
#[utoipa::path(delete, path = "/v1/nas/servers/{name}/exports/{*path}", tag = "nas",
    params(("name" = String, Path), ("path" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody)))]
async fn export_delete(
    State(app): Shared,
    origin: Origin,
    Path((name, path)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let deleted = to_the_end(async move {
        let path = format!("/{path}");
        app.servers.delete_export(&app, &name, &path).await?;
        let message = format!("export '{name}:{path}' was deleted");
        app.record(origin.of(told("export.deleted", object(&name), message)));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

fn object(name: &str) -> String {
    format!("nas/{name}")
}
