//! The CUDA column: what fits a card, and what does not grow.

use super::*;
use crate::config::load;
use crate::plan::tests::config;
use crate::plan::Ranks;

const ONE: Ranks = Ranks { rank: 0, size: 1, local_rank: 0, local_size: 1, cuda_devices: 1, cores: 1 };

/// A card of 80 GB has 79.1 GiB; a tenth is left to the allocator's slack.
const CARD: u64 = 72 << 30;

#[test]
fn the_shipped_configurations_fit_cards_of_80_gb() {
    for (name, size) in [("llama32_1b", 8), ("llama3_8b", 8), ("llama3_70b", 128), ("llama3_405b", 16_384)] {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("configs/{name}.yaml"));
        // The first rank of each stage of the pipeline.
        let stages = load::draft(&file, &[]).unwrap().config.parallel.pipeline;
        let inner = load::draft(&file, &[]).unwrap().config.parallel.tensor;
        for stage in 0..stages {
            let ranks = Ranks { rank: stage * inner, size, local_rank: 0, local_size: 8, cuda_devices: 8, cores: 8 };
            let plan = Plan::from_draft(load::draft(&file, &[]).unwrap(), &ranks).unwrap();
            assert_eq!(plan.topology.coord(Axis::Pipeline), stage, "{name}");
            let memory = Memory::peak(&plan);
            assert!(memory.total() <= CARD, "{name}, stage {stage}: {} GiB of {memory:?}", memory.total() >> 30);
            assert!(memory.beside.workspace > 0 && memory.beside.context > 0 && memory.beside.communicators > 0);
        }
    }
}

#[test]
fn fused_attention_has_no_term_of_the_length_squared() {
    let of = |sets: &[&str]| {
        let long =
            ["model.shape.max_position_embeddings=65536", "batch.micro=1", "batch.global=1", "train.recompute=full"];
        let sets: Vec<&str> = long.iter().chain(sets).copied().collect();
        Memory::peak(&Plan::from_draft(config(&sets), &ONE).unwrap())
    };
    let bf16 = |length: &str| of(&["train.precision=bf16", length]);
    let (short, long) = (bf16("data.sequence_length=8192"), bf16("data.sequence_length=32768"));
    let moving = |m: &Memory| (m.activations + m.working + m.inputs) as f64;
    assert!(moving(&long) <= 4.05 * moving(&short), "{short:?} {long:?}");
    // On the CPU nothing lies beside tensors.
    let cpu = of(&["train.device=cpu", "data.sequence_length=8192"]);
    assert!(cpu.total() == cpu.tensors() && short.total() > short.tensors());
    assert_eq!(cpu.terms().len(), 5);
}

/// 70B with adapters on one node of 8 cards of 80 GB; all weights do not fit there.
#[test]
fn adapters_of_70b_fit_one_node_and_all_weights_do_not() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/llama3_70b.yaml");
    let of = |lora: &[&str]| {
        let sets = [
            "parallel.tensor=8",
            "parallel.pipeline=1",
            "parallel.context=1",
            "parallel.data=1",
            "batch.micro=1",
            "train.recompute=full",
            "parallel.schedule=1f1b",
            "parallel.chunks=1",
        ];
        let sets: Vec<String> = sets.iter().chain(lora).map(|s| s.to_string()).collect();
        let ranks = Ranks { rank: 0, size: 8, local_rank: 0, local_size: 8, cuda_devices: 8, cores: 8 };
        Memory::peak(&Plan::from_draft(load::draft(&file, &sets).unwrap(), &ranks).unwrap())
    };
    let (all, lora) = (of(&[]), of(&["lora.rank=16", "lora.alpha=32", "model.weights=w"]));
    assert!(lora.total() <= CARD && all.total() > CARD, "{lora:?} {all:?}");
    assert_eq!(lora.parameters, all.parameters + lora.gradients / 2);
    assert!(lora.gradients * 40 < all.gradients && lora.moments == lora.gradients * 2);
    // As shipped, and on two cards in 4 bits.
    let draft = |file: &str, sets: &[String]| {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(file);
        load::draft(&file, sets).unwrap()
    };
    let shape = serde_json::to_string(&draft("llama3_70b.yaml", &[]).config.model.shape).unwrap();
    let few = |tensor| [tensor, "lora.quantize=nf4"];
    for (size, sets) in [(8, &[][..]), (2, &few("parallel.tensor=2")), (1, &few("parallel.tensor=1"))] {
        let sets: Vec<String> = sets.iter().map(|s| s.to_string()).chain([format!("model.shape={shape}")]).collect();
        let ranks = Ranks { rank: 0, size, local_rank: 0, local_size: size, cuda_devices: size, cores: 8 };
        let memory = Memory::peak(&Plan::from_draft(draft("llama31_70b_lora.yaml", &sets), &ranks).unwrap());
        assert!(memory.total() <= CARD, "{size} cards: {memory:?}");
    }
    // In fewer bits: a block in bf16 at a time, embedding and head too.
    let few = |format: &str| of(&["lora.rank=16", "lora.alpha=32", "model.weights=w", format]).parameters as f64;
    let (eight, four) = (few("lora.quantize=int8"), few("lora.quantize=nf4"));
    let (blocks, rest) = (80.0 * 855.65e6 / 8.0, (2.0 * 128_256.0 * 8192.0 / 8.0 + 855.65e6 / 8.0) * 2.0);
    for (bits, found) in [(8.5, eight), (4.5, four)] {
        let adapters = lora.gradients as f64 / 2.0;
        assert!((found / (blocks * bits / 8.0 + rest + adapters) - 1.0).abs() < 0.01, "{bits}: {found}");
    }
}
