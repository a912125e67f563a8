//! Every byte of a checkpoint counts: whatever is damaged is found, and the next older one is used.

use super::*;
use crate::checkpoint::manifest::Manifest;

/// A directory with whole steps 1 and 2, and the path of step 2.
fn two_steps() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    save_step(dir.path(), 1);
    let newest = save_step(dir.path(), 2);
    (dir, newest)
}

/// Step 2 must be passed over with a reason that contains `why`, and step 1 taken.
fn assert_falls_back(dir: &Path, why: &str) {
    let (found, events) = newest(dir);
    let found = found.unwrap();
    assert_eq!(found.meta().step, 1);
    assert_whole(&found);
    match &events[..] {
        [Event::CheckpointRejected { path, reason }, Event::CheckpointChosen { step: 1, .. }] => {
            assert!(path.ends_with("step-00000002"));
            assert!(reason.contains(why), "{reason:?} does not say {why:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_whole_one_is_taken() {
    let (dir, _) = two_steps();
    let (found, events) = newest(dir.path());
    assert_eq!(found.unwrap().meta().step, 2);
    assert_eq!(events.len(), 1);
    assert!(newest(&dir.path().join("absent")).0.is_none());
}

#[test]
fn a_flipped_bit_in_any_dataset_is_found() {
    let (dir, path) = two_steps();
    let file = path.join("rank-00000.h5");
    let good = fs::read(&file).unwrap();
    let manifest = Manifest::parse(&fs::read(path.join("manifest.json")).unwrap(), &path).unwrap();
    let datasets = &manifest.files[0].datasets;
    assert_eq!(datasets.len(), 6);
    for d in datasets {
        for at in [d.at, d.at + 2 * d.len as u64, d.end() - 1] {
            let mut bad = good.clone();
            bad[at as usize] ^= 0x10;
            fs::write(&file, &bad).unwrap();
            assert_falls_back(dir.path(), &manifest.tensors[d.tensor].name);
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_else_in_the_file_is_found() {
    let (_dir, path) = two_steps();
    let file = path.join("rank-00000.h5");
    let good = fs::read(&file).unwrap();
    let c = Checkpoint::open(&path).unwrap();
    for at in (0..good.len()).step_by(13) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert!(c.verify()[0].problem.is_some(), "byte {at}");
    }
}

#[test]
fn a_file_cut_short_is_found_at_any_length() {
    let (dir, path) = two_steps();
    let file = path.join("rank-00000.h5");
    let good = fs::read(&file).unwrap();
    for len in [0, 1, 511, good.len() / 2, good.len() - 1] {
        fs::write(&file, &good[..len]).unwrap();
        assert_falls_back(dir.path(), &format!("has {len} bytes, the manifest says {}", good.len()));
    }
    fs::write(&file, [good.as_slice(), b"x"].concat()).unwrap();
    assert_falls_back(dir.path(), "bytes, the manifest says");
    fs::remove_file(&file).unwrap();
    assert_falls_back(dir.path(), "rank-00000.h5 is missing");
}

#[test]
fn a_manifest_that_is_missing_cut_or_changed_is_found() {
    let (dir, path) = two_steps();
    let file = path.join("manifest.json");
    let good = fs::read(&file).unwrap();
    for len in (0..good.len()).step_by(17) {
        fs::write(&file, &good[..len]).unwrap();
        assert_falls_back(dir.path(), "is damaged");
    }
    let body = good.iter().position(|&b| b == b'\n').unwrap() + 1;
    for at in (body..good.len() - 3).step_by(11) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        assert_falls_back(dir.path(), "its checksum is");
    }
    fs::write(&file, String::from_utf8(good).unwrap().replacen("\"herd_checkpoint\": 1", "\"herd_checkpoint\": 2", 1))
        .unwrap();
    assert_falls_back(dir.path(), "format version 2, this herd reads up to 1");
    fs::remove_file(&file).unwrap();
    assert_falls_back(dir.path(), "has no manifest.json");
}

#[test]
fn a_renamed_directory_is_found() {
    let (dir, path) = two_steps();
    fs::rename(&path, dir.path().join("step-00000009")).unwrap();
    let (found, events) = newest(dir.path());
    assert_eq!(found.unwrap().meta().step, 1);
    assert!(matches!(&events[0], Event::CheckpointRejected { reason, .. } if reason.contains("holds step 2")));
}

#[test]
fn temporary_directories_and_strangers_are_no_checkpoints() {
    let (dir, path) = two_steps();
    fs::rename(&path, dir.path().join("step-00000002.tmp-0")).unwrap();
    fs::create_dir(dir.path().join("step-x")).unwrap();
    fs::create_dir(dir.path().join("step-")).unwrap();
    fs::write(dir.path().join("step-00000005"), "a file").unwrap();
    let (found, events) = newest(dir.path());
    assert_eq!(found.unwrap().meta().step, 1);
    assert_eq!(events.len(), 1);
}

#[test]
fn nothing_whole_is_none_and_every_one_is_reported() {
    let (dir, path) = two_steps();
    for p in [path, dir.path().join("step-00000001")] {
        fs::write(p.join("rank-00000.h5"), "").unwrap();
    }
    let (found, events) = newest(dir.path());
    assert!(found.is_none());
    assert_eq!(events.len(), 2);
}
