//! Which path does what.

use crate::serve::batch::fields::Refusal;
use crate::serve::batch::request::Form;
use crate::serve::http::address::same_token;
use crate::serve::http::events::{EventWriter, STOPPING};
use crate::serve::http::front::{Accepted, FrontDesk};
use crate::serve::http::objects::{answer, grow, WholeText};
use crate::serve::http::record::{News, RecordReader};
use crate::serve::http::refused::Refused;
use crate::serve::http::words;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{header, HeaderMap, StatusCode};
use axum::middleware::{from_fn_with_state, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{json, Value};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of a request's body at most.
pub const BODY: usize = 16 << 20;

type Shared = State<Arc<FrontDesk>>;
type Read = Result<Bytes, BytesRejection>;

const PATHS: [&str; 8] = [
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/models",
    "/tokenize",
    "/detokenize",
    "/tokenizer_info",
    "/health",
    "/metrics",
];

/// All paths, behind one check of the token and one count of answers; bodies of up to [`BODY`] bytes.
pub fn router(front: Arc<FrontDesk>) -> Router {
    let [completions, chat, models, tokenize, detokenize, info, health, metrics] = PATHS;
    Router::new()
        .route(completions, post(|s: Shared, h: HeaderMap, b: Read| generate(s, Form::Completion, h, b)))
        .route(chat, post(|s: Shared, h: HeaderMap, b: Read| generate(s, Form::Chat, h, b)))
        .route(models, get(list_models))
        .route(tokenize, post(|s: Shared, b: Read| words_of(s, b, words::tokenize)))
        .route(detokenize, post(|s: Shared, b: Read| words_of(s, b, words::detokenize)))
        .route(info, get(|s: Shared| async move { Json(words::info(&s.0)) }))
        .route(health, get(tell_health))
        .route(metrics, get(|s: Shared| async move { ([(header::CONTENT_TYPE, TEXT)], s.figures.page(&s.gate)) }))
        .fallback(|r: Request| async move {
            let fact = format!("there is nothing at {}; there is {}", r.uri().path(), PATHS.join(", "));
            Refused::new(StatusCode::NOT_FOUND, "not_found", fact)
        })
        .method_not_allowed_fallback(|r: Request| async move {
            let fact = format!("{} does not take {}", r.uri().path(), r.method());
            Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", fact)
        })
        .layer(DefaultBodyLimit::max(BODY))
        .layer(from_fn_with_state(front.clone(), at_the_door))
        .with_state(front)
}

const TEXT: &str = "text/plain; version=0.0.4";

/// Asks for the token, and counts.
async fn at_the_door(State(front): Shared, request: Request, next: Next) -> Response {
    let path = PATHS.into_iter().find(|p| *p == request.uri().path()).unwrap_or("other");
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| v.strip_prefix("Bearer ")).unwrap_or_default().trim();
    let response = match &front.token {
        Some(token) if path != "/health" && !same_token(token, given) => {
            let fact = "the token is missing or another than that in the server's serve.token; send `Authorization: Bearer TOKEN`";
            Refused::new(StatusCode::UNAUTHORIZED, "invalid_api_key", fact).into_response()
        }
        _ => next.run(request).await,
    };
    front.figures.request(path, response.status().as_u16());
    response
}

async fn tell_health(State(front): Shared) -> Response {
    match front.gate.is_closed() {
        true => (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "stopping"}))).into_response(),
        false => Json(json!({"status": "ok"})).into_response(),
    }
}

async fn list_models(State(front): Shared) -> Json<Value> {
    let model = |name: &String| {
        let longest = front.rules.longest;
        json!({"id": name, "object": "model", "created": front.created, "owned_by": "herd", "max_model_len": longest})
    };
    Json(json!({"object": "list", "data": front.rules.models.iter().map(model).collect::<Vec<Value>>()}))
}

