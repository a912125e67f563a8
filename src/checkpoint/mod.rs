//! Checkpoints on disk, in one format for every topology.
//!
//! A checkpoint is a directory `step-NNNNNNNN/` with one HDF5 file per writer and a `manifest.json` that is written
//! last. Tensors carry global names, global shapes and the place of each slice, so that a checkpoint loads on any
//! topology: [`Checkpoint::read`] reads whatever intersects. `docs/checkpoint-format.md` describes every byte.
//!
//! - [`meta`]: what a checkpoint says about its run; [`Piece`], the unit of saving
//! - [`base`]: what tells whether frozen weights are those that a checkpoint belongs to
//! - [`slice`]: arithmetic of slices
//! - [`map`]: HDF5's part, the layout of a file
//! - `file`: writing the bytes of one file, `direct`: around the page cache, `lustre`: stripes
//! - [`manifest`]: the table of all files
//! - [`disk`]: names of files and directories, and operations on them that survive a crash
//! - [`save`], [`read`], [`restore`], `prune`, `recycle`: what is done with checkpoints on disk
//! - `team`: the ranks that do it together, or one process alone

pub mod base;
mod direct;
pub mod disk;
mod file;
mod lustre;
pub mod manifest;
pub mod map;
pub mod meta;
mod prune;
pub mod read;
mod recycle;
pub mod restore;
pub mod save;
pub mod slice;
mod team;

#[cfg(test)]
pub(crate) mod tests;

pub use direct::on_local_disk;
pub use disk::directory;
pub use lustre::Stripes;
pub use map::Spec;
pub use meta::{BaseNote, Group, Meta, Piece, ReferenceNote, Saved, SpecialTokens};
pub use prune::{prune, prune_after, prune_if, Keep, Pruned};
pub use read::{Checkpoint, FileReport};
pub use restore::{list, newest_valid, newest_valid_alone, Event};
pub use save::{save, save_by, Rules};
pub use slice::Slice;
pub use team::Team;
