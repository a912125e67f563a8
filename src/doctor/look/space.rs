//! Filesystems: what they are, how much room there is, what a quota leaves.

use crate::doctor::facts::Space;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names of `f_type` (statfs(2), linux/magic.h; the vendors' sources for the last ones).
const KINDS: &[(u64, &str)] = &[
    (0x0102_1994, "tmpfs"),
    (0x6969, "NFS"),
    (0x0BD0_0BD0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x00C3_6400, "Ceph"),
    (0x6573_5546, "FUSE"),
    (0xEF53, "ext4"),
    (0x5846_5342, "XFS"),
    (0x9123_683E, "btrfs"),
    (0x794C_7630, "overlay"),
    (0x2FC1_2FC1, "ZFS"),
    (0xAAD7_AAEA, "PanFS"),
];

/// Filesystems that several hosts see as one.
pub const SHARED: &[&str] = &["NFS", "Lustre", "GPFS", "BeeGFS", "Ceph", "PanFS", "FUSE"];

/// The filesystem under `path`.
///
/// # Errors
/// The system's.
pub fn of(path: &Path) -> io::Result<Space> {
    let s = rustix::fs::statfs(path)?;
    let kind = KINDS.iter().find(|(n, _)| *n == s.f_type as u64);
    let block = s.f_bsize as u64;
    Ok(Space {
        kind: kind.map_or_else(|| format!("type {:#x}", s.f_type as u64), |(_, name)| name.to_string()),
        size: s.f_blocks * block,
        free: s.f_bavail * block,
        // filesystems without a fixed number of files say 0 of 0
        files_free: (s.f_files > 0).then_some(s.f_ffree),
    })
}

/// `path`, or the nearest directory above it that is there.
pub fn nearest(path: &Path) -> PathBuf {
    let there = |p: &&Path| p.is_dir();
    path.ancestors().find(there).map_or_else(|| "/".into(), Path::to_path_buf)
}

/// Bytes that this user may still write by quota on Lustre: the tightest of the user's and the group's.
pub fn lustre_quota(path: &Path) -> Option<u64> {
    // SAFETY: queries without arguments.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let ask = |kind: &str, id: u32| {
        let out = Command::new("lfs").args(["quota", "-q", kind, &id.to_string()]).arg(path).output().ok()?;
        quota_left(&String::from_utf8_lossy(&out.stdout))
    };
    [ask("-u", user), ask("-g", group)].into_iter().flatten().min()
}

/// What is left by a line of `lfs quota -q`: path, KiB used (with `*` when over), soft limit, hard limit, … (lfs-quota(1)).
fn quota_left(text: &str) -> Option<u64> {
    let numbers: Vec<u64> =
        text.split_whitespace().skip(1).take(3).filter_map(|w| w.trim_end_matches('*').parse().ok()).collect();
    let [used, soft, hard] = numbers[..] else { return None };
    let limit = if hard > 0 { hard } else { soft };
    (limit > 0).then(|| limit.saturating_sub(used) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystems_have_names_and_room() {
        let dir = tempfile::tempdir().unwrap();
        let s = of(dir.path()).unwrap();
        assert!(s.size >= s.free && s.free > 0 && !s.kind.is_empty(), "{s:?}");
        assert_eq!(of(Path::new("/proc/self")).unwrap().kind, "type 0x9fa0");
        assert!(of(Path::new("/no/such/place")).is_err());
        assert_eq!(nearest(&dir.path().join("a/b/c")), dir.path());
    }

    #[test]
    fn what_lustre_s_quota_leaves() {
        assert_eq!(quota_left("/scratch 1048576 0 2097152 - 12 0 0 -"), Some(1 << 30));
        assert_eq!(quota_left("/scratch 3000000* 2000000 2097152 none 12 0 0 -"), Some(0));
        assert_eq!(quota_left("/scratch 1048576 0 0 - 12 0 0 -"), None);
        assert_eq!(quota_left(""), None);
    }
}
