//! Every cell of the axes against one rank: the same losses, the same gradient norm, the same weights.
//!
//! A cell is a whole run through [`herd::train::run`] — plan, data, wires, steps, final checkpoint — on its own grid. All
//! cells of one world size share one set of MPI processes; the reference is the same run on one rank. `make test` runs a
//! selection, `make parity` (`HERD_PARITY=full`) all of them and keeps the table.

mod suite;

pub use suite::{assert_good, Suite};

use std::path::Path;

const STEPS: u64 = 5;
const LR: f64 = 1e-3;
/// Relative difference of loss and gradient norm of step 1 (fp32).
const FIRST_STEP: f64 = 1e-5;
/// Root mean square of the weights' differences after [`STEPS`] steps, in units of lr·steps, the most a weight can have moved.
/// AdamW divides the gradient by its own size, so rounding in a gradient near zero moves that weight by a visible part of
/// a step; docs/parity.md has what was measured.
const WEIGHTS: f64 = 1e-4;
/// The same in bf16, against bf16 on a CPU whose kernels round elsewhere.
const BF16: [f64; 3] = [1e-3, 1e-2, 0.1];

/// One grid.
#[derive(Clone, Debug)]
pub struct Cell {
    pub tensor: usize,
    pub context: usize,
    pub pipeline: usize,
    pub data: usize,
    pub schedule: &'static str,
    pub zero: usize,
    pub recompute: &'static str,
    /// Index into [`MODELS`].
    pub model: usize,
    pub device: &'static str,
    pub precision: &'static str,
    /// Attention inside documents, of a corpus of short ones.
    pub documents: bool,
    /// Master weights and moments in host memory.
    pub offload: bool,
}

/// One rank on the CPU.
pub const ALONE: Cell = Cell {
    tensor: 1,
    context: 1,
    pipeline: 1,
    data: 1,
    schedule: "1f1b",
    zero: 1,
    recompute: "none",
    model: 0,
    device: "cpu",
    precision: "fp32",
    documents: false,
    offload: false,
};

/// Uneven on purpose: 9 layers over 2 and 4 stages, 263 rows over 2 and 4 tensor ranks, 2 KV heads for 4 tensor ranks.
pub const MODELS: [&str; 2] = [
    "{vocab_size: 263, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 9, num_attention_heads: 4, \
      num_key_value_heads: 2, head_dim: 8, max_position_embeddings: 64, rope_theta: 10000.0}",
    "{vocab_size: 263, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 5, num_attention_heads: 4, \
      num_key_value_heads: 2, max_position_embeddings: 64, rope_theta: 10000.0, tie_word_embeddings: true}",
];
pub const SCHEDULES: [&str; 4] = ["gpipe", "1f1b", "interleaved", "zero_bubble"];
pub const RECOMPUTE: [&str; 3] = ["none", "selective", "full"];

impl Cell {
    pub fn world(&self) -> usize {
        self.tensor * self.context * self.pipeline * self.data
    }

    fn name(&self) -> String {
        let Cell { tensor, context, pipeline, data, schedule, zero, recompute, model, device, precision, .. } = self;
        let schedule = if *pipeline > 1 { format!(" {schedule}") } else { String::new() };
        let tied = if *model == 1 { " tied" } else { "" };
        let device = if *device == "cpu" { "" } else { " device" };
        let precision = if *precision == "fp32" { "" } else { " bf16" };
        let documents = if self.documents { " documents" } else { "" };
        let offload = if self.offload { " offload" } else { "" };
        format!("tp{tensor} cp{context} pp{pipeline}{schedule} dp{data} zero{zero} {recompute}{tied}{precision}{documents}{offload}{device}")
    }

    /// What the cell is compared with.
    fn reference(&self) -> Cell {
        Cell { model: self.model, precision: self.precision, documents: self.documents, ..ALONE }
    }

    /// Relative difference of the first step's loss and norm, and of the weights, that is allowed. bf16 rounds every product;
    /// AdamW then turns the rounding of a gradient near zero into a visible part of a step.
    fn bounds(&self) -> [f64; 3] {
        match self.precision {
            "fp32" => [FIRST_STEP, FIRST_STEP, WEIGHTS],
            _ => BF16,
        }
    }

    /// Whether nothing that is summed crosses ranks but the gradient norm, which only clipping would use. (A tied matrix has
    /// gradients from two stages.)
    fn exact(&self) -> bool {
        self.tensor * self.context * self.data == 1 && self.model == 0 && self.device == "cpu"
    }

