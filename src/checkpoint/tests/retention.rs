//! What stays and what goes.

use super::*;
use std::time::{Duration, SystemTime};

fn steps(dir: &Path, all: &[u64]) {
    for &s in all {
        save_step(dir, s);
    }
}

#[test]
fn the_newest_stay() {
    let dir = tempfile::tempdir().unwrap();
    steps(dir.path(), &[1, 2, 3, 4]);
    let gone = prune(dir.path(), 2, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-00000003", "step-00000004"]);
    assert_eq!(gone.checkpoints.len(), 2);
    prune(dir.path(), 0, &|_| true).unwrap();
    assert_eq!(names(dir.path()).len(), 2);
    prune(dir.path(), 1, &|_| true).unwrap();
    prune(dir.path(), 1, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-00000004"]);
}

#[test]
fn invalid_ones_do_not_count_and_the_only_valid_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    steps(dir.path(), &[1, 2, 3, 4]);
    fs::remove_file(dir.path().join("step-00000004/manifest.json")).unwrap();
    fs::write(dir.path().join("step-00000003/rank-00000.h5"), "short").unwrap();
    fs::remove_file(dir.path().join("step-00000001/manifest.json")).unwrap();
    prune(dir.path(), 1, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-00000002", "step-00000003", "step-00000004"]);
    assert_eq!(newest(dir.path()).0.unwrap().meta().step, 2);
}

#[test]
fn one_that_only_looks_whole_does_not_push_out_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    steps(dir.path(), &[1, 2, 3]);
    let file = dir.path().join("step-00000003/rank-00000.h5");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let mut whole = |c: &Checkpoint| c.verify().iter().all(|f| f.problem.is_none());
    let would = super::prune::prune_if(dir.path(), 1.into(), true, &|_| true, &mut whole).unwrap();
    assert_eq!(names(dir.path()).len(), 3);
    let gone = super::prune::prune_if(dir.path(), 1.into(), false, &|_| true, &mut whole).unwrap();
    assert_eq!(gone, would);
    assert_eq!(names(dir.path()), ["step-00000002", "step-00000003"]);
}

#[test]
fn temporary_directories_go_when_nobody_writes_to_them() {
    let dir = tempfile::tempdir().unwrap();
    steps(dir.path(), &[1]);
    let (old, fresh) = (dir.path().join("step-00000002.tmp-0"), dir.path().join("step-00000003.tmp-1"));
    for p in [&old, &fresh] {
        fs::create_dir(p).unwrap();
        fs::write(p.join("rank-00000.h5"), "half").unwrap();
    }
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    for p in [old.join("rank-00000.h5"), old.clone()] {
        fs::File::open(p).unwrap().set_modified(hour_ago).unwrap();
    }
    assert_eq!(prune(dir.path(), 1, &|_| true).unwrap().temporary, [old]);
    assert_eq!(names(dir.path()), ["step-00000001", "step-00000003.tmp-1"]);
}

#[test]
fn a_second_save_of_a_step_replaces_the_first_and_leaves_no_other_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = save_step(dir.path(), 5);
    fs::write(path.join("rank-00000.h5"), "damaged").unwrap();
    fs::create_dir(dir.path().join("step-00000005.tmp-0")).unwrap();
    fs::write(dir.path().join("step-00000005.tmp-0/rank-00007.h5"), "of a save that was killed").unwrap();
    save_step(dir.path(), 5);
    assert_eq!(names(dir.path()), ["step-00000005"]);
    assert_eq!(names(&path), ["manifest.json", "rank-00000.h5"]);
    assert_whole(&newest(dir.path()).0.unwrap());
}

#[test]
fn what_a_crash_between_two_renames_leaves_is_found_and_later_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = save_step(dir.path(), 5);
    fs::rename(&path, dir.path().join("step-00000005.old-0")).unwrap();
    assert_eq!(newest(dir.path()).0.unwrap().meta().step, 5);
    prune(dir.path(), 1, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-00000005.old-0"]);
    save_step(dir.path(), 6);
    save_step(dir.path(), 7);
    prune(dir.path(), 3, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-00000006", "step-00000007"]);
}

/// It has a higher step, looks valid, and was passed over when the run started: what the run saves since then is what stays.
#[test]
fn a_damaged_one_of_an_earlier_start_costs_no_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = save_step(dir.path(), 9).join("rank-00000.h5");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    for step in [1, 2] {
        save_step(dir.path(), step);
        prune_after(dir.path(), 1, step, &|_| true).unwrap();
    }
    assert_eq!(names(dir.path()), ["step-00000002", "step-00000009"]);
    save_step(dir.path(), 10);
    prune_after(dir.path(), 1, 10, &|_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-00000010"]);
}

#[test]
fn milestones_and_the_best_stay_beside_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    for (step, loss) in
        [(1, Some(0.5)), (2, Some(0.25)), (3, None), (4, Some(0.75)), (5, None), (6, Some(0.3)), (7, None)]
    {
        let held = values(Group::Param, &[33]);
        let piece =
            Piece { group: Group::Param, name: "w", shape: &[33], offset: &[0], extent: &[33], start: 0, data: &held };
        save::save_alone(dir.path(), &[piece], &Meta { validation: loss, ..meta(step) }).unwrap();
    }
    let steps = || names(dir.path()).iter().map(|n| n[5..].parse().unwrap()).collect::<Vec<u64>>();
    prune(dir.path(), Keep { newest: 2, every: 4, best: true, recycle: false }, &|_| true).unwrap();
    assert_eq!(steps(), [2, 4, 6, 7]);
    prune(dir.path(), Keep { newest: 2, every: 0, best: true, recycle: false }, &|_| true).unwrap();
    assert_eq!(steps(), [2, 6, 7]);
    prune(dir.path(), 1, &|_| true).unwrap();
    assert_eq!(steps(), [7]);
    prune(dir.path(), Keep { newest: 1, every: 7, best: true, recycle: false }, &|_| true).unwrap();
    assert_eq!(steps(), [7]);
}
