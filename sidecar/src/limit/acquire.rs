//! `POST /v1/limits/RESOURCE/acquire`: an application asks whether it may go, for what is no request through the proxy.
//!
//! The query has `cost` (1), `key` (none) and `wait_ms` (0, at most 1000): how long it would rather wait than hear
//! no. Yes is a 200, no a 429 with the headers that a limited request has. Only for what is spent: a place that is
//! held would have to be given back by an application that may die.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use evenkeel_ratelimit::Fail;
use serde::Deserialize;

use super::{FIRST_WAIT, Limits, Patience};
use crate::error::Error;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    cost: Option<u32>,
    key: Option<String>,
    wait_ms: Option<u64>,
}

/// The route.
pub fn router(limits: Arc<Limits>) -> Router {
    // The resource's name may have slashes.
    Router::new().route("/v1/limits/{*resource}", post(acquire)).with_state(limits)
}

async fn acquire(
    State(limits): State<Arc<Limits>>,
    Path(path): Path<String>,
    wish: Result<Query<Wish>, QueryRejection>,
) -> Response {
    let refuse = |status: StatusCode, why: &str| (status, format!("{why}\n")).into_response();
    let Some(name) = path.strip_suffix("/acquire").filter(|name| !name.is_empty()) else {
        return refuse(StatusCode::NOT_FOUND, "write POST /v1/limits/RESOURCE/acquire");
    };
    let wish = match wish {
        Ok(Query(wish)) => wish,
        Err(why) => {
            let why = why.body_text();
            let why = format!("{why}. There are cost=NUMBER, key=VALUE and wait_ms=NUMBER");
            return refuse(StatusCode::BAD_REQUEST, &why);
        }
    };
    let cost = wish.cost.unwrap_or(1);
    if !(1..=COST_MAX).contains(&cost) {
        return refuse(StatusCode::BAD_REQUEST, "cost: a number from 1 to 1000000");
    }
    let Some(resource) = limits.resource_or_new(name.as_bytes()) else {
        let why = format!("{name} is no resource here: ratelimit.resources has none that matches");
        return refuse(StatusCode::NOT_FOUND, &why);
    };
    if resource.rules().per.is_none() {
        let why = format!(
            "{name} is held, not spent (it has no `per`): limit the requests themselves, with ratelimit.apply"
        );
        return refuse(StatusCode::CONFLICT, &why);
    }
    let wait = Duration::from_millis(wish.wait_ms.unwrap_or(0)).min(WAIT_MAX);
    let patience = Patience { wait, first: FIRST_WAIT };
    let key = wish.key.unwrap_or_default();
    let taken = resource.acquire(Instant::now(), key.as_bytes(), cost, Fail::Safe, patience);
    let taken = taken.await;
    limits.acquired(name, taken.is_ok());
    match taken {
        Ok(_) => {
            let body = serde_json::json!({ "resource": name, "granted": true, "cost": cost });
            ([(CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
        }
        Err(refusal) => {
            let limited = Box::new(refusal.told(&resource));
            let mut response = (StatusCode::TOO_MANY_REQUESTS, String::new()).into_response();
            limited.headers(response.headers_mut());
            let problem = HeaderValue::from_static("application/problem+json");
            response.headers_mut().insert(CONTENT_TYPE, problem);
            let body = serde_json::json!({
                "title": "Too Many Requests",
                "status": 429,
                "reason": "limited",
                "detail": Error::Limited(limited).detail(),
            });
            *response.body_mut() = format!("{body}\n").into();
            response
        }
    }
}

/// As `ratelimit.apply` allows.
const COST_MAX: u32 = 1_000_000;
/// As for `ratelimit.apply`: longer waits are the caller's to make.
const WAIT_MAX: Duration = Duration::from_secs(1);
