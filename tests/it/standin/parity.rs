//! Training on the stand-in against one rank on the CPU: the same losses, norms and weights, over every axis.

use super::environment;
use crate::parity::{assert_good, Cell, Suite, ALONE, MODELS, RECOMPUTE, SCHEDULES};

const ON: Cell = Cell { device: "cuda", ..ALONE };
const BF16: Cell = Cell { precision: "bf16", ..ON };

/// Each axis alone, in pairs, with every schedule, stage and recomputation; fp32 over the unfused attention, bf16 over the
/// fused, with and without documents.
fn cells() -> Vec<Cell> {
    let mut out = Vec::new();
    // one rank
    for base in [ON, BF16] {
        for model in 0..MODELS.len() {
            for documents in [false, true] {
                out.extend(RECOMPUTE.map(|recompute| Cell { recompute, model, documents, ..base.clone() }));
            }
        }
    }
    for (i, base) in [ON, BF16].into_iter().enumerate() {
        let on = |tensor, context, pipeline, data| Cell { tensor, context, pipeline, data, ..base.clone() };
        let turn = |n: usize| RECOMPUTE[(n + i) % 3];
        // state in host memory
        out.push(Cell { offload: true, ..base.clone() });
        out.extend([0, 1, 3].map(|zero| Cell { offload: true, zero, ..on(1, 1, 1, 2) }));
        // two ranks
        out.extend((0..4).map(|zero| Cell { zero, recompute: turn(zero), ..on(1, 1, 1, 2) }));
        out.extend(SCHEDULES.iter().enumerate().map(|(n, s)| Cell {
            schedule: s,
            recompute: turn(n),
            ..on(1, 1, 2, 1)
        }));
        out.extend([false, true].map(|documents| Cell { documents, ..on(2, 1, 1, 1) }));
        out.extend([false, true].map(|documents| Cell { documents, ..on(1, 2, 1, 1) }));
        out.extend([on(2, 1, 1, 1), on(1, 1, 2, 1), on(1, 1, 1, 2)].map(|c| Cell {
            model: 1,
            zero: 1 + 2 * (c.data / 2),
            ..c
        }));
        // four
        let four = [on(2, 1, 2, 1), on(2, 1, 1, 2), on(1, 1, 2, 2), on(4, 1, 1, 1), on(2, 2, 1, 1)];
        out.extend(four.into_iter().enumerate().map(|(n, c)| Cell { zero: n % 4, recompute: turn(n), ..c }));
    }
    out
}

#[test]
fn every_cell_on_the_stand_in_equals_the_cpu() {
    let environment = match std::env::var_os("HERD_PARITY_DIR") {
        Some(_) => Vec::new(),
        None => match environment() {
            Some(found) => found,
            None => return,
        },
    };
    let mut references = Vec::new();
    for model in 0..MODELS.len() {
        for (precision, documents) in [("fp32", false), ("fp32", true), ("bf16", false), ("bf16", true)] {
            references.push(Cell { model, precision, documents, ..ALONE });
        }
    }
    let compared = references.len();
    let test = "standin::parity::every_cell_on_the_stand_in_equals_the_cpu";
    let suite = Suite { test, references, cells: cells(), environment };
    let rows = suite.run();
    if rows.is_empty() {
        return;
    }
    if let Some(path) = std::env::var_os("HERD_STANDIN_PARITY_OUT") {
        std::fs::write(path, serde_json::to_vec(&rows[compared..]).unwrap()).unwrap();
    }
    assert!(rows.len() - compared >= 60, "{} cells", rows.len() - compared);
    assert_good("on the stand-in", &rows);
}
