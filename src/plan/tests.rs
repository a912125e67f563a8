//! Plans of good and of clashing configurations.

use super::memory::Memory;
use super::*;

pub fn config(sets: &[&str]) -> Draft {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    let base = "
name: t
run_dir: runs/t
model:
  shape: {vocab_size: 256, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4,
    num_key_value_heads: 2, max_position_embeddings: 64}
data: {sequence_length: 32, train: [{path: data/a}]}
batch: {global: 12, micro: 2}
train: {steps: 1000}
";
    std::fs::write(&path, base).unwrap();
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    load::draft(&path, &sets).unwrap()
}

fn ranks(size: usize) -> Ranks {
    Ranks { rank: size - 1, size, local_rank: size - 1, local_size: size, cuda_devices: 0, cores: 8 }
}

/// The plan of one rank, with overrides that are no mistake.
pub fn plan(sets: &[&str]) -> Plan {
    Plan::from_draft(config(sets), &ranks(1)).unwrap()
}

/// All problem lines of a configuration that must fail, without the place.
fn problems(sets: &[&str], size: usize) -> Vec<String> {
    let e = Plan::from_draft(config(sets), &ranks(size)).map(|p| p.config).unwrap_err();
    match e.problems.is_empty() {
        true => vec![e.to_string().split_once(": ").unwrap().1.to_string()],
        false => e.problems,
    }
}

fn one(set: &str, size: usize) -> String {
    let all = problems(&set.split(' ').collect::<Vec<_>>(), size);
    assert_eq!(all.len(), 1, "{set}: {all:?}");
    all[0].clone()
}

#[test]
fn a_good_configuration_is_resolved() {
    let plan = Plan::from_draft(config(&[]), &ranks(2)).unwrap();
    assert_eq!((plan.accumulation, plan.micro_batch, plan.threads), (3, 2, 8));
    assert_eq!((plan.topology.world(), plan.device, plan.dtype), (2, Device::Cpu, Kind::BFloat16));
    assert_eq!(plan.tokens_per_step(), 12 * 32);
}

