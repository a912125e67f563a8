//! Checkpoints in one format for every topology; Hugging Face import and export.
//!
//! A checkpoint is a directory `step-NNNNNNNN/` with one HDF5 file per writer and a `manifest.json` that is written
//! last. Tensors carry global names, global shapes and the place of each slice, so that a checkpoint loads on any
//! topology: [`Checkpoint::read`] reads whatever intersects. `docs/checkpoint-format.md` describes every byte.
//!
//! - `meta`: what a checkpoint says about its run; [`Piece`], the unit of saving
//! - `slice`: arithmetic of slices
//! - `map`: HDF5's part, the layout of a file
//! - `file`: writing the bytes of one file, `direct`: around the page cache
//! - `manifest`: the table of all files
//! - `save`, `read`, `restore`, `prune`: the four things done with checkpoints on disk
//! - [`keeper`]: what happens to the state between two steps; `background`: saving behind the steps
//! - [`snapshot`]: the newest steps in memory of the nodes, with a second copy on another
//! - [`tiers`], `source`: restore over memory, disk and object store; [`flush`]: from memory to disk
//! - [`weights`]: parameters from a checkpoint or from a Hugging Face directory, alike; `own`: the tokenizer that is theirs,
//!   `others`: weights beside them that are not read
//! - [`hf`]: Hugging Face's layout; [`meta_llama`]: Meta's originals
//! - [`store`]: the object store

mod background;
mod direct;
pub mod disk;
mod file;
pub mod flush;
pub mod hf;
pub mod keeper;
mod lustre;
mod manifest;
mod map;
mod meta;
pub mod meta_llama;
mod others;
mod own;
mod prune;
mod read;
mod recycle;
mod restore;
mod save;
mod slice;
pub mod snapshot;
mod source;
pub mod store;
mod team;
pub mod tiers;
pub mod weights;

#[cfg(test)]
mod tests;

pub use direct::on_local_disk;
pub use map::Spec;
pub use meta::{Group, Meta, Piece, Saved, SpecialTokens};
pub use own::{foreign, Own};
pub use prune::{prune, prune_if, Keep, Pruned};
pub use read::{Checkpoint, FileReport};
pub use restore::{list, newest_valid, newest_valid_alone, Event};
pub use save::{directory, save, save_by, Rules};
pub use slice::Span;
pub use source::{Source, Tally};
pub use team::Team;
