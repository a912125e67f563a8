//! Tests of `checkpoint`: MPI ranks that share a save, the real binary, a full disk, and transformers and h5py as oracles.

use crate::support::{herd, mpirun, names, python, root, said, text};
use herd::checkpoint::{newest_valid, save, Checkpoint, Group, Meta, Piece};
use herd::config::ModelConfig;
use herd::error::Exit;
use herd::layout::{units, Layout};
use herd::topology::Topology;
use herd::world::World;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Set for the ranks: what to do, and the directory to do it in.
const DO: &str = "HERD_TEST_CHECKPOINT";
const DIR: &str = "HERD_TEST_CHECKPOINT_DIR";

/// `n` MPI ranks of the test `name`, which finds `what` and `dir` by [`task`].
fn ranks(n: usize, name: &str, what: &str, dir: &Path) -> Output {
    let mut c = mpirun(n);
    c.env(DO, what).env(DIR, dir).env("OMP_NUM_THREADS", "1").arg(std::env::current_exe().unwrap());
    c.args(["--exact", &format!("checkpoint::{name}"), "--nocapture", "--test-threads=1"]).output().unwrap()
}

fn ranks_succeed(n: usize, name: &str, what: &str, dir: &Path) {
    let out = ranks(n, name, what, dir);
    assert!(out.status.success(), "{n} ranks, {what}: {}\n{}", out.status, text(&out));
}

/// In a rank: what to do and where.
fn task() -> Option<(String, PathBuf)> {
    Some((std::env::var(DO).ok()?, PathBuf::from(std::env::var_os(DIR)?)))
}

fn model() -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 301, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10
    }))
    .unwrap()
}