#[test]
fn every_clash_names_its_factors_and_what_would_work() {
    for (set, size, words) in [
        (
            "parallel.data=3",
            4,
            &["tensor 1 × context 1 × pipeline 1 × data 3 = 3", "has 4", "parallel.data 4", "3 ranks"][..],
        ),
        (
            "parallel.tensor=2 parallel.data=2",
            8,
            &["× data 2 = 4 ranks", "world has 8", "parallel.data 4", "tensor to 4"],
        ),
        (
            "parallel.pipeline=3 model.shape.num_hidden_layers=6",
            4,
            &["pipeline 3 = 3 ranks a replica", "world of 4", "3 or 6 ranks", "pipeline to 2 or 4"],
        ),
        ("parallel.tensor=4 data.sequence_length=30", 4, &["data.sequence_length: 30", "tensor 4", "28 or 32 works"]),
        ("parallel.context=2 data.sequence_length=30", 2, &["30 tokens", "2 × context 2 = 4", "28 or 32 works"]),
        (
            "parallel.tensor=8",
            8,
            &["num_attention_heads 4", "tensor 8", "parallel.tensor 4 works for 4 heads and 2 KV"],
        ),
        (
            "parallel.tensor=2 model.shape.intermediate_size=63",
            2,
            &["intermediate_size 63", "tensor 2", "1 or 3", "62 or 64"],
        ),
        ("parallel.pipeline=4", 4, &["2 layers", "pipeline 4", "at most 2"]),
        (
            "parallel.pipeline=2 parallel.schedule=interleaved parallel.chunks=3 model.shape.num_hidden_layers=5",
            2,
            &["parallel.chunks", "5 layers", "pipeline 2 × chunks 3", "chunks at most 2", "6 layers"],
        ),
        (
            "parallel.pipeline=2 parallel.chunks=2 model.shape.num_hidden_layers=4",
            2,
            &["parallel.schedule", "2 chunks a stage", "chunks 1", "schedule interleaved"],
        ),
        ("parallel.pipeline=2 parallel.schedule=interleaved", 2, &["each of the 2 stages", "chunks 2", "1f1b"]),
        (
            "parallel.schedule=interleaved parallel.chunks=2",
            1,
            &["2 chunks a stage", "pipeline 1", "pipeline 2 or more"],
        ),
        ("batch.global=10 batch.micro=4", 1, &["10 sequences", "4 × 1", "batch.global 8 or 12", "batch.micro 2 or 5"]),
        ("batch.global=3", 5, &["micro-batch 2 × 5 data-parallel ranks = 10", "batch.global 10 works"]),
        ("optim.warmup_steps=2000", 1, &["optim.warmup_steps: 2000", "1000"]),
        ("optim.min_lr=1", 1, &["optim.min_lr: 1 is above", "0.0003"]),
        ("optim.schedule=wsd", 1, &["optim.decay_steps", "length is 0", "for example 100"]),
        ("optim.schedule=wsd optim.decay_steps=950", 1, &["100 + decay 950 = 1050", "at most 900"]),
        ("train.stop_at=1001", 1, &["train.stop_at: 1001", "1000"]),
        ("validation.every=5", 1, &["validation.every", "no validation corpus"]),
        ("data.train.0.weight=0", 1, &["data.train", "add up to 0"]),
        ("data.sequence_length=65", 1, &["data.sequence_length: 65", "64"]),
        ("model.shape.hidden_size=66", 1, &["hidden_size 66", "num_attention_heads 4", "3 or 6 heads", "64 or 68"]),
        ("model.shape.head_dim=5", 1, &["model.shape.head_dim", "5 is odd", "4 or 6"]),
        ("model.shape.num_key_value_heads=3", 1, &["num_attention_heads 4", "num_key_value_heads 3", "2 or 4 works"]),
        ("lora.rank=4 lora.alpha=8", 1, &["lora: weights", "stay random", "give model.weights"]),
        (
            "lora.rank=4 lora.alpha=8 model.weights=w model.freeze.blocks=1",
            1,
            &["model.freeze: with lora", "frozen already", "leave model.freeze out"],
        ),
        (
            "lora.rank=33 lora.alpha=8 model.weights=w",
            1,
            &["lora.rank: rank 33", "the 32 rows", "k_proj", "at most 32"],
        ),
        (
            "lora.rank=4 lora.alpha=8 lora.targets=[q_proj,q_proj] model.weights=w",
            1,
            &["lora.targets: q_proj is named twice"],
        ),
        (
            "lora.rank=4 lora.alpha=8 lora.quantize=nf4 parallel.zero=3 parallel.data=2 model.shape.hidden_size=128 \
             model.shape.num_attention_heads=8 model.weights=w",
            2,
            &["parallel.zero: matrices in nf4 lie on every replica", "parallel.zero to 2"],
        ),
        (
            "optim.moments=8bit parallel.tensor=2 model.shape.hidden_size=80 model.shape.head_dim=16",
            2,
            &["optim.moments: 8-bit moments", "input_layernorm", "has 80 from place 0", "multiples of 32"],
        ),
        ("model.freeze.blocks=3 model.weights=w", 1, &["model.freeze.blocks", "3 blocks", "of 2", "at most 2"]),
        (
            "model.freeze.embedding=true model.freeze.blocks=2 model.freeze.head=true model.weights=w",
            1,
            &["all 2 blocks", "nothing is trained"],
        ),
        ("model.config=x.json", 1, &["given twice"]),
        ("model.shape=", 1, &["model: no shape is given"]),
        ("train.device=cuda", 1, &["train.device", "no CUDA device"]),
    ] {
        let line = one(set, size);
        assert!(words.iter().all(|w| line.contains(w)), "{set}: {line}");
    }
    let scaling = "model.shape.rope_scaling={rope_type: llama3, factor: 8, low_freq_factor: 4, high_freq_factor: 1, \
                   original_max_position_embeddings: 128}";
    let lines = problems(&[scaling], 1);
    assert!(lines[0].contains("low_freq_factor 4 is not below high_freq_factor 1"), "{lines:?}");
    assert!(lines[1].contains("128 is above max_position_embeddings 64"), "{lines:?}");
}

