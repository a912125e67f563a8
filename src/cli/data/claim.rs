//! Which files a command may write: never one that it reads, never one that is not a token file's, and an existing one only
//! where that was asked for.

use crate::data::indexed::{is_index, with_ending, Sidecar, MASK_ENDING};
use crate::error::{Error, Exit, Result};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Whether `prefix`.bin, .idx, .mask and .json may be written by a command that reads `inputs` (`-` is standard input; of a
/// directory, what lies in it).
///
/// # Errors
/// [`Exit::Usage`], and nothing has been touched.
pub fn check(prefix: &Path, inputs: &[&str], force: bool) -> Result<()> {
    let files = [".bin", ".idx", ".json", MASK_ENDING].map(|ending| with_ending(prefix, ending));
    let refused = |file: &Path, what: String| Error::new(Exit::Usage, format!("{} {what}", file.display()));
    for file in &files {
        let Some(this) = identity(file) else { continue };
        if let Some(input) = inputs.iter().find(|i| reads(i, this, file)) {
            return Err(refused(file, format!("would be written, but it is read as well ({input})"))
                .hint("give another --output"));
        }
    }
    let [bin, idx, json, mask] = &files;
    let foreign = [
        (mask, mask.exists() && !idx.exists()),
        (idx, idx.exists() && !is_index(idx)),
        (json, json.exists() && !matches!(Sidecar::read(prefix), Ok(Some(_)))),
    ];
    if let Some((file, _)) = foreign.iter().find(|(_, foreign)| *foreign) {
        return Err(refused(file, "exists, and is not part of a token file that herd wrote".into())
            .hint("give another --output, or move it away"));
    }
    match files.iter().find(|f| !force && f.exists()) {
        None => Ok(()),
        Some(_) if !idx.exists() && bin.exists() => {
            Err(refused(bin, format!("exists, without {} beside it", idx.display()))
                .hint("give another --output, or remove it"))
        }
        Some(old) => Err(refused(old, "exists".into()).hint("--force replaces it")),
    }
}

/// Device and inode: one file under two names is one file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn reads(input: &str, this: (u64, u64), file: &Path) -> bool {
    let path = if input == "-" { Path::new("/dev/stdin") } else { Path::new(input) };
    let inside = || file.file_name().and_then(|name| identity(&path.join(name)));
    identity(path) == Some(this) || (path.is_dir() && inside() == Some(this))
}
