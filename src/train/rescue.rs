//! The last checkpoint of a run whose directory is gone: removed, moved, or on a filesystem that is no longer mounted.

use crate::appended::{gone, is_gone};
use crate::checkpoint::directory;
use crate::config::Config;
use crate::durable::refused;
use crate::error::{Error, Exit, Result};
use crate::run_dir::RunDir;
use crate::world::World;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where the checkpoint that ends the run goes instead of the run directory; `None` where that is there. `noticed`: rank 0 has
/// found it gone. Collective: rank 0 looks.
///
/// # Errors
/// [`Exit::Gone`]: there is no `launch.rescue_dir`; [`Exit::Storage`]: it cannot be written.
pub fn place(config: &Config, noticed: bool, world: &World) -> Result<Option<PathBuf>> {
    let mine = match world.rank() {
        0 if noticed || is_gone(&config.run_dir) => make(config).map(|dir| dir.into_os_string().into_vec()),
        _ => Ok(Vec::new()),
    };
    let told = world.broadcast_bytes(world.agree(mine)?, 0)?;
    Ok((!told.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(&told))))
}

/// `RESCUE/NAME/checkpoints`, or `RESCUE/NAME-2/checkpoints`: what an earlier rescue has left stays as it is.
fn make(config: &Config) -> Result<PathBuf> {
    let Some(rescue) = &config.launch.rescue_dir else { return Err(gone(&config.run_dir)) };
    std::fs::create_dir_all(rescue).map_err(refused(rescue, "create"))?;
    let name = config.run_dir.file_name().unwrap_or("run".as_ref()).to_string_lossy().into_owned();
    let mut dir = rescue.join(&name);
    let mut n = 1;
    loop {
        match std::fs::create_dir(&dir) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                n += 1;
                dir = rescue.join(format!("{name}-{n}"));
            }
            made => return made.map_err(refused(&dir, "create")).map(|()| RunDir::new(&dir).checkpoints()),
        }
    }
}

/// How the run ends then, on every rank.
pub fn saved(config: &Config, checkpoints: &Path, step: u64) -> Error {
    let run_dir = config.run_dir.display();
    let new = checkpoints.parent().unwrap_or(checkpoints).display();
    let fact = format!(
        "the run directory {run_dir} is gone: step {step} is saved in {}",
        checkpoints.join(directory(step)).display()
    );
    Error { agreed: true, ..Error::new(Exit::Gone, fact) }
        .hint(format!("start again with --set run_dir={new}, or move that to {run_dir}"))
}
