//! Routes that a laboratory has: faults on purpose. Elsewhere they answer that they are not supported.

use std::time::Duration;

use super::*;
use crate::wire::lab::{DiskCorrupt, DiskCorrupted, DiskFault, DiskSlow};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new()
        .routes(routes!(disk_faults))
        .routes(routes!(disk_pull))
        .routes(routes!(disk_push))
        .routes(routes!(disk_slow))
        .routes(routes!(disk_corrupt))
}

/// Laboratory: the faults that are on. What was corrupted is not among them: it is done, and stays.
#[utoipa::path(get, path = "/v1/lab/disks", tag = "lab",
    responses((status = 200, body = [DiskFault]), (status = 501, body = ErrorBody)))]
async fn disk_faults(State(app): Shared) -> Answer<Vec<DiskFault>> {
    Ok(Json(app.faults()?.list()))
}

/// Laboratory: the disk answers every request with an error from now on, as if it were pulled.
#[utoipa::path(post, path = "/v1/lab/disks/{disk}/pull", tag = "lab", params(("disk" = String, Path)),
    responses((status = 200, body = [DiskInfo]), (status = 404, body = ErrorBody), (status = 501, body = ErrorBody)))]
async fn disk_pull(State(app): Shared, Path(disk): Path<String>) -> Answer<Vec<DiskInfo>> {
    set_pulled(app, disk, true).await
}

/// Laboratory: a pulled disk is back, with what it held, and the pool takes it in again.
#[utoipa::path(post, path = "/v1/lab/disks/{disk}/push", tag = "lab", params(("disk" = String, Path)),
    responses((status = 200, body = [DiskInfo]), (status = 404, body = ErrorBody), (status = 501, body = ErrorBody)))]
async fn disk_push(State(app): Shared, Path(disk): Path<String>) -> Answer<Vec<DiskInfo>> {
    set_pulled(app, disk, false).await
}

async fn set_pulled(app: Arc<Appliance>, disk: String, pulled: bool) -> Answer<Vec<DiskInfo>> {
    let disks = to_the_end(async move {
        let known = app.engine.status().await.disks;
        app.faults()?.set_pulled(&disk, &known, pulled)?;
        // The disk is pulled even if the pool cannot go on without it.
        match app.engine.rescan_disks().await {
            Err(e) if !pulled => return Err(e),
            _ => {}
        }
        Ok(app.engine.status().await.disks)
    });
    Ok(Json(disks.await?))
}

/// Laboratory: every request to the disk is late by so much from now on.
#[utoipa::path(post, path = "/v1/lab/disks/{disk}/slow", tag = "lab", params(("disk" = String, Path)),
    request_body = DiskSlow,
    responses((status = 200, body = DiskFault), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 501, body = ErrorBody)))]
async fn disk_slow(State(app): Shared, Path(disk): Path<String>, Body(request): Body<DiskSlow>) -> Answer<DiskFault> {
    let known = app.engine.status().await.disks;
    Ok(Json(app.faults()?.set_delay(&disk, &known, Duration::from_micros(request.delay_us))?))
}

/// Laboratory: random places of the disk are overwritten with random bytes, silently.
///
/// A block that the pool writes at the same moment may be lost, as on a drive that rots.
#[utoipa::path(post, path = "/v1/lab/disks/{disk}/corrupt", tag = "lab", params(("disk" = String, Path)),
    request_body = DiskCorrupt,
    responses((status = 200, body = DiskCorrupted), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 501, body = ErrorBody)))]
async fn disk_corrupt(
    State(app): Shared,
    Path(disk): Path<String>,
    Body(request): Body<DiskCorrupt>,
) -> Answer<DiskCorrupted> {
    let done = to_the_end(async move {
        let known = app.engine.status().await.disks;
        app.faults()?.corrupt(&disk, &known, &request).await
    });
    Ok(Json(done.await?))
}
