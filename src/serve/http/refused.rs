//! Why a request is not answered, in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use crate::serve::batch::fields::Refusal;
use axum::http::{header, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{json, Value};

/// A refusal with its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Of the HTTP response: 4xx or 5xx.
    pub status: StatusCode,
    /// Code, message and field of the response's body.
    pub why: Refusal,
    /// Seconds after which another try may succeed.
    pub retry_after: Option<u64>,
}

impl Refused {
    /// A refusal that names no field.
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refused {
        Refused { status, why: Refusal::new(code, "", message), retry_after: None }
    }

    /// The same, with the seconds after which another try may succeed.
    pub fn after(self, seconds: u64) -> Refused {
        Refused { retry_after: Some(seconds), ..self }
    }

    /// The body.
    pub fn object(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            s if s.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let Refusal { code, param, message } = &self.why;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl From<Refusal> for Refused {
    fn from(why: Refusal) -> Refused {
        let status = match why.code {
            "model_not_found" => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_REQUEST,
        };
        Refused { status, why, retry_after: None }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.object())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
