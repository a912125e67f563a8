//! Files of a checkpoint that goes are written over by the next save.

use super::*;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

pub(super) const ONE: Keep = Keep { newest: 1, every: 0, best: false, recycle: true };
const FILE: &str = "rank-00000.h5";

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Saves steps 1 and 2 and keeps the second; the first is aside. Returns the inode of its file.
pub(super) fn put_one_aside(dir: &Path) -> u64 {
    let first = inode(&save_step(dir, 1).join(FILE));
    save_step(dir, 2);
    let gone = prune(dir, ONE, &|_| true).unwrap();
    assert_eq!(gone.checkpoints, [dir.join("step-00000001")]);
    assert_eq!(names(dir), ["recycled", "step-00000002"]);
    assert_eq!(names(&dir.join("recycled")), [FILE]);
    first
}

#[test]
fn the_next_save_has_the_same_file_and_every_byte_of_a_new_one() {
    for size in [0, 100, 1 << 20] {
        while !recycled_equals_new(size) {}
    }
}

/// False, and nothing compared, where the two saves were not made in the same second: HDF5 writes the time of a group's making, in
/// seconds, into its header.
fn recycled_equals_new(size: usize) -> bool {
    let second = || jiff::Timestamp::now().as_second();
    let (dir, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = put_one_aside(dir.path());
    // Smaller or larger than what is written over it, and nothing of it may be left.
    let old = dir.path().join("recycled").join(FILE);
    fs::OpenOptions::new().write(true).open(&old).unwrap().set_len(0).unwrap();
    fs::write(&old, vec![0xAB; size]).unwrap();
    let began = second();
    let (saved, new) = (save_step(dir.path(), 3), save_step(fresh.path(), 3));
    let ended = second();
    assert_eq!(names(dir.path()), ["step-00000002", "step-00000003"]);
    assert_eq!(inode(&saved.join(FILE)), first);
    assert_eq!(names(&saved), [manifest::NAME, FILE]);
    if began != ended {
        return false;
    }
    assert_eq!(fs::read(saved.join(FILE)).unwrap(), fs::read(new.join(FILE)).unwrap());
    true
}

#[test]
fn one_is_kept_and_none_where_it_is_not_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    (1..5).for_each(|s| drop(save_step(dir.path(), s)));
    prune(dir.path(), ONE, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["recycled", "step-00000004"]);
    let would = super::prune::prune_if(dir.path(), 1.into(), true, &|_| true, &mut |_| true).unwrap();
    assert_eq!(would.temporary, [dir.path().join("recycled")]);
    fs::create_dir(dir.path().join("recycled.old-1")).unwrap();
    let gone = prune(dir.path(), 1, &|_| true).unwrap();
    assert_eq!(gone.temporary.len(), 2);
    assert_eq!(names(dir.path()), ["step-00000004"]);
}

#[test]
fn files_of_a_damaged_one_are_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = save_step(dir.path(), 1);
    fs::write(path.join(FILE), "short").unwrap();
    save_step(dir.path(), 2);
    prune(dir.path(), ONE, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-00000002"]);
}

#[test]
fn what_is_linked_elsewhere_or_of_no_rank_is_left_alone_or_removed() {
    let dir = tempfile::tempdir().unwrap();
    let first = put_one_aside(dir.path());
    let (aside, copy) = (dir.path().join("recycled"), dir.path().join("copy.h5"));
    fs::hard_link(aside.join(FILE), &copy).unwrap();
    let held = fs::read(&copy).unwrap();
    fs::write(aside.join("rank-00001.h5"), "of a larger world").unwrap();
    std::os::unix::fs::symlink(&copy, aside.join("rank-00002.h5")).unwrap();
    let saved = save_step(dir.path(), 3);
    assert_eq!(names(&saved), [manifest::NAME, FILE]);
    assert_ne!(inode(&saved.join(FILE)), first);
    assert_eq!(fs::read(&copy).unwrap(), held);
    assert_whole(&newest(dir.path()).0.unwrap());
}

/// A prune by hand beside a run: what a save has just taken is no leftover, however old its files.
#[test]
fn what_a_save_has_taken_is_no_leftover() {
    let dir = tempfile::tempdir().unwrap();
    put_one_aside(dir.path());
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let aside = dir.path().join("recycled");
    for p in [aside.join(FILE), aside] {
        fs::File::open(p).unwrap().set_modified(hour_ago).unwrap();
    }
    let taken = dir.path().join("step-00000003.tmp-0");
    assert!(super::recycle::take(dir.path(), &taken, 1).unwrap());
    assert_eq!(prune(dir.path(), 1, &|_| true).unwrap(), Pruned::default());
    assert_eq!(names(dir.path()), ["step-00000002", "step-00000003.tmp-0"]);
    assert!(!super::recycle::take(dir.path(), &taken, 1).unwrap());
}
