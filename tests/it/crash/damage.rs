//! Each file of a checkpoint of two ranks damaged in each way: found, passed over for the older one, written down.

use super::{copy, events, whole_steps, Base};
use crate::support::{herd, text};
use herd::error::Exit;
use std::fs;
use std::path::Path;

#[test]
fn each_file_damaged_in_each_way_is_found_and_the_older_checkpoint_used() {
    let base = Base::new();
    let run = base.run.path("damaged");
    for name in ["manifest.json", "rank-00000.h5", "rank-00001.h5"] {
        for how in ["cut", "flipped", "gone"] {
            let _ = fs::remove_dir_all(&run);
            copy(&base.whole(), &run);
            let newest = run.join("checkpoints/step-00000008");
            assert!(fs::read_dir(&newest).unwrap().any(|e| e.unwrap().file_name() == name));
            damage(&newest.join(name), how);
            let verify = herd().args(["checkpoint", "verify"]).arg(&newest).output().unwrap();
            assert_eq!(verify.status.code(), Some(Exit::Checkpoint.code()), "{name} {how}: {}", text(&verify));
            let out = base.train(&run, &["checkpoint.keep=0"]).output().unwrap();
            assert!(out.status.success(), "{name} {how}: {}", text(&out));
            let rejected = events(&run, "checkpoint_rejected");
            let path = rejected[0]["path"].as_str().unwrap();
            assert!(rejected.len() == 1 && path.ends_with("step-00000008"), "{name} {how}: {rejected:?}");
            assert_eq!(events(&run, "resume").last().unwrap()["step"], 6, "{name} {how}");
            // The step that was damaged was trained and saved again, and is as it was.
            assert_eq!(whole_steps(&run).unwrap(), [8, 6, 4, 2], "{name} {how}");
            let was = base.whole().join("checkpoints/step-00000008");
            let diff = herd().args(["checkpoint", "diff"]).args([&was, &newest]).output().unwrap();
            assert!(diff.status.success(), "{name} {how}: {}", text(&diff));
        }
    }
}

/// What was read of a checkpoint before its damage was found is forgotten.
#[test]
fn a_run_whose_checkpoints_are_all_damaged_starts_as_if_there_had_been_none() {
    let base = Base::new();
    let run = base.run.path("lost");
    for rank in ["rank-00000.h5", "rank-00001.h5"] {
        let _ = fs::remove_dir_all(&run);
        copy(&base.half(), &run);
        damage(&run.join("checkpoints/step-00000004").join(rank), "flipped");
        let out = base.train(&run, &["checkpoint.keep=0"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert_eq!(events(&run, "checkpoint_rejected").len(), 1);
        assert!(events(&run, "resume").is_empty() && events(&run, "start").len() == 2, "{}", text(&out));
        let step = "checkpoints/step-00000008";
        let diff =
            herd().args(["checkpoint", "diff"]).args([base.whole().join(step), run.join(step)]).output().unwrap();
        assert!(diff.status.success(), "{rank}: {}", text(&diff));
    }
}

fn damage(file: &Path, how: &str) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    match how {
        "cut" => bytes.truncate(middle),
        "flipped" => bytes[middle] ^= 1,
        _ => return fs::remove_file(file).unwrap(),
    }
    fs::write(file, bytes).unwrap();
}
