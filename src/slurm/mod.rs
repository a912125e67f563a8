//! What Slurm tells a job and a step about themselves, and the way it writes lists of hosts.

mod environment;
mod hostlist;

pub use environment::{Job, Step};
pub use hostlist::{compress, expand};
