//! The model over HTTP, as OpenAI's API has it (API reference: Completions, Chat, Models), on the engine that answers files too.
//!
//! Two threads: the engine's, which is the process's first and alone talks to the other ranks, and the server's, where requests are
//! read and answers written. Between them go orders one way and, by way of a record of each request, news the other.
//!
//! - [`call`]: a body as a request, or why it is refused; [`refused`]: that as OpenAI's error object
//! - [`gate`]: how many texts may be accepted; [`record`]: what has come of a request
//! - [`desk`]: the engine's side
//! - [`journal`]: accepted requests on disk, for the next server of the run
//! - [`objects`], [`events`]: whole answers, and answers as they come (server-sent events)
//! - [`address`]: where it listens, and who may speak to it
//! - [`front`], [`routes`], [`words`], [`server`]: the server's side
//! - [`figures`]: numbers for Prometheus

pub mod address;
pub mod call;
pub mod desk;
pub mod events;
pub mod figures;
pub mod front;
pub mod gate;
pub mod journal;
pub mod objects;
pub mod record;
pub mod refused;
pub mod routes;
pub mod server;
pub mod words;
