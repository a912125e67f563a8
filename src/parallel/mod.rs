//! One file per parallel axis.