    fn sets(&self, dir: &Path) -> Vec<String> {
        let mut sets = vec![
            format!("run_dir={}", dir.join(self.name().replace(' ', "-")).display()),
            format!("model.shape={}", MODELS[self.model]),
            "data.sequence_length=32".into(),
            "data.validation=[]".into(),
            "validation.every=0".into(),
            "batch.global=8".into(),
            "batch.micro=1".into(),
            format!("train.steps={STEPS}"),
            format!("train.precision={}", self.precision),
            format!("train.device={}", self.device),
            "train.clip_norm=0".into(),
            "train.threads=1".into(),
            "train.z_loss=0.001".into(),
            format!("train.recompute={}", self.recompute),
            format!("optim.offload={}", self.offload),
            format!("optim.lr={LR}"),
            "optim.warmup_steps=0".into(),
            "optim.schedule=constant".into(),
            format!("parallel.tensor={}", self.tensor),
            format!("parallel.context={}", self.context),
            format!("parallel.pipeline={}", self.pipeline),
            format!("parallel.data={}", self.data),
            format!("parallel.zero={}", self.zero),
            "checkpoint.every=0".into(),
            "log.sync_check_every=2".into(),
            "log.tensorboard=false".into(),
        ];
        if self.documents {
            sets.push(format!("data.train=[{{path: {}}}]", dir.join("documents_train").display()));
            sets.push("data.document_mask=true".into());
        }
        if self.pipeline > 1 {
            sets.push(format!("parallel.schedule={}", self.schedule));
            if self.schedule == "interleaved" {
                sets.push("parallel.chunks=2".into());
            }
        }
        sets
    }
}

/// All cells that fit 8 ranks.
fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (tensor, pipeline, data, context) in grids() {
        if tensor * pipeline * data * context == 1 {
            continue; // the reference
        }
        let schedules: &[&str] = if pipeline > 1 { &SCHEDULES } else { &SCHEDULES[1..2] };
        for &schedule in schedules {
            for zero in 0..4 {
                for recompute in RECOMPUTE {
                    cells.push(Cell { tensor, context, pipeline, data, schedule, zero, recompute, ..ALONE });
                }
            }
        }
        // a tied embedding, with the output matrix on another stage than the input matrix
        for zero in [1, 3] {
            cells.push(Cell { tensor, context, pipeline, data, zero, model: 1, ..ALONE });
        }
    }
    cells
}

fn grids() -> Vec<(usize, usize, usize, usize)> {
    let mut out = Vec::new();
    for tensor in [1, 2, 4] {
        for pipeline in [1, 2, 4] {
            for data in [1, 2, 4] {
                for context in [1, 2] {
                    if tensor * pipeline * data * context <= 8 {
                        out.push((tensor, pipeline, data, context));
                    }
                }
            }
        }
    }
    out
}

/// What `make test` runs: every grid of up to 4 ranks and some of 8, with schedules, stages and recomputation taking turns
/// so that each pair of options meets.
fn selection() -> Vec<Cell> {
    let all = all();
    let turn = |i: usize, c: &Cell| {
        let zero = (c.tensor + c.pipeline + c.data + i) % 4;
        c.zero == zero && c.recompute == RECOMPUTE[i % 3]
    };
    let mut out: Vec<Cell> = Vec::new();
    for (i, (tensor, pipeline, data, context)) in grids().into_iter().enumerate() {
        if tensor * pipeline * data * context == 8 && i % 3 != 0 {
            continue;
        }
        let of = |c: &&Cell| (c.tensor, c.pipeline, c.data, c.context) == (tensor, pipeline, data, context);
        for (k, schedule) in SCHEDULES.iter().enumerate() {
            let fits = |c: &&Cell| c.model == 0 && c.schedule == *schedule && turn(i + k, c);
            out.extend(all.iter().filter(of).find(fits).cloned());
        }
        if i % 2 == 0 {
            out.extend(all.iter().filter(of).find(|c| c.model == 1).cloned());
        }
    }
    out
}

fn chosen() -> Vec<Cell> {
    match std::env::var("HERD_PARITY").as_deref() {
        Ok("full") => all(),
        Ok(part) => all().into_iter().filter(|c| c.name().contains(part)).collect(),
        Err(_) => selection(),
    }
}

#[test]
fn every_cell_equals_one_rank() {
    let references = (0..MODELS.len()).map(|model| Cell { model, ..ALONE }).collect();
    let suite =
        Suite { test: "parity::every_cell_equals_one_rank", references, cells: chosen(), environment: Vec::new() };
    let rows = suite.run();
    if let Some(path) = std::env::var_os("HERD_PARITY_OUT").filter(|_| !rows.is_empty()) {
        std::fs::write(path, serde_json::to_vec(&rows).unwrap()).unwrap();
    }
    assert_good("parity", &rows);
}
