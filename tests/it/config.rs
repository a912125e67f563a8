//! Configurations through the real binary: every mistake at once, schema, tables in the docs, memory formula.

use crate::support::{herd, ranks, root, text};
use std::path::PathBuf;
use std::process::Output;

/// A small configuration with `extra` lines, in a directory of its own.
fn file(body: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    std::fs::write(&path, body).unwrap();
    (dir, path)
}

pub const GOOD: &str = "name: t
run_dir: runs/t
model:
  shape: {vocab_size: 256, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
    num_key_value_heads: 2, max_position_embeddings: 64}
data: {sequence_length: 32, train: [{path: data/a}]}
batch: {global: 12, micro: 2}
train: {steps: 1000}
";

fn config(command: &str, body: &str, more: &[&str]) -> Output {
    let (_dir, path) = file(body);
    herd().args(["config", command]).arg(path).args(more).output().unwrap()
}

#[test]
fn a_good_file_is_ok_and_says_what_the_run_will_be() {
    let out = config("check", GOOD, &["--ranks", "3", "--no-data"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(said.starts_with("ok\n"), "{said}");
    for words in
        ["2 blocks of width 64", "384 tokens = 12 sequences of 32; each of 3 ranks 2 × 2", "iB a rank: parameters "]
    {
        assert!(said.contains(words), "{words}: {said}");
    }
    let json = config("check", GOOD, &["--json", "--no-data"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["tokens_per_step"], 384);
    let memory = json["memory"].as_object().unwrap();
    let sums = ["peak", "tensors"];
    let parts: u64 = memory.iter().filter(|(k, _)| !sums.contains(&k.as_str())).map(|(_, v)| v.as_u64().unwrap()).sum();
    assert_eq!(memory["peak"], parts);
}

#[test]
fn all_mistakes_come_in_one_go_one_line_each() {
    let sets = ["optim.lrr=1", "train.steps=x", "batch.micro=5", "train.precision=bf61", "validation.every=3"];
    let more: Vec<&str> = sets.iter().flat_map(|s| ["--set", s]).collect();
    let out = config("check", GOOD, &more);
    assert_eq!(out.status.code(), Some(10));
    assert!(out.stdout.is_empty());
    let said = String::from_utf8(out.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("herd: error: ") && lines[0].ends_with("x.yaml: 5 problems"), "{said}");
    assert_eq!(lines.len(), 6, "{said}");
    for words in [
        "  optim.lrr: unknown key (hint: did you mean optim.lr?)",
        "  train.steps: is \"x\", a string, but must be an integer",
        "  batch.global: 12 sequences a step are not a multiple of micro-batch 5 × 1 data-parallel ranks = 5",
        "  train.precision: \"bf61\" is not one of bf16, fp32 (hint: did you mean bf16?)",
        "  validation.every: validation every 3 steps, but there is no validation corpus",
    ] {
        assert!(lines.iter().any(|l| l.starts_with(words)), "{words}\n{said}");
    }
}

#[test]
fn sets_of_every_type_reach_the_configuration() {
    let sets = [
        ("train.steps=1e3", "steps: 1000"),
        ("optim.lr=0.5", "lr: 0.5"),
        ("parallel.overlap=false", "overlap: false"),
        ("train.precision=fp32", "precision: fp32"),
        ("name=2024", "name: '2024'"),
        ("data.train.0.path=other/b", "path: other/b"),
        ("data.train.1={path: c, weight: 2}", "weight: 2.0"),
        ("train.stop_at=7", "stop_at: 7"),
        ("validation={every: 5, sequences: 6}", "sequences: 6"),
    ];
    for (set, shown) in sets {
        let out = config("show", GOOD, &["--set", set]);
        assert!(text(&out).lines().any(|l| l.trim_start_matches(['-', ' ']) == shown), "{set}: {}", text(&out));
        // What is shown is itself a configuration.
        let again = config("show", &String::from_utf8(out.stdout.clone()).unwrap(), &[]);
        assert_eq!(again.stdout, out.stdout, "{set}");
    }
}

#[test]
fn the_schema_accepts_every_configuration_of_the_repository() {
    let out = herd().args(["config", "schema"]).output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "yaml") {
            let value: serde_json::Value = serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            let problems: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
            assert!(problems.is_empty(), "{}: {problems:?}", path.display());
            assert_eq!(herd().args(["config", "show"]).arg(&path).output().unwrap().status.code(), Some(0));
            seen += 1;
        }
    }
    assert!(seen >= 2, "{seen} configurations");
    // And it is strict, and tells an editor what each key means.
    let mut bad: serde_json::Value = serde_yaml::from_str(GOOD).unwrap();
    assert!(validator.is_valid(&bad));
    bad["train"]["stepz"] = 1.into();
    assert!(!validator.is_valid(&bad));
    assert_every_key_is_described(&schema, "");
}

fn assert_every_key_is_described(schema: &serde_json::Value, path: &str) {
    assert!(!schema.to_string().contains("\"$ref\""));
    let children = schema["properties"].as_object().or(schema["items"]["properties"].as_object());
    for (key, child) in children.into_iter().flatten() {
        let text = child["description"].as_str().unwrap_or_default();
        assert!(text.len() > 8, "{path}.{key} has no description");
        assert_every_key_is_described(child, &format!("{path}.{key}"));
    }
}

/// `herd config schema --markdown` writes the tables between the marks in docs/configuration.md.
#[test]
fn the_documented_keys_are_the_keys() {
    let out = herd().args(["config", "schema", "--markdown"]).output().unwrap();
    let tables = String::from_utf8(out.stdout).unwrap();
    let docs = std::fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let (_, rest) = docs.split_once("<!-- keys -->\n").expect("the first mark");
    let (held, _) = rest.split_once("<!-- end of keys -->").expect("the second mark");
    assert!(held.trim() == tables.trim(), "docs/configuration.md is stale: paste `herd config schema --markdown`");
}

/// Mutations of a good file: whatever comes out, it is never a panic, and never a silent success of a broken file.
#[test]
fn mutated_files_never_panic() {
    use herd::config::load;
    use herd::plan::{Plan, Ranks};
    let ranks = Ranks { rank: 0, size: 2, local_rank: 0, local_size: 2, cuda_devices: 0, cores: 2 };
    let junk = [
        "",
        "~",
        "-1",
        "0",
        "1e400",
        ".nan",
        "-.inf",
        "[",
        "]",
        "{",
        "}",
        ":",
        "- ",
        "&a ",
        "*a",
        "!t ",
        "'",
        "\"",
        "\t",
        "99999999999999999999999999",
        "18446744073709551615",
        "9223372036854775807",
        "1e18",
        "#",
        "|",
        ">",
        "<<: ",
        "? ",
        "\u{0}",
        "é",
        "true",
        "null",
        "a: b: c",
        "---\n",
    ];
    let mut seed = 7u64;
    let mut random = move |n: usize| {
        // xorshift64: the same mutations on every run
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n.max(1) as u64) as usize
    };
    let (_dir, path) = file("");
    let (mut good, mut bad) = (0, 0);
    for _ in 0..1500 {
        let mut text = GOOD.to_string();
        for _ in 0..1 + random(3) {
            let chars: Vec<char> = text.chars().collect();
            let (at, len) = (random(chars.len() + 1), random(6));
            let head: String = chars[..at].iter().collect();
            let tail: String = chars[(at + len).min(chars.len())..].iter().collect();
            text = head + junk[random(junk.len())] + &tail;
        }
        std::fs::write(&path, &text).unwrap();
        match load::draft(&path, &[]).and_then(|d| Plan::from_draft(d, &ranks)) {
            Ok(_) => good += 1,
            Err(e) => {
                assert_ne!(e.exit, herd::error::Exit::Internal, "{text}\n{e}");
                assert!(e.to_string().lines().count() == 1 + e.problems.len(), "{e}");
                bad += 1;
            }
        }
    }
    assert!(good > 0 && bad > 500, "{good} good, {bad} bad");
}

