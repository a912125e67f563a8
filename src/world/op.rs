//! The operations of reductions.

/// How elements are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Added up.
    Sum,
    /// The largest is taken.
    Max,
}
