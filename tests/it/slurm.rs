//! Tests of `slurm`.
