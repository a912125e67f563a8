//! Slurm: what it tells a job and a step about themselves, how it writes lists of hosts, and its commands.

pub mod control;
mod environment;
mod hostlist;
pub mod messages;
pub mod offers;
pub mod process;
pub mod site;
mod step;
mod switches;

pub use environment::{Job, Step, Told};
pub use hostlist::{compress, expand};
pub use site::Site;
pub use step::StepLine;
pub use switches::Switches;
