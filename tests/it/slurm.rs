//! A real private Slurm (`tests/cluster/cluster`), a cluster for each test.

mod cluster;
mod doctor;
mod init;
mod install;
mod memory;
mod nodes;
mod recovery;
mod starts;
mod supervisor;
mod training;