#[test]
fn settings_for_a_world_that_fits_none_of_the_axes_are_named() {
    // 8 × 4 × 4 = 128 as a 70B model is cut; no single axis makes 100 of it but by leaving tensor parallelism.
    let large = [
        "model.shape.num_attention_heads=64",
        "model.shape.num_key_value_heads=8",
        "model.shape.head_dim=2",
        "model.shape.intermediate_size=28672",
        "model.shape.num_hidden_layers=80",
        "batch.micro=1",
        "parallel.tensor=8",
        "parallel.pipeline=4",
    ];
    let line = |more: &[&str], world: usize| {
        let lines = problems(&[&large[..], more].concat(), world);
        let line = lines.iter().find(|l| l.contains("parallel.data: ")).unwrap_or_else(|| panic!("{lines:?}"));
        line.to_string()
    };
    let has = |line: &str, words: &[&str]| words.iter().for_each(|w| assert!(line.contains(w), "{w}: {line}"));
    let free = line(&["batch.global=100"], 100);
    has(
        &free,
        &[
            "32 ranks a replica",
            "world of 100",
            "for 100 ranks set tensor 4 × context 1 × pipeline 5 × data 5",
            "start 96 or 128",
        ],
    );
    has(
        &line(&["batch.global=100", "parallel.data=4"], 100),
        &["= 128 ranks, but the world has 100", "tensor 4 × context 1 × pipeline 5 × data 5", "start 128"],
    );
    // With a batch that no number of data-parallel ranks shares out but 1, 2 and 4.
    has(&line(&["batch.global=4"], 100), &["for 100 ranks set tensor", "× data "]);
    let prime = line(&["batch.global=8"], 101);
    has(&prime, &["tensor 1 × context 1 × pipeline 1 × data 101 with another batch.global"]);
    // What is named does fit.
    let named = free.split("ranks set ").nth(1).unwrap().split(", or ").filter(|s| s.starts_with("tensor "));
    let fits = |setting: &str| {
        let sizes = setting.split(|c: char| !c.is_ascii_digit()).filter(|s| !s.is_empty());
        let sets = ["tensor", "context", "pipeline"].into_iter().zip(sizes).map(|(k, n)| format!("parallel.{k}={n}"));
        let sets: Vec<String> = sets.chain(["batch.global=100".to_string()]).collect();
        let all: Vec<&str> = large.iter().copied().chain(sets.iter().map(String::as_str)).collect();
        Plan::from_draft(config(&all), &ranks(100)).unwrap().topology.world() == 100
    };
    assert_eq!(named.filter(|s| fits(s)).count(), 3);
}

#[test]
fn wrong_axes_are_reported_together() {
    let sets = [
        "parallel.tensor=3",
        "parallel.pipeline=5",
        "parallel.context=2",
        "parallel.data=2",
        "data.sequence_length=50",
    ];
    let lines = problems(&sets, 64);
    let has = |words: &str| assert!(lines.iter().any(|l| l.contains(words)), "{words}: {lines:#?}");
    has("tensor 3 × context 2 × pipeline 5 × data 2 = 60 ranks, but the world has 64");
    has("50 tokens a sequence are not a multiple of 2 × context 2 × tensor 3 = 12");
    has("num_attention_heads 4 is not a multiple of tensor 3");
    has("2 layers cannot fill pipeline 5 stages");
}

#[test]
fn single_keys_and_clashes_come_together_but_stand_ins_do_not_clash() {
    let lines =
        problems(&["optim.lrr=1", "batch.global=", "train.stop_at=2000", "model.shape.num_key_value_heads=3"], 1);
    let mut keys: Vec<&str> = lines.iter().map(|l| l.split(':').next().unwrap()).collect();
    keys.sort();
    assert_eq!(keys, ["batch.global", "model.shape.num_key_value_heads", "optim.lrr", "train.stop_at"], "{lines:?}");
    // Nothing about batch.micro against the stand-in for batch.global, nor of sequence length against a missing model.
    assert_eq!(problems(&["model.shape.max_position_embeddings=no", "data.sequence_length=9999"], 1).len(), 1);
}

#[test]
fn the_exit_code_is_device_or_model_only_where_nothing_else_is_wrong() {
    let exit = |sets: &[&str]| Plan::from_draft(config(sets), &ranks(1)).map(|p| p.config).unwrap_err().exit;
    assert_eq!(exit(&["train.device=cuda"]), Exit::Device);
    assert_eq!(exit(&["model.shape=", "model.config=/nonexistent.json"]), Exit::Model);
    assert_eq!(exit(&["train.device=cuda", "train.stop_at=2000"]), Exit::Config);
}

#[test]
fn devices_follow_the_node_local_rank() {
    let on = |local_rank, cuda_devices, choice| {
        device(choice, &Ranks { rank: 9, size: 16, local_rank, local_size: 4, cuda_devices, cores: 1 })
            .map_err(|p| p.exit)
    };
    assert_eq!(on(3, 4, DeviceChoice::Auto), Ok(Device::Cuda(3)));
    assert_eq!(on(3, 0, DeviceChoice::Auto), Ok(Device::Cpu));
    assert_eq!(on(3, 2, DeviceChoice::Auto), Ok(Device::Cuda(1)));
    assert_eq!(on(3, 1, DeviceChoice::Cuda), Ok(Device::Cuda(0)));
    assert_eq!(on(3, 2, DeviceChoice::Cpu), Ok(Device::Cpu));
    assert_eq!(on(0, 0, DeviceChoice::Cuda), Err(Exit::Device));
}

