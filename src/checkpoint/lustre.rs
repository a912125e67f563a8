//! Striping of a checkpoint's directory where it lies on Lustre.

use super::disk::refused;
use crate::error::{Error, Exit, Result};
use std::path::Path;
use std::process::Command;

/// `f_type` of statfs(2) for Lustre (linux/magic.h: LL_SUPER_MAGIC).
const MAGIC: u64 = 0x0BD0_0BD0;

/// What `lfs setstripe` is asked for; zeros leave the directory's own setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stripes {
    /// Stripes of each file; -1: all targets.
    pub count: i64,
    /// MiB of each stripe.
    pub size_mib: u64,
}

impl Stripes {
    /// Sets the striping of files to be made in `directory`, if that is on Lustre and anything is asked for.
    ///
    /// Errors: [`Exit::Storage`] where `lfs` is missing or refuses.
    pub fn apply(&self, directory: &Path) -> Result<()> {
        let Some(arguments) = self.arguments() else { return Ok(()) };
        if !on_lustre(directory)? {
            return Ok(());
        }
        let out = Command::new("lfs").args(&arguments).arg(directory).output();
        let out = out.map_err(|e| Error::io(directory, "run lfs on", &e, Exit::Storage))?;
        match out.status.success() {
            true => Ok(()),
            false => Err(Error::new(
                Exit::Storage,
                format!(
                    "lfs {} {} ended with {}: {}",
                    arguments.join(" "),
                    directory.display(),
                    out.status,
                    String::from_utf8_lossy(&out.stderr).trim()
                ),
            )
            .hint("set checkpoint.stripe_count and stripe_size_mib to what `lfs df` allows, or leave them out")),
        }
    }

    /// Arguments of `lfs` before the directory (lfs-setstripe(1)); none where nothing is asked for.
    fn arguments(&self) -> Option<Vec<String>> {
        let mut out = vec!["setstripe".to_string()];
        if self.count != 0 {
            out.extend(["-c".into(), self.count.to_string()]);
        }
        if self.size_mib != 0 {
            out.extend(["-S".into(), format!("{}M", self.size_mib)]);
        }
        (out.len() > 1).then_some(out)
    }
}

fn on_lustre(directory: &Path) -> Result<bool> {
    let s = rustix::fs::statfs(directory).map_err(|e| refused(directory, "look at")(e.into()))?;
    Ok(s.f_type as u64 == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_set() {
        let line = |count, size_mib| Stripes { count, size_mib }.arguments().map(|a| a.join(" "));
        assert_eq!(line(0, 0), None);
        assert_eq!(line(8, 0).as_deref(), Some("setstripe -c 8"));
        assert_eq!(line(-1, 16).as_deref(), Some("setstripe -c -1 -S 16M"));
        assert_eq!(line(0, 4).as_deref(), Some("setstripe -S 4M"));
    }

    #[test]
    fn elsewhere_nothing_is_run() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!on_lustre(dir.path()).unwrap());
        Stripes { count: 4, size_mib: 1 }.apply(dir.path()).unwrap();
    }
}
