//! Files of requests: each line of one is answered in a line of another, once, whatever happens meanwhile.
//!
//! - [`request`], [`fields`], [`format`]: a line as a task, or why it is refused
//! - [`input`], [`output`]: the two files; which lines are answered already
//! - [`worker`], [`answer`]: tasks through an engine, texts as OpenAI's objects
//! - [`share`]: the tasks shared out over the replicas

pub mod answer;
pub mod fields;
pub mod format;
pub mod input;
pub mod output;
pub mod request;
pub mod share;
pub mod worker;

#[cfg(test)]
mod tests;
