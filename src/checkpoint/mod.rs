//! Checkpoints in one format for every topology; Hugging Face import and export.
