//! Real functions at the size Llama 3 was trained at: 405B on 16,384 ranks. With `HERD_SCALE=FILE` what was measured goes
//! there (benchmarks/scale.py).

use herd::checkpoint::manifest::{Dataset, FileEntry, FileTable, Manifest, TensorEntry};
use herd::checkpoint::{Checkpoint, Group, Meta};
use herd::config::load;
use herd::layout::Sharding;
use herd::plan::{Plan, Ranks};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

const GPUS: usize = 16_384;

/// What `size` ranks of configs/llama3_405b.yaml save: each its file with all slices that the layout gives it.
fn manifest(size: usize) -> Manifest {
    let draft = |rank: usize| {
        let sets = [format!("parallel.data={}", size / 128)];
        let draft = load::draft(&crate::support::root().join("configs/llama3_405b.yaml"), &sets).unwrap();
        let ranks = Ranks { rank, size, local_rank: 0, local_size: 8, cuda_devices: 8, cores: 1 };
        Plan::from_draft(draft, &ranks).unwrap()
    };
    let meta = Meta::new(draft(0).model);
    // Replicas have the same layout, and each its range of it.
    let places: Vec<Plan> = (0..128).map(draft).collect();
    let table = |rank: usize| {
        let plan = &places[rank % 128];
        let replica = rank / 128;
        let sharding = Sharding { replica, ..Sharding::new(&plan.config.parallel, &plan.topology) };
        let mut table = FileTable::default();
        let mut at = 0;
        for unit in &plan.layout.units {
            for group in Group::ALL {
                for (p, range) in unit.pieces(&sharding.counted(unit)).filter(|(p, _)| p.owner) {
                    let tensor = TensorEntry { group, name: p.name.clone(), shape: p.shape.clone() };
                    let (offset, extent) = (p.offset.clone(), p.extent.clone());
                    let (start, len) = (range.start, range.len());
                    let (tensor, xxh3) =
                        (table.tensor(tensor), (rank as u64 + 1).wrapping_mul(at ^ 0x9e37_79b9_7f4a_7c15));
                    table.file.datasets.push(Dataset { tensor, offset, extent, start, len, at, xxh3 });
                    at += 4 * len as u64;
                }
            }
        }
        table.file = FileEntry { name: format!("rank-{rank:05}.h5"), size: at, rest: at, ..table.file };
        table
    };
    Manifest::new(meta, (0..size).map(table).collect()).unwrap()
}

#[test]
fn the_manifest_of_405b_is_read_in_time_that_grows_with_it() {
    let bytes = |size| manifest(size).to_bytes().unwrap();
    let (half, whole) = (bytes(GPUS / 2), bytes(GPUS));
    let began = Instant::now();
    let read = Checkpoint::from_manifest(Path::new("/none"), &whole).unwrap();
    let parsed = began.elapsed();
    assert_eq!(read.file_names().count(), GPUS);
    assert!(whole.len() < half.len() * 5 / 2, "{} bytes of half the ranks, {} of all", half.len(), whole.len());
    let mib = whole.len() as f64 / (1 << 20) as f64;
    println!("{mib:.1} MiB, parsed in {parsed:?}");
    if let Some(file) = std::env::var_os("HERD_SCALE") {
        let found = json!({ "manifest_405b_mib": mib, "manifest_405b_parse_ms": parsed.as_secs_f64() * 1e3 });
        std::fs::write(file, found.to_string()).unwrap();
    }
}