async fn words_of(
    State(front): Shared, body: Read, work: fn(&FrontDesk, &[u8]) -> Result<Value, Refusal>,
) -> Result<Json<Value>, Refused> {
    let body = whole(body)?;
    Ok(Json(aside(move || work(&front, &body).map_err(Refused::from)).await?))
}

async fn generate(State(front): Shared, form: Form, headers: HeaderMap, body: Read) -> Result<Response, Refused> {
    let (began, body) = (Instant::now(), whole(body)?);
    let key = headers.get("idempotency-key").map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let of = front.clone();
    // The reader is made with it: where the client has gone by then, both are dropped, and that says so.
    let (accepted, reading) = aside(move || {
        let accepted = of.accept(form, key, &body)?;
        let left = accepted.clone();
        let leaves = move || of.gone(&left);
        let reading = RecordReader::new(accepted.record.clone(), accepted.call.asked.len(), leaves);
        Ok((accepted, reading))
    })
    .await?;
    match accepted.call.stream {
        Some(_) => Ok(streamed(front, accepted, reading, began)),
        None => answered(front, accepted, reading, began).await,
    }
}

/// The whole answer in one.
async fn answered<F: FnMut()>(
    front: Arc<FrontDesk>, accepted: Accepted, mut reading: RecordReader<F>, began: Instant,
) -> Result<Response, Refused> {
    let mut texts = vec![WholeText::default(); accepted.call.asked.len()];
    let mut first = true;
    while let Some(news) = reading.next().await {
        if news == News::Abandoned {
            return Err(Refused::new(StatusCode::SERVICE_UNAVAILABLE, "server_stopping", STOPPING).after(10));
        }
        if std::mem::take(&mut first) {
            front.figures.first_token(began.elapsed());
        }
        grow(&mut texts, news);
    }
    front.figures.answered(began.elapsed());
    let object = answer(&accepted.call, &accepted.head, &texts, front.tokenizer);
    Ok(Json(object).into_response())
}

/// What a stream is made of.
struct Streaming<F: FnMut()> {
    front: Arc<FrontDesk>,
    writer: EventWriter,
    reading: RecordReader<F>,
    began: Instant,
    first: bool,
    over: bool,
}

/// Events as they come; the next is made when the one before has gone out.
fn streamed<F: FnMut() + Send + 'static>(
    front: Arc<FrontDesk>, accepted: Accepted, reading: RecordReader<F>, began: Instant,
) -> Response {
    let writer = EventWriter::new(accepted.call, accepted.head, front.tokenizer);
    let state = Streaming { front, writer, reading, began, first: true, over: false };
    let stream = futures_util::stream::unfold(state, |mut s| async move {
        while !s.over {
            let events = match s.reading.next().await {
                Some(News::Abandoned) => {
                    s.over = true;
                    s.writer.events(News::Abandoned)
                }
                Some(news) => {
                    if std::mem::take(&mut s.first) {
                        s.front.figures.first_token(s.began.elapsed());
                    }
                    s.writer.events(news)
                }
                None => {
                    s.over = true;
                    s.front.figures.answered(s.began.elapsed());
                    s.writer.end()
                }
            };
            if !events.is_empty() {
                return Some((Ok::<Bytes, std::convert::Infallible>(events.into()), s));
            }
        }
        None
    });
    let kind = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (kind, Body::from_stream(stream)).into_response()
}

fn whole(body: Read) -> Result<Bytes, Refused> {
    body.map_err(|e| match e.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let fact = format!("the body has more than {BODY} bytes");
            Refused::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", fact)
        }
        status => Refused::new(status, "unreadable_body", e.body_text()),
    })
}

/// On a thread for work that takes long: a text of a megabyte keeps nobody else waiting.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refused> + Send + 'static) -> Result<T, Refused> {
    let failed = |e: tokio::task::JoinError| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", e.to_string());
    tokio::task::spawn_blocking(work).await.map_err(failed)?
}
