//! What Slurm tells a step about itself.
