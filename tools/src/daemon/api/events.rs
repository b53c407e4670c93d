//! Routes about what happened and what is wrong now.

use std::time::{Duration, Instant};

use super::*;
use crate::wire::events::{ActiveAlert, EventPage, EventQuery, WAIT_MAX_S};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new().routes(routes!(events)).routes(routes!(alerts))
}

/// What happened, oldest first: the newest events, or with `after` those that follow one. With `wait_s` an empty answer waits for an event, so
/// that asking again with the `next` of the last answer follows all there are.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(EventQuery),
    responses((status = 200, body = EventPage), (status = 400, body = ErrorBody)))]
async fn events(State(app): Shared, query: Result<Query<EventQuery>, QueryRejection>) -> Answer<EventPage> {
    let Query(query) = query.map_err(|e| Error::invalid(format!("the query: {}", e.body_text())))?;
    let end = Instant::now() + Duration::from_secs(query.wait_s.unwrap_or(0).min(WAIT_MAX_S));
    let (mut newest, mut stopping) = (app.events.subscribe(), app.stopping.subscribe());
    loop {
        newest.mark_unchanged();
        let page = app.events.page(&query);
        if !page.events.is_empty() || Instant::now() >= end {
            return Ok(Json(page));
        }
        tokio::select! {
            _ = newest.changed() => {}
            // Whoever waits must not keep the daemon from stopping.
            _ = stopping.wait_for(|stop| *stop) => return Ok(Json(app.events.page(&query))),
            () = tokio::time::sleep_until(end.into()) => {}
        }
    }
}

/// What is wrong now, most severe first, and since when. `/v1/events` has when each was raised and cleared.
#[utoipa::path(get, path = "/v1/alerts", tag = "events", responses((status = 200, body = [ActiveAlert])))]
async fn alerts(State(app): Shared) -> Json<Vec<ActiveAlert>> {
    Json(app.active_alerts().await)
}