/// The largest values that pass the schema, all together: nothing wraps round.
#[test]
fn enormous_values_neither_overflow_nor_panic() {
    let shape = "model.shape={vocab_size: 2147483647, hidden_size: 1048576, intermediate_size: 4194304, \
                 num_hidden_layers: 4096, num_attention_heads: 4096, num_key_value_heads: 4096, head_dim: 1024, \
                 max_position_embeddings: 2147483647}";
    let sets = [shape, "data.sequence_length=16777216", "batch.global=16777216", "batch.micro=16777216"];
    let plan = Plan::from_draft(config(&sets), &ranks(1)).unwrap();
    assert!(Memory::peak(&plan).total() > 1 << 60);
    assert!(flops::PerToken::new(&plan.model, plan.config.data.sequence_length).full.is_finite());
    assert!(Plan::from_draft(config(&sets), &ranks(1 << 20)).is_err());
}

#[test]
fn a_config_made_in_code_meets_the_same_checks() {
    let mut c = config(&[]).finish().unwrap();
    (c.optim.lr, c.batch.micro) = (f64::NAN, 0);
    let e = Plan::new(c, &ranks(1)).map(|p| p.config).unwrap_err();
    assert_eq!(e.problems.len(), 2, "{e}");
}

#[test]
fn optimizer_state_is_shared_by_the_data_ranks() {
    let of = |size| Memory::peak(&Plan::from_draft(config(&["batch.micro=1"]), &ranks(size)).unwrap());
    let (one, four) = (of(1), of(4));
    // Four ranks pad more.
    assert!(four.moments * 4 - one.moments < one.moments / 100, "{} {}", one.moments, four.moments);
    assert_eq!(one.master * 2, one.moments);
    assert_eq!(one.parameters * 2, one.gradients);
}

#[test]
fn a_tokenizer_may_not_know_more_ids_than_the_model() {
    let plan = Plan::from_draft(config(&[]), &ranks(1)).unwrap();
    assert!(check_vocabulary(&plan.model, 256, "bytes").is_ok());
    let e = check_vocabulary(&plan.model, 257, "tok.json").unwrap_err();
    assert_eq!(e.exit, Exit::Data);
    assert!(e.to_string().contains("257") && e.to_string().contains("256"), "{e}");
}

#[test]
fn a_shape_from_a_file_meets_the_same_rules() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let good = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "hidden_act": "silu", "rope_theta": 500000.0}"#;
    let plan = |text: &str, more: &str| {
        std::fs::write(&path, text).unwrap();
        let (file, dir) =
            (format!("model.config={}", path.display()), format!("model.weights={}", dir.path().display()));
        let one = Plan::from_draft(config(&["model.shape=", &file, more]), &ranks(1));
        let two = Plan::from_draft(config(&["model.shape=", &dir, more]), &ranks(1));
        let both = (one.map(|p| p.model), two.map(|p| p.model));
        assert_eq!(both.0.as_ref().ok(), both.1.as_ref().ok());
        both.0
    };
    assert_eq!(plan(good, "seed=1").unwrap().vocab_size, 300);
    for (from, to, more, word, exit) in [
        ("llama", "mistral", "seed=1", "mistral", Exit::Model),
        ("LlamaForCausalLM", "Gemma", "seed=1", "Gemma", Exit::Model),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "seed=1", "num_key_value_heads 3", Exit::Model),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 5000", "seed=1", "num_hidden_layers is 5000", Exit::Model),
        ("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": -1", "seed=1", "rms_norm_eps: -1.0 is too small", Exit::Model),
        ("\"hidden_size\": 64,", "", "seed=1", "hidden_size is missing", Exit::Model),
        ("{\"model", "{{\"model", "seed=1", "not JSON", Exit::Model),
        (
            "64, \"rms",
            "16, \"rms",
            "seed=1",
            "32 tokens are more than the model's max_position_embeddings 16",
            Exit::Config,
        ),
        ("llama", "mistral", "train.stop_at=2000", "2 problems", Exit::Config),
    ] {
        let from_at =
            if from == "llama" { good.replace("\"architectures\": [\"LlamaForCausalLM\"],", "") } else { good.into() };
        let e = plan(&from_at.replacen(from, to, 1), more).unwrap_err();
        assert!(e.to_string().contains(word) && e.exit == exit, "{word}: {e}");
    }
}
