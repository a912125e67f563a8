//! Who holds which slice in the configurations that are shipped, at their own and other sizes: pure arithmetic, no MPI.

use herd::config::load;
use herd::layout::Layout;
use herd::plan::{Plan, Ranks};
use herd::topology::{Axis, Topology};
use std::collections::HashMap;
use std::time::Instant;

fn plan(config: &str, rank: usize, size: usize, sets: &[&str]) -> Plan {
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    let draft = load::draft(&crate::support::root().join("configs").join(config), &sets).unwrap();
    let ranks = Ranks { rank, size, local_rank: 0, local_size: 1, cuda_devices: 1, cores: 1 };
    Plan::from_draft(draft, &ranks).unwrap()
}

/// A slice of a parameter on the dim that is cut.
type Part = (usize, usize);
/// The slices of a parameter of some shape along the dim that is cut.
type Cut = (Vec<usize>, usize, Vec<Part>);

/// Adds one rank's slices that it is the owner of; where a dim is cut, the others must be whole.
fn collect(layout: &Layout, parts: &mut HashMap<String, Cut>) {
    for (_, p) in layout.params().filter(|(_, p)| p.owner) {
        let cut = (0..p.shape.len()).find(|&d| p.extent[d] != p.shape[d]).unwrap_or(0);
        assert!((0..p.shape.len()).all(|d| d == cut || p.extent[d] == p.shape[d]), "{}: cut twice", p.name);
        let entry = parts.entry(p.name.clone()).or_insert_with(|| (p.shape.clone(), cut, Vec::new()));
        entry.2.push((p.offset[cut], p.extent[cut]));
        // all slices of a parameter are cut on the same dim, so lengths along it must add up to that dim
        assert_eq!(p.len() / p.extent[cut].max(1), p.global_len() / p.shape[cut], "{}", p.name);
    }
}

/// Every parameter on exactly the ranks that the layout says: over all ranks, the owners' slices cover each parameter once,
/// each (tensor, pipeline) place has all its replicas, and their shards cover its flat buffers once.
fn audit(config: &str, size: usize, sets: &[&str]) {
    let began = Instant::now();
    let first = plan(config, 0, size, sets);
    let sizes = first.topology.sizes;
    let replicas = first.topology.replicas();
    let mut places: HashMap<(usize, usize), Vec<bool>> = HashMap::new();
    for rank in 0..size {
        let t = Topology::new(rank, sizes);
        let seen =
            places.entry((t.coord(Axis::Tensor), t.coord(Axis::Pipeline))).or_insert_with(|| vec![false; replicas]);
        assert!(!std::mem::replace(&mut seen[t.replica()], true), "rank {rank} of {config}: its place is taken");
    }
    assert!(places.values().flatten().all(|&seen| seen), "{config}: a place is empty");

    let mut parts = HashMap::new();
    let mut copies: HashMap<String, usize> = HashMap::new();
    for &(tensor, pipeline) in places.keys() {
        let rank = tensor + pipeline * sizes[0] * sizes[1];
        let plan = plan(config, rank, size, sets);
        assert_eq!((plan.topology.coord(Axis::Tensor), plan.topology.coord(Axis::Pipeline)), (tensor, pipeline));
        collect(&plan.layout, &mut parts);
        for u in &plan.layout.units {
            let shards: usize = (0..replicas).map(|r| u.shard(r, replicas).len()).sum();
            assert_eq!(shards, u.len, "{config}: {:?} of rank {rank}", u.unit);
            let used: usize = (0..replicas)
                .flat_map(|r| u.pieces(&u.shard(r, replicas)).map(|(_, l)| l.len()).collect::<Vec<_>>())
                .sum();
            assert_eq!(used, u.used, "{config}: {:?} of rank {rank}", u.unit);
        }
        for (_, p) in plan.layout.params() {
            *copies.entry(p.name.clone()).or_default() += 1;
        }
    }
    let mut total = 0;
    for (name, (shape, cut, mut slices)) in parts {
        slices.sort();
        let mut at = 0;
        for (offset, extent) in slices {
            assert_eq!(offset, at, "{config}: {name} is held twice or not at all at {at}");
            at += extent;
        }
        assert_eq!(at, shape[cut], "{config}: {name} ends early");
        let tied = first.model.tie_word_embeddings && sizes[2] > 1 && name.contains("embed_tokens");
        assert_eq!(
            copies[&name],
            sizes[0] * (1 + tied as usize),
            "{config}: {name} lies on other ranks than its stage's"
        );
        total += shape.iter().product::<usize>();
    }
    assert_eq!(total, herd::layout::count(&first.model), "{config}: a parameter is missing");
    eprintln!("{config} on {size} ranks, axes {sizes:?}: {total} parameters, {:.1} s", began.elapsed().as_secs_f64());
}

#[test]
fn every_parameter_of_70b_and_405b_is_on_its_ranks() {
    audit("llama3_70b.yaml", 128, &[]);
    audit("llama3_70b.yaml", 64, &["parallel.data=2"]);
    audit("llama3_70b.yaml", 16384, &["parallel.data=512"]);
    audit("llama3_405b.yaml", 16384, &[]);
    audit("llama3_405b.yaml", 64, &["parallel.tensor=4", "parallel.data=1"]);
    audit("llama3_405b.yaml", 16384, &["parallel.context=16", "parallel.data=8"]);
}

#[test]
fn small_models_too() {
    audit("llama3_8b.yaml", 8, &[]);
    audit("llama32_1b.yaml", 8, &[]);
    audit(
        "llama32_1b.yaml",
        64,
        &[
            "parallel.tensor=4",
            "parallel.pipeline=4",
            "parallel.data=4",
            "parallel.chunks=2",
            "parallel.schedule=interleaved",
        ],
    );
}
