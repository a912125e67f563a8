//! Tests of the data axis: gradients into parts, parameters back, replicas compared.

use super::support::ranks;
use super::wire::{expect, on_wires, same, tensor, value};
use herd::error::Exit;
use herd::layout::Sharding;
use herd::model::{Owned, Units, Use};
use herd::parallel::{sync, Groups, Sharded, ZeroOptions};
use herd::topology::Topology;
use herd::wire::Wire;
use std::sync::Arc;
use std::time::Duration;
use tch::Kind;

/// Units of a small model on the data axis under ZeRO 1.
fn replica(wire: &Arc<dyn Wire>, dtype: Kind, bucket_mib: usize, overlap: bool) -> (herd::layout::Layout, Sharded) {
    let model = serde_json::from_value(serde_json::json!({
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 200, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2
    }))
    .unwrap();
    let layout = herd::layout::Layout::new(&model, &Topology::data(wire.rank(), wire.size()));
    let sharding = Sharding {
        stage: if wire.size() > 1 { 1 } else { 0 },
        replicas: wire.size(),
        replica: wire.rank(),
        group: wire.size(),
    };
    let how = ZeroOptions { sharding, dtype, device: tch::Device::Cpu, bucket_mib, overlap, quantize: None };
    let groups = Groups { shard: wire.clone(), gather: wire.clone(), ..Groups::solo() };
    let units = Sharded::new(&layout, how, groups).unwrap();
    (layout, units)
}

/// Gradients into their parts and parameters back against plain sums, for buckets of one unit, of several and of all; the
/// gradient of rank `r` is a known function.
fn reducer() {
    on_wires(|world, wire| {
        let (me, size) = (wire.rank(), wire.size());
        for dtype in [Kind::Float, Kind::BFloat16] {
            for (mib, overlap, buckets) in [(0, true, 7), (1, true, 2), (1, false, 2), (0, false, 7), (100, true, 1)] {
                let (layout, mut units) = replica(wire, dtype, mib, overlap);
                let grads: u64 = layout.units.iter().map(|u| 4 * u.len as u64).sum();
                let params = grads / 4 * dtype.elt_size_in_bytes() as u64;
                for step in 0..2 {
                    units.begin(1);
                    for (u, l) in layout.units.iter().enumerate().rev() {
                        let held = units.hold(l.unit, Use::Backward).unwrap();
                        held.flat.grad.shallow_clone().copy_(&tensor(Kind::Float, me + u + step, l.len));
                        units.release(l.unit, Use::Backward).unwrap();
                        units.complete(l.unit).unwrap();
                    }
                    units.finish().unwrap();
                    let t = units.spent();
                    if size > 1 {
                        assert_eq!((t.buckets, t.bytes), (buckets, grads), "{mib} MiB");
                        assert!(t.busy >= t.hidden && t.busy > Duration::ZERO);
                    }
                    for (u, Owned { layout: l, range, param, grad, .. }) in units.owned().iter().enumerate() {
                        let part = |t: &tch::Tensor| t.narrow(0, range.start as i64, range.len() as i64);
                        let sum = |i: usize| (0..size).map(|r| value(r + u + step, i)).sum();
                        let sum = part(&expect(Kind::Float, l.len, sum));
                        assert!(same(grad, &sum), "{:?} {mib} {overlap}", l.unit);
                        // The owner's update of its part.
                        param.shallow_clone().copy_(&part(&tensor(dtype, u, l.len)));
                    }
                    units.publish().unwrap();
                    for (u, l) in layout.units.iter().enumerate() {
                        let held = units.hold(l.unit, Use::Forward).unwrap();
                        assert!(same(&held.flat.param, &tensor(dtype, u, l.len)), "{:?}", l.unit);
                        units.release(l.unit, Use::Forward).unwrap();
                    }
                    let t = units.spent();
                    assert!(size == 1 || t.bytes == params, "{t:?}");
                    sync::sync_check(&mut units, world).unwrap();
                }
                if mib == 100 && size > 1 {
                    let held = units.hold(layout.units[3].unit, Use::Forward).unwrap();
                    if me == 1 {
                        let _ = held.flat.param.narrow(0, 77, 1).fill_(1e-30);
                    }
                    let e = sync::sync_check(&mut units, world).unwrap_err();
                    let host = world.host();
                    let who = match size {
                        2 => format!("no majority among ranks 0 ({host}), 1 ({host})"),
                        _ => format!("rank 1 ({host}) against all others"),
                    };
                    assert!(e.exit == Exit::Internal && e.fact.contains("Block(2)") && e.fact.contains(&who), "{e}");
                }
            }
            let (layout, mut units) = replica(wire, dtype, 25, true);
            units.begin(1);
            assert_eq!(units.finish().unwrap_err().exit, Exit::Internal);
            units.begin(0);
            assert_eq!(units.complete(layout.units[0].unit).unwrap_err().exit, Exit::Internal);
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
        let step = |overlap: bool| {
            let (layout, mut units) = replica(wire, Kind::Float, 0, overlap);
            units.begin(1);
            world.barrier().unwrap();
            for l in layout.units.iter().rev() {
                units.hold(l.unit, Use::Backward).unwrap();
                units.release(l.unit, Use::Backward).unwrap();
                units.complete(l.unit).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
            if world.rank() == 1 {
                std::thread::sleep(LATE);
            }
            units.finish().unwrap();
            units.spent()
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
