//! Which way the bytes of a host wire may take.

/// How a wire may move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Shared memory when all ranks of the axis are on one node, else messages.
    Fastest,
    /// Messages always.
    Messages,
}