/// The formula against the allocator's peak counter over real steps, within the 10% that it promises.
#[test]
fn memory_formula_matches_the_allocator() {
    if !ranks(1, "config::memory_formula_matches_the_allocator") {
        return;
    }
    use herd::kernels::memory;
    use herd::plan::{memory::Memory, Plan, Ranks};
    memory::install();
    let shape = |h: usize, f: usize, v: usize, layers: usize| {
        format!(
            "{{vocab_size: {v}, hidden_size: {h}, intermediate_size: {f}, num_hidden_layers: {layers}, \
             num_attention_heads: {}, num_key_value_heads: 2, max_position_embeddings: 4096}}",
            h / 32
        )
    };
    let ranks = Ranks { rank: 0, size: 1, local_rank: 0, local_size: 1, cuda_devices: 0, cores: 2 };
    for (what, shape, s, micro) in [
        ("feed-forward", shape(128, 512, 300, 2), 256, 8),
        ("head", shape(128, 256, 16000, 2), 128, 2),
        ("long", shape(128, 344, 300, 4), 512, 1),
        ("weights", shape(512, 1536, 1000, 3), 64, 1),
        ("attention", shape(256, 128, 300, 2), 512, 2),
    ] {
        for (precision, recompute) in [("bf16", "none"), ("fp32", "none"), ("bf16", "full"), ("fp32", "full")] {
            let (_dir, path) = file(GOOD);
            let sets = [
                format!("model.shape={shape}"),
                format!("data.sequence_length={s}"),
                format!("batch={{global: {micro}, micro: {micro}}}"),
                format!("train.precision={precision}"),
                format!("train.recompute={recompute}"),
            ];
            let plan = Plan::read(&path, &sets, &ranks).unwrap();
            let formula = Memory::peak(&plan);
            let base = memory::live();
            let seen = step_peak(&plan) - base;
            let off = seen as f64 / formula.total() as f64 - 1.0;
            println!(
                "{what:12} {precision} {recompute}: formula {}, seen {seen}, {:+.1}%",
                formula.total(),
                off * 100.0
            );
            assert!(off.abs() < 0.1, "{what} {precision} {recompute}: seen {seen}, {:+.1}%, {formula:?}", off * 100.0);
        }
    }
}

