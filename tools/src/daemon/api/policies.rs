//! Routes about rules and policies.

use super::*;
use crate::daemon::protection::runner::run_policy;
use crate::wire::protection::{Policy, PolicyChoice, PolicySpec, Rule, RuleSpec};
use crate::wire::snapshots::Snapshot;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Appliance>> {
    OpenApiRouter::new()
        .routes(routes!(rules, rule_create))
        .routes(routes!(rule, rule_change, rule_delete))
        .routes(routes!(policies, policy_create))
        .routes(routes!(policy, policy_change, policy_delete))
        .routes(routes!(policy_run))
        .routes(routes!(volume_policy))
}

impl Appliance {
    /// When a rule is due next, if it applies to anything.
    fn next_of(&self) -> impl Fn(u32) -> Option<u64> + '_ {
        let duties = self.objects().duties();
        move |rule| {
            let duty = duties.iter().find(|d| d.rule == rule)?;
            self.runs.next_s(&duty.spec.schedule)
        }
    }
}

/// All rules, by name.
#[utoipa::path(get, path = "/v1/rules", tag = "protection", responses((status = 200, body = [Rule])))]
async fn rules(State(app): Shared) -> Json<Vec<Rule>> {
    Json(app.objects().rules(app.next_of()))
}

/// Makes a rule.
#[utoipa::path(post, path = "/v1/rules", tag = "protection", request_body = RuleSpec,
    responses((status = 201, body = Rule), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn rule_create(
    State(app): Shared,
    origin: Origin,
    Body(spec): Body<RuleSpec>,
) -> Result<impl IntoResponse, ApiError> {
    let rule = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().create_rule(&*app.engine, &spec).await?;
        app.record(origin.of(told(
            "rule.created",
            format!("rule/{}", spec.name),
            format!("rule '{}' was made", spec.name),
        )));
        app.objects().rule(&spec.name, app.next_of())
    });
    Ok((StatusCode::CREATED, Json(rule.await?)))
}

/// One rule.
#[utoipa::path(get, path = "/v1/rules/{name}", tag = "protection", params(("name" = String, Path)),
    responses((status = 200, body = Rule), (status = 404, body = ErrorBody)))]
async fn rule(State(app): Shared, Path(name): Path<String>) -> Answer<Rule> {
    Ok(Json(app.objects().rule(&name, app.next_of())?))
}

/// Changes a rule, also its name. Snapshots that are there keep the time at which they expire.
#[utoipa::path(put, path = "/v1/rules/{name}", tag = "protection", params(("name" = String, Path)), request_body = RuleSpec,
    responses((status = 200, body = Rule), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn rule_change(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(spec): Body<RuleSpec>,
) -> Answer<Rule> {
    let rule = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().change_rule(&*app.engine, &name, &spec).await?;
        app.record(origin.of(told(
            "rule.changed",
            format!("rule/{}", spec.name),
            format!("rule '{name}' was changed"),
        )));
        app.objects().rule(&spec.name, app.next_of())
    });
    Ok(Json(rule.await?))
}

/// Deletes a rule that is part of no policy.
#[utoipa::path(delete, path = "/v1/rules/{name}", tag = "protection", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn rule_delete(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let deleted = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().delete_rule(&*app.engine, &name).await?;
        app.record(origin.of(told("rule.deleted", format!("rule/{name}"), format!("rule '{name}' was deleted"))));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// All policies, by name.
#[utoipa::path(get, path = "/v1/policies", tag = "protection", responses((status = 200, body = [Policy])))]
async fn policies(State(app): Shared) -> Json<Vec<Policy>> {
    Json(app.objects().policies())
}

/// Makes a policy.
#[utoipa::path(post, path = "/v1/policies", tag = "protection", request_body = PolicySpec,
    responses((status = 201, body = Policy), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn policy_create(
    State(app): Shared,
    origin: Origin,
    Body(spec): Body<PolicySpec>,
) -> Result<impl IntoResponse, ApiError> {
    let policy = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().create_policy(&*app.engine, &spec).await?;
        let (object, message) = (policy_object(&spec.name), format!("policy '{}' was made", spec.name));
        app.record(origin.of(told("policy.created", object, message).detail("rules", spec.rules.join(" "))));
        app.objects().policy(&spec.name)
    });
    Ok((StatusCode::CREATED, Json(policy.await?)))
}

/// One policy.
#[utoipa::path(get, path = "/v1/policies/{name}", tag = "protection", params(("name" = String, Path)),
    responses((status = 200, body = Policy), (status = 404, body = ErrorBody)))]
async fn policy(State(app): Shared, Path(name): Path<String>) -> Answer<Policy> {
    Ok(Json(app.objects().policy(&name)?))
}

/// Changes a policy, also its name.
#[utoipa::path(put, path = "/v1/policies/{name}", tag = "protection", params(("name" = String, Path)),
    request_body = PolicySpec,
    responses((status = 200, body = Policy), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn policy_change(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(spec): Body<PolicySpec>,
) -> Answer<Policy> {
    let policy = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().change_policy(&*app.engine, &name, &spec).await?;
        let (object, message) = (policy_object(&spec.name), format!("policy '{name}' was changed"));
        app.record(origin.of(told("policy.changed", object, message).detail("rules", spec.rules.join(" "))));
        app.objects().policy(&spec.name)
    });
    Ok(Json(policy.await?))
}

/// Deletes a policy that nothing has.
#[utoipa::path(delete, path = "/v1/policies/{name}", tag = "protection", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn policy_delete(State(app): Shared, origin: Origin, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let deleted = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().delete_policy(&*app.engine, &name).await?;
        app.record(origin.of(told("policy.deleted", policy_object(&name), format!("policy '{name}' was deleted"))));
        Ok(())
    });
    deleted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes snapshots by all rules of a policy now, of everything that has it.
#[utoipa::path(post, path = "/v1/policies/{name}/run", tag = "protection", params(("name" = String, Path)),
    responses((status = 201, body = [Snapshot]), (status = 404, body = ErrorBody), (status = 507, body = ErrorBody)))]
async fn policy_run(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    let taken = to_the_end(async move {
        app.record(origin.of(told("policy.run", policy_object(&name), format!("policy '{name}' was asked to run"))));
        let taken = run_policy(&app, &name).await?;
        let objects = app.objects();
        Ok(taken.into_iter().map(|s| objects.snapshot(s)).collect::<Vec<_>>())
    });
    Ok((StatusCode::CREATED, Json(taken.await?)))
}

/// Gives a volume that is in no group a policy, or none.
#[utoipa::path(put, path = "/v1/volumes/{name}/policy", tag = "protection", params(("name" = String, Path)),
    request_body = PolicyChoice,
    responses((status = 200, body = Volume), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn volume_policy(
    State(app): Shared,
    origin: Origin,
    Path(name): Path<String>,
    Body(choice): Body<PolicyChoice>,
) -> Answer<Volume> {
    let volume = to_the_end(async move {
        let _turn = app.protection.lock().await;
        app.objects().assign(&*app.engine, &name, choice.policy.as_deref()).await?;
        app.record(origin.of(told("policy.assigned", volume_object(&name), chosen("volume", &name, &choice))));
        app.volume(&name).await
    });
    Ok(Json(volume.await?))
}

/// Which policy something has now, in a sentence.
pub(super) fn chosen(kind: &str, name: &str, choice: &PolicyChoice) -> String {
    match &choice.policy {
        Some(policy) => format!("{kind} '{name}' has policy '{policy}' now"),
        None => format!("{kind} '{name}' has no policy any more"),
    }
}

fn policy_object(name: &str) -> String {
    format!("policy/{name}")
}