/// Element `i` of a tensor: odd bit patterns, NaN and -0 among them, different in every tensor and group.
fn value(group: Group, name: &str, i: usize) -> f32 {
    let seed = name.bytes().fold(group as u64 + 1, |h, b| h.wrapping_mul(1099511628211).wrapping_add(b.into()));
    f32::from_bits((seed.wrapping_add(i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32)
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}

/// What rank `rank` of `size` data-parallel ranks saves: its share of every unit's flat buffer, tensor by tensor.
struct Share {
    group: Group,
    name: String,
    shape: Vec<usize>,
    start: usize,
    data: Vec<f32>,
}

fn shares(rank: usize, size: usize) -> Vec<Share> {
    let layout = Layout::new(&model(), &Topology::data(rank, size));
    let mut all = Vec::new();
    for group in Group::ALL {
        for (unit, p) in layout.params() {
            let chunk = unit.len / size;
            let (from, to) = (p.start.max(rank * chunk), (p.start + p.len()).min((rank + 1) * chunk));
            let (from, to) = (from.saturating_sub(p.start), to.saturating_sub(p.start));
            if from < to {
                let data = (from..to).map(|i| value(group, &p.name, i)).collect();
                all.push(Share { group, name: p.name.clone(), shape: p.shape.clone(), start: from, data });
            }
        }
    }
    all
}

fn save_shares(dir: &Path, step: u64, world: &World) -> herd::error::Result<herd::checkpoint::Saved> {
    let shares = shares(world.rank(), world.size());
    let origins: Vec<Vec<usize>> = shares.iter().map(|s| vec![0; s.shape.len()]).collect();
    let pieces: Vec<Piece> = shares
        .iter()
        .zip(&origins)
        .map(|(s, offset)| Piece {
            group: s.group,
            name: &s.name,
            shape: &s.shape,
            offset,
            extent: &s.shape,
            start: s.start,
            data: &s.data,
        })
        .collect();
    save(dir, &pieces, &Meta { step, updates: step, ..Meta::new(model()) }, world)
}

/// Every share of this rank and every whole tensor, bit for bit.
fn assert_reads(c: &Checkpoint, rank: usize, size: usize) {
    for s in shares(rank, size) {
        let (origin, mut out) = (vec![0; s.shape.len()], vec![0.0; s.data.len()]);
        c.read(s.group, &s.name, &origin, &s.shape, s.start, &mut out).unwrap();
        assert_eq!(bits(&out), bits(&s.data), "{} {}", s.group, s.name);
    }
    for (group, name, shape) in c.tensors() {
        let mut out = vec![0.0; shape.iter().product()];
        c.read(group, name, &vec![0; shape.len()], shape, 0, &mut out).unwrap();
        assert!(out.iter().enumerate().all(|(i, x)| x.to_bits() == value(group, name, i).to_bits()), "{group} {name}");
    }
}

#[test]
fn any_number_of_ranks_reads_what_any_other_saved() {
    const NAME: &str = "any_number_of_ranks_reads_what_any_other_saved";
    if let Some((what, dir)) = task() {
        let world = World::init().unwrap();
        if what == "save" {
            let saved = save_shares(&dir, 3, &world).unwrap();
            assert!(saved.path.ends_with("step-00000003") && saved.bytes > 0);
        } else {
            let mut events = 0;
            let c = newest_valid(&dir, &world, &mut |_| events += 1).unwrap().unwrap();
            assert_eq!((c.meta().step, events, c.file_names().count().to_string()), (3, 1, what));
            assert_reads(&c, world.rank(), world.size());
        }
        return world.finalize().unwrap();
    }
    for writers in [1, 2, 4] {
        let dir = tempfile::tempdir().unwrap();
        ranks_succeed(writers, NAME, "save", dir.path());
        for readers in [1, 2, 4] {
            ranks_succeed(readers, NAME, &writers.to_string(), dir.path());
        }
        if writers == 4 {
            // Damage in a file that rank 3 checks: every rank must hear of it.
            let file = dir.path().join("step-00000003/rank-00003.h5");
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).unwrap();
            let out = ranks(4, NAME, "4", dir.path());
            assert!(!out.status.success() && text(&out).contains("`None`"), "{}", text(&out));
        }
    }
}

/// A tmpfs of a few megabytes, unmounted at the end.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, said aloud, where this user may not mount.
    pub fn new(bytes: usize) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
            .arg(dir.path())
            .output();
        match done {
            Ok(out) if out.status.success() => Some(SmallDisk(dir)),
            _ => {
                eprintln!("SKIPPED: a full disk needs a small tmpfs, and this user may not mount one");
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_on_every_rank_and_the_older_checkpoint_stays() {
    if let Some((_, dir)) = task() {
        let world = World::init().unwrap();
        save_shares(&dir, 1, &world).unwrap();
        let older = fs::metadata(dir.join("step-00000001/rank-00000.h5")).unwrap().len();
        // Leave room for less than one rank's file.
        if world.rank() == 0 {
            let free = free_bytes(&dir);
            fs::write(dir.join("filler"), vec![1; (free - older / 2) as usize]).unwrap();
        }
        world.barrier().unwrap();
        let e = save_shares(&dir, 2, &world).unwrap_err();
        assert_eq!(e.exit, Exit::Storage, "{e}");
        assert!(e.fact.contains(&*dir.join("step-00000002.tmp-0").to_string_lossy()), "{e}");
        assert!(e.fact.contains("no space left") && e.hint.is_some(), "{e}");
        world.barrier().unwrap();
        assert_eq!(names(&dir), ["filler", "step-00000001"]);
        let c = newest_valid(&dir, &world, &mut |_| ()).unwrap().unwrap();
        assert_eq!(c.meta().step, 1);
        assert_reads(&c, world.rank(), world.size());
        return world.finalize().unwrap();
    }
    let Some(disk) = SmallDisk::new(8 << 20) else { return };
    ranks_succeed(2, "a_full_disk_is_an_error_on_every_rank_and_the_older_checkpoint_stays", "both", disk.0.path());
}

/// Free bytes of the filesystem, as `df` says.
fn free_bytes(dir: &Path) -> u64 {
    let out = Command::new("df").args(["--output=avail", "-B1"]).arg(dir).output().unwrap();
    text(&out).lines().nth(1).unwrap().trim().parse().unwrap()
}

/// A Hugging Face directory made by transformers, one per variant.
fn transformers_models(dir: &Path) {
    oracle(&["tests/oracle/checkpoint_hf.py", "make", dir.to_str().unwrap()]);
}

fn oracle(args: &[&str]) -> String {
    said(python().args(args))
}

fn run(args: &[&str]) -> String {
    said(herd().args(args))
}

#[test]
fn what_transformers_saved_comes_back_with_the_same_bits_and_logits() {
    let dir = tempfile::tempdir().unwrap();
    transformers_models(dir.path());
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (mut exact, mut rounded) = (Vec::new(), Vec::new());
    for variant in ["plain", "llama3", "tied"] {
        let (model, run_dir) = (at(variant), at(&format!("{variant}-run")));
        let (fp32, bf16) = (at(&format!("{variant}-fp32")), at(&format!("{variant}-bf16")));
        run(&["checkpoint", "import", &model, &run_dir]);
        run(&["checkpoint", "export", &run_dir, &fp32, "--dtype", "fp32", "--shard-size", "200KB"]);
        run(&["checkpoint", "export", &run_dir, &bf16]);
        assert!(names(Path::new(&fp32)).iter().filter(|n| n.ends_with(".safetensors")).count() > 1);
        exact.extend([model.clone(), fp32]);
        rounded.extend([model, bf16]);
    }
    for (how, pairs) in [("exact", exact), ("bf16", rounded)] {
        let mut args = vec!["tests/oracle/checkpoint_hf.py", "compare", how];
        args.extend(pairs.iter().map(String::as_str));
        assert_eq!(oracle(&args).matches("the logits are equal").count(), 3);
    }
}

#[test]
fn thirty_lines_of_python_read_a_checkpoint() {
    const NAME: &str = "thirty_lines_of_python_read_a_checkpoint";
    if let Some((_, dir)) = task() {
        let world = World::init().unwrap();
        save_shares(&dir, 3, &world).unwrap();
        return world.finalize().unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    ranks_succeed(2, NAME, "save", dir.path());
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let step = dir.path().join("step-00000003");
    oracle(&["tests/oracle/checkpoint_read.py", step.to_str().unwrap(), out.to_str().unwrap()]);
    let params: Vec<(String, Vec<usize>)> = units(&model()).into_iter().flat_map(|(_, p)| p).collect();
    for group in Group::ALL {
        for (name, shape) in &params {
            let expected: Vec<u8> =
                (0..shape.iter().product()).flat_map(|i| value(group, name, i).to_le_bytes()).collect();
            assert!(fs::read(out.join(format!("{group}.{name}"))).unwrap() == expected, "{group} {name}");
        }
    }
    let reader = fs::read_to_string(root().join("tests/oracle/checkpoint_read.py")).unwrap();
    assert!(reader.lines().filter(|l| !l.trim().is_empty()).count() <= 32);
}

#[test]
fn the_commands_tell_whole_from_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    transformers_models(dir.path());
    let run_dir = at("run");
    run(&["checkpoint", "import", &at("tied"), &run_dir]);
    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_str(&run(args)).unwrap() };
    let listed = json(&["checkpoint", "list", &run_dir, "--json"]);
    assert_eq!((listed[0]["step"].as_u64(), listed[0]["valid"].as_bool()), (Some(0), Some(true)));
    assert!(run(&["checkpoint", "list", &run_dir]).contains("step-00000000"));
    let shown = json(&["checkpoint", "show", &run_dir, "--tensors"]);
    assert_eq!(shown["meta"]["model"]["tie_word_embeddings"], true);
    assert_eq!(shown["tensors"][0]["name"], "model.embed_tokens.weight");
    let verified = json(&["checkpoint", "verify", &run_dir, "--json"]);
    assert_eq!(verified[0]["whole"], true);
    assert!(run(&["checkpoint", "prune", &run_dir, "--keep", "1"]).contains("nothing to remove"));

    let fails = |args: &[&str], exit: Exit, words: &str| {
        let out = herd().args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(exit.code()), "{args:?}: {}", text(&out));
        assert!(text(&out).contains(words), "{args:?}: {}", text(&out));
    };
    fails(&["checkpoint", "import", &at("tied"), &run_dir], Exit::Usage, "has checkpoints already");
    fails(&["checkpoint", "export", &run_dir, &at("tied")], Exit::Usage, "not an empty directory");
    fails(&["checkpoint", "import", &at("nowhere"), &at("other")], Exit::Model, "there is no");
    fails(&["checkpoint", "verify", &at("nowhere")], Exit::Checkpoint, "there is no directory");
    let file = dir.path().join("run/checkpoints/step-00000000/rank-00000.h5");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&file, bytes).unwrap();
    fails(&["checkpoint", "verify", &run_dir], Exit::Checkpoint, "1 of 1 checkpoints are not whole");
    fails(&["checkpoint", "verify", &run_dir, "--json"], Exit::Checkpoint, "\"whole\": false");
    fails(&["checkpoint", "export", &run_dir, &at("out")], Exit::Checkpoint, "holds no whole checkpoint");
    fs::write(&file, "short").unwrap();
    fails(
        &["checkpoint", "export", &format!("{run_dir}/checkpoints/step-00000000"), &at("out")],
        Exit::Checkpoint,
        "5 bytes",
    );
    assert!(run(&["checkpoint", "list", &run_dir]).contains("not valid"));
    assert!(!Path::new(&at("out")).exists());
}

#[test]
fn the_binary_says_which_file_did_not_fit() {
    let Some(disk) = SmallDisk::new(128 << 10) else { return };
    let dir = tempfile::tempdir().unwrap();
    transformers_models(dir.path());
    let from = dir.path().join("plain").to_str().unwrap().to_string();
    let to = |name: &str| disk.0.path().join(name).to_str().unwrap().to_string();
    for args in [["checkpoint", "import", &from, &to("run")], ["checkpoint", "export", &from, &to("out")]] {
        let out = herd().args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(Exit::Storage.code()), "{}", text(&out));
        assert!(text(&out).contains("no space left on device (hint: free space"), "{}", text(&out));
        assert!(text(&out).contains(&*disk.0.path().to_string_lossy()), "{}", text(&out));
    }
    assert_eq!(names(disk.0.path()), ["run"]);
    assert!(names(&disk.0.path().join("run/checkpoints")).is_empty());
}