/// Peak bytes over two steps of the model with its optimizer.
fn step_peak(plan: &herd::plan::Plan) -> u64 {
    use herd::kernels::memory;
    use herd::model::{Accumulate, Llama, Params, StepOptions};
    use herd::optim::Optimizer;
    use tch::{Kind, Tensor};
    let s = plan.config.data.sequence_length;
    let params = Params::zeros(&plan.layout, plan.dtype, plan.device);
    let mut optimizer = Optimizer::new(params.owned(&herd::layout::Sharding::solo()), &plan.config.optim);
    for flat in &params.units {
        let _ = flat.param.shallow_clone().fill_(0.01);
    }
    optimizer.publish();
    let mut model = Llama::new(&plan.model, s, plan.device, &herd::model::Axes::solo());
    model.recompute = (plan.config.train.recompute, 0);
    let options = StepOptions { grad_scale: 1e-3, z_loss: 0.0, grads: Accumulate::Replace };
    memory::reset_peak();
    for update in 1..=2 {
        let size = [plan.micro_batch as i64, s as i64];
        let tokens = Tensor::zeros(size, (Kind::Int64, plan.device));
        let targets = tokens.ones_like();
        model.forward_backward(&params, &tokens, &targets, &options, &mut |_| Ok(())).unwrap();
        optimizer.step(1e-3, update, 1.0);
    }
    memory::peak()
}
