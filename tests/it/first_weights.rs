//! First weights on several ranks, with the real binary: what all ranks together open and read of them. Opens are counted by
//! a library that is loaded before libc, bytes by what the kernel says each rank has read.

use crate::support::{herd, mpirun, names, said, text};
use crate::train::{losses, Run};
use herd::error::Exit;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Wide enough that its 18 MB of weights show beside what a start reads anyway.
const SHAPE: [&str; 8] = [
    "model.shape.hidden_size=256",
    "model.shape.intermediate_size=1024",
    "model.shape.num_hidden_layers=4",
    "model.shape.num_attention_heads=8",
    "model.shape.head_dim=32",
    "train.steps=1",
    "optim.warmup_steps=1",
    "validation.every=0",
];

/// Notes every file that a process opens for reading, a line each. Made into a library that goes before libc's.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void note(const char *path) {
    static int (*real)(const char *, int, ...);
    const char *log = getenv("OPENS");
    char line[512];
    size_t n = strlen(path);
    if (!real) real = dlsym(RTLD_NEXT, "open64");
    if (!log || n + 1 > sizeof line) return;
    int fd = real(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    memcpy(line, path, n);
    line[n] = '\n';
    if (fd >= 0 && write(fd, line, n + 1) < 0) abort();
    if (fd >= 0) close(fd);
}
#define SHIM(NAME) \
    int NAME(const char *path, int flags, ...) { \
        static int (*real)(const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (!real) real = dlsym(RTLD_NEXT, #NAME); \
        if ((flags & O_ACCMODE) == O_RDONLY) note(path); \
        return real(path, flags, mode); \
    }
SHIM(open)
SHIM(open64)
"#;

fn shim(directory: &Path) -> PathBuf {
    let (source, library) = (directory.join("opens.c"), directory.join("opens.so"));
    fs::write(&source, SHIM).unwrap();
    said(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl"));
    library
}

struct Made {
    run: Run,
    /// A run directory with a checkpoint of step 1, and the same as safetensors of a block each.
    checkpoint: PathBuf,
    safetensors: PathBuf,
}

fn made() -> Made {
    let run = Run::new();
    run.losses(0, "made", &SHAPE);
    let (checkpoint, safetensors) = (run.path("made"), run.path("hf"));
    said(herd().args(["checkpoint", "export"]).args([&checkpoint, &safetensors]).args([
        "--dtype",
        "fp32",
        "--max-shard-size",
        "3MB",
    ]));
    Made { run, checkpoint, safetensors }
}

fn size(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

/// What four ranks have read.
struct Account {
    /// Bytes of each rank.
    read: Vec<u64>,
    /// Files that were opened, as often as they were.
    opens: Vec<String>,
}

impl Account {
    fn bytes(&self) -> u64 {
        self.read.iter().sum()
    }

    fn opened(&self, ending: &str) -> usize {
        self.opens.iter().filter(|path| path.ends_with(ending)).count()
    }
}

/// Trains on four ranks.
fn train(run: &Run, shim: &Path, name: &str, sets: &[&str]) -> Account {
    let counts = run.path(&format!("{name}-io"));
    fs::create_dir(&counts).unwrap();
    let mut c = mpirun(4);
    // The shell's own account has that of the child it has waited for.
    let script = r#"LD_PRELOAD="$SHIM" "$@"; code=$?; cat /proc/$$/io > "$COUNTS/$$"; exit $code"#;
    let opens = run.path(&format!("{name}-opens"));
    c.env("COUNTS", &counts).env("OPENS", &opens).env("SHIM", shim);
    c.args(["sh", "-c", script, "sh", env!("CARGO_BIN_EXE_herd"), "train"]).arg(run.config());
    c.args(["--set", &format!("run_dir={}", run.path(name).display())]);
    SHAPE.iter().chain(sets).for_each(|s| _ = c.args(["--set", s]));
    said(&mut c);
    let count = |path: PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        text.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse::<u64>().ok()).unwrap()
    };
    let read = fs::read_dir(&counts).unwrap().map(|e| count(e.unwrap().path())).collect();
    let opens = fs::read_to_string(opens).unwrap().lines().map(String::from).collect();
    Account { read, opens }
}

/// Each rank reads its share, on every way to share a model out, also where each replica keeps all of it.
#[test]
fn weights_are_read_once_over_all_ranks() {
    let Made { run, checkpoint, safetensors } = made();
    let steps = checkpoint.join("checkpoints/step-00000001");
    let (model, stored) = (size(&safetensors), size(&steps));
    let from_hf = format!("model.weights={}", safetensors.display());
    let alone = run.losses(0, "alone", &[&SHAPE[..], &[&from_hf]].concat())[0];
    let shim = shim(run.dir.path());
    let base = train(&run, &shim, "fresh", &[]);
    assert_eq!((base.opened(".safetensors"), base.opened(".h5")), (0, 0));
    // The blocks' o_proj and down_proj, of which the tensor axis cuts columns: short gaps are read along.
    let columns = 4 * 4 * (256 * 256 + 256 * 1024);
    let mut first = Vec::new();
    for (axes, sets) in [
        ("replicas", &["parallel.zero=0"][..]),
        ("zero", &["parallel.zero=3"]),
        ("hybrid", &["parallel.zero=1", "parallel.shard_size=2"]),
        ("tensor", &["parallel.tensor=2", "parallel.zero=1"]),
        ("pipeline", &["parallel.pipeline=4"]),
    ] {
        let along = if axes == "tensor" { columns } else { 0 };
        for (kind, from, ending, least, most) in [
            // Norms are read by each tensor rank, headers by rank 0.
            ("hf", &safetensors, ".safetensors", model - model / 20, model + model / 10 + along),
            // Parameters once; what was not read as whole datasets is compared after.
            ("herd", &checkpoint, ".h5", stored, stored + stored / 3 + stored / 10 + along),
        ] {
            let name = format!("{kind}-{axes}");
            let weights = format!("model.weights={}", from.display());
            let found = train(&run, &shim, &name, &[sets, &[&weights]].concat());
            let (all, opened) = (found.bytes() - base.bytes(), found.opened(ending));
            println!("{name}: {opened} opens, {all} bytes of {least}");
            assert!(least <= all && all <= most, "{name}: {all} bytes, not {least} to {most}: {:?}", found.read);
            let each = found.read.iter().max().unwrap() - base.read.iter().min().unwrap();
            assert!(each < all / 2, "{name}: one rank reads {each} of {all} bytes");
            first.push((name.clone(), losses(&run.path(&name))[0], opened));
        }
    }
    assert!(first.iter().all(|f| (f.1 - alone).abs() < 1e-5), "the loss is {alone} on one rank: {first:?}");
    let opened = |name: &str| first.iter().find(|f| f.0 == name).unwrap().2;
    let files = names(&safetensors).iter().filter(|n| n.ends_with(".safetensors")).count();
    assert!(files >= 5, "{files} shards");
    // Rank 0 all of them, each stage its own, and those at a border both stages.
    assert!(opened("hf-pipeline") <= 2 * files + 3, "{first:?}");
    // Each rank once to read and once to compare.
    assert!(first.iter().filter(|f| f.0.starts_with("herd")).all(|f| f.2 <= 8), "{first:?}");
}

/// Damage is found on several ranks as by one: of a step that was named it is the end, of a run the step before is taken.
#[test]
fn damage_is_found_by_the_rank_that_reads_it_or_by_the_one_whose_share_it_is() {
    let run = Run::new();
    run.losses(0, "made", &["train.steps=2", "optim.warmup_steps=1", "checkpoint.every=1"]);
    let steps = run.path("made").join("checkpoints");
    let file = fs::read_dir(steps.join("step-00000002")).unwrap().map(|e| e.unwrap().path());
    let file = file.into_iter().find(|p| p.extension().is_some_and(|x| x == "h5")).unwrap();
    let whole = fs::read(&file).unwrap();
    for at in [whole.len() / 7, whole.len() / 2, whole.len() - 5_000] {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        let name = format!("from-{at}");
        let weights = format!("model.weights={}", run.path("made").display());
        let dir = format!("run_dir={}", run.path(&name).display());
        let out = run.train(3, &[&weights, &dir, "train.steps=1", "optim.warmup_steps=1", "batch.global=6"]);
        assert!(out.status.success(), "{}", text(&out));
        assert!(text(&out).contains("step-00000002 is not whole and is passed over"), "{}", text(&out));
        let weights = format!("model.weights={}", steps.join("step-00000002").display());
        let dir = format!("run_dir={}", run.path(&format!("{name}-step")).display());
        let out = run.train(3, &[&weights, &dir, "train.steps=1", "optim.warmup_steps=1", "batch.global=6"]);
        assert_eq!(out.status.code(), Some(Exit::Checkpoint.code()), "{}", text(&out));
        assert!(text(&out).contains("checksum") && text(&out).contains("use another step"), "{}", text(&out));
    }
}
