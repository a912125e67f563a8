//! Tests of the data axis: gradients into shards, parameters back, replicas compared.

use super::support::ranks;
use super::wire::{expect, on_wires, same, tensor, value};
use herd::error::Exit;
use herd::parallel::data::{self, Reducer};
use herd::topology::Topology;
use herd::wire::Wire;
use std::time::Duration;
use tch::Kind;

/// Buffers of a small model on the data axis; the gradient of rank `r` is a known function.
fn replica(wire: &dyn Wire, dtype: Kind) -> (herd::layout::Layout, herd::model::Params) {
    let model = serde_json::from_value(serde_json::json!({
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 200, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2
    }))
    .unwrap();
    let layout = herd::layout::Layout::new(&model, &Topology::data(wire.rank(), wire.size()));
    let params = data::place(&layout, dtype, tch::Device::Cpu, wire).unwrap();
    (layout, params)
}

/// The reducer against plain sums, for buckets of one unit, of several and of all.
fn reducer() {
    on_wires(|_, wire| {
        let (me, size) = (wire.rank(), wire.size());
        for dtype in [Kind::Float, Kind::BFloat16] {
            let (layout, params) = replica(&**wire, dtype);
            for (mib, overlap, buckets) in [(0, true, 7), (1, true, 2), (1, false, 2), (0, false, 7), (100, true, 1)] {
                let mut reducer = Reducer::new(&params, wire.clone(), mib, overlap);
                for step in 0..2 {
                    for (u, f) in params.units.iter().enumerate() {
                        f.grad.shallow_clone().copy_(&tensor(Kind::Float, me + u + step, f.layout.len));
                    }
                    for f in params.units.iter().rev() {
                        reducer.unit_ready(f.layout.unit).unwrap();
                    }
                    let t = reducer.finish().unwrap();
                    if size > 1 {
                        assert_eq!(t.buckets, buckets, "{mib} MiB");
                        assert_eq!(t.bytes, layout.units.iter().map(|u| 4 * u.len as u64).sum::<u64>());
                        assert!(t.busy >= t.hidden && t.busy > Duration::ZERO);
                    }
                    for (u, f) in params.units.iter().enumerate() {
                        let own = f.layout.shard(me, size);
                        let sum = |i: usize| (0..size).map(|r| value(r + u + step, i)).sum();
                        let sum = expect(Kind::Float, f.layout.len, sum).narrow(0, own.start as i64, own.len() as i64);
                        let got = f.grad.narrow(0, own.start as i64, own.len() as i64);
                        assert!(same(&got, &sum), "{:?} {mib} {overlap}", f.layout.unit);
                        // The owner's update of its shard.
                        let new = tensor(dtype, u, f.layout.len).narrow(0, own.start as i64, own.len() as i64);
                        f.param.narrow(0, own.start as i64, own.len() as i64).copy_(&new);
                    }
                    reducer.gather_params().unwrap();
                    for (u, f) in params.units.iter().enumerate() {
                        assert!(same(&f.param, &tensor(dtype, u, f.layout.len)), "{:?}", f.layout.unit);
                    }
                    data::sync_check(&params, &**wire).unwrap();
                }
            }
            if size > 1 {
                let mut reducer = Reducer::new(&params, wire.clone(), 100, true);
                reducer.unit_ready(params.units[0].layout.unit).unwrap();
                assert_eq!(reducer.unit_ready(params.units[0].layout.unit).unwrap_err().exit, Exit::Internal);

                let flipped = params.units[3].param.narrow(0, 77, 1);
                if me == 1 {
                    let _ = flipped.shallow_clone().fill_(1e-30);
                }
                let e = data::sync_check(&params, &**wire).unwrap_err();
                let who = if size > 2 { "data rank 1 against" } else { "no majority" };
                assert!(e.exit == Exit::Internal && e.fact.contains("Block(2)") && e.fact.contains(who), "{e}");
            }
        }
    });
}

#[test]
fn reducer_on_1_rank() {
    if ranks(1, "data_parallel::reducer_on_1_rank") {
        reducer();
    }
}

#[test]
fn reducer_on_2_ranks() {
    if ranks(2, "data_parallel::reducer_on_2_ranks") {
        reducer();
    }
}

#[test]
fn reducer_on_3_ranks() {
    if ranks(3, "data_parallel::reducer_on_3_ranks") {
        reducer();
    }
}

/// While the caller does something else the buckets are reduced: time on the wire is hidden. A rank that comes late to
/// `finish` keeps the others waiting only where nothing was started before.
#[test]
fn overlap_hides_communication() {
    if !ranks(2, "data_parallel::overlap_hides_communication") {
        return;
    }
    const LATE: Duration = Duration::from_millis(400);
    on_wires(|world, wire| {
        let (_, params) = replica(&**wire, Kind::Float);
        let step = |overlap: bool| {
            let mut reducer = Reducer::new(&params, wire.clone(), 0, overlap);
            world.barrier().unwrap();
            for f in params.units.iter().rev() {
                reducer.unit_ready(f.layout.unit).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            if world.rank() == 1 {
                std::thread::sleep(LATE);
            }
            reducer.finish().unwrap()
        };
        let (with, without) = (step(true), step(false));
        assert!(with.hidden > Duration::ZERO && with.hidden == with.busy - with.exposed, "{with:?}");
        assert!(2 * with.hidden > with.busy, "{with:?}");
        if world.rank() == 0 {
            assert!(with.exposed < LATE / 2 && without.exposed > LATE / 4, "{with:?} {without:?}");
            assert!(without.exposed > 4 * with.exposed, "{with:?} {without:?}");
        }
    });
}
