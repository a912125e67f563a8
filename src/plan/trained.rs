//! Runs that train a part of the model or on preference pairs: whether adapters, frozen layers and the loss fit the model and the data.

use super::shape::Shape;
use super::Plan;
use crate::config::{
    BlockFormat, Config, DpoLoss, DpoSection, FreezeSection, LoraSection, MomentFormat, Problem, TooLong,
};
use crate::layout::{adapter_shapes, PAD};
use crate::topology::Axis;

/// All clashes of `lora` and `model.freeze` with each other and the model.
pub fn check(config: &Config, shape: Option<&Shape>, out: &mut Vec<Problem>) {
    let freeze = config.model.freeze.filter(|f| *f != FreezeSection::default());
    if let (Some(_), Some(_)) = (&config.lora, freeze) {
        let fact = "with lora every weight of the model is frozen already";
        out.push(Problem::new(["model.freeze", "lora"], fact).hint("leave model.freeze out"));
    }
    let key = if config.lora.is_some() { "lora" } else { "model.freeze" };
    if (config.lora.is_some() || freeze.is_some()) && config.model.weights.is_none() {
        let fact = "weights are to be frozen, but the run has none to start from: they would stay random";
        out.push(Problem::new([key, "model.weights"], fact).hint("give model.weights"));
    }
    if let Some(dpo) = &config.dpo {
        preference(dpo, config, out);
    }
    if let Some(lora) = &config.lora {
        adapters(lora, shape, out);
        if let Some(format) = lora.quantize {
            quantized(format, config, shape, out);
        }
    }
    if let (Some(freeze), Some(shape)) = (freeze, shape) {
        let layers = shape.model.num_hidden_layers;
        let key = "model.freeze.blocks";
        if freeze.blocks > layers {
            let mut problem = Problem::new([key], format!("{} blocks are to be frozen of {layers}", freeze.blocks));
            problem.keys.extend(shape.problem(&["num_hidden_layers"], String::new()).keys);
            out.push(problem.hint(format!("at most {layers}")));
        } else if freeze.blocks == layers && freeze.embedding && freeze.head {
            let fact = format!("all {layers} blocks, the embedding and the head are frozen: nothing is trained");
            out.push(Problem::new(["model.freeze"], fact).hint("leave something to train"));
        }
    }
}

fn preference(dpo: &DpoSection, config: &Config, out: &mut Vec<Problem>) {
    let mut clash = |keys: &[&str], fact: &str, hint: &str| {
        out.push(Problem::new(keys.iter().copied(), fact).hint(hint));
    };
    match config.data.chat {
        None => clash(&["dpo", "data.chat"], "preference pairs are conversations", "set data.chat: {}"),
        Some(chat) if chat.too_long == TooLong::Cut => clash(
            &["data.chat.too_long", "dpo"],
            "the answers of a pair are not cut: their log-probabilities would be those of other answers",
            "refuse or drop",
        ),
        Some(_) => {}
    }
    if config.model.weights.is_none() {
        let fact = "pairs are compared with the model that the run begins with, but it begins with random weights";
        clash(&["dpo", "model.weights"], fact, "give model.weights");
    }
    if config.train.z_loss > 0.0 {
        clash(&["train.z_loss", "dpo"], "the z-loss belongs to the cross-entropy of every token", "set it to 0");
    }
    if dpo.loss == DpoLoss::Ipo && dpo.length_normalized {
        let fact = "ipo averages over the tokens of each answer already";
        clash(&["dpo.length_normalized", "dpo.loss"], fact, "leave length_normalized out");
    }
    if dpo.loss == DpoLoss::Ipo && dpo.label_smoothing > 0.0 {
        clash(&["dpo.label_smoothing", "dpo.loss"], "label smoothing is of the sigmoid loss", "leave it out");
    }
}

fn adapters(lora: &LoraSection, shape: Option<&Shape>, out: &mut Vec<Problem>) {
    for (i, target) in lora.targets.iter().enumerate() {
        if lora.targets[..i].contains(target) {
            let fact = format!("{} is named twice", target.name());
            out.push(Problem::new(["lora.targets"], fact).hint("name each matrix once"));
        }
    }
    let Some(shape) = shape else { return };
    // A has [r,in], B [out,r].
    let other = |name: &str, s: &[usize]| if name.ends_with("lora_A.weight") { s[1] } else { s[0] };
    let sides = adapter_shapes(&shape.model, lora, 0).into_iter().map(|(name, s)| (other(&name, &s), name));
    if let Some((least, name)) = sides.min().filter(|(least, _)| *least < lora.rank) {
        let module = name.split('.').rev().nth(2).unwrap_or_default();
        let fact = format!("rank {} is more than the {least} rows or columns of {module}", lora.rank);
        out.push(Problem::new(["lora.rank"], fact).hint(format!("at most {least}; 8 to 64 is usual")));
    }
}

/// Matrices in fewer bits are whole on every rank, and each rank's rows are whole runs.
fn quantized(format: BlockFormat, config: &Config, shape: Option<&Shape>, out: &mut Vec<Problem>) {
    let p = &config.parallel;
    let alone = p.data == 1 && p.context <= 1;
    if p.zero == 3 && p.shard_size != 1 && !alone {
        let fact = format!("matrices in {} lie on every replica, zero 3 would share them out", format.name());
        let hint = "set parallel.zero to 2: adapters are shared out all the same";
        out.push(Problem::new(["parallel.zero", "lora.quantize"], fact).hint(hint));
    }
    let Some(shape) = shape else { return };
    let (m, tensor) = (&shape.model, p.tensor.max(1));
    for (key, of_rank) in [
        ("hidden_size", m.hidden_size),
        ("num_attention_heads", m.q_dim() / tensor),
        ("intermediate_size", m.intermediate_size / tensor),
    ] {
        if !of_rank.is_multiple_of(BlockFormat::RUN) {
            let fact =
                format!("a rank's rows have {of_rank} elements, which are no whole runs of {}", BlockFormat::RUN);
            let mut problem = Problem::new(["lora.quantize", "parallel.tensor"], fact);
            problem.keys.extend(shape.problem(&[key], String::new()).keys);
            out.push(problem.hint("another tensor axis, or leave lora.quantize out"));
        }
    }
}

/// Moments in 8 bits of what tensor ranks hold alike stay alike only where its runs hold nothing else.
pub fn mixed_runs(plan: &Plan) -> Option<Problem> {
    if plan.config.optim.moments == MomentFormat::Fp32 {
        return None;
    }
    // Where layers are frozen one stage may train what another does not.
    let (stages, stride) = (plan.topology.size(Axis::Pipeline), plan.topology.stride(Axis::Pipeline));
    let layouts: Vec<_> = (0..stages).map(|stage| plan.of_rank(stage * stride).layout).collect();
    let mut trained = layouts.iter().flat_map(|l| &l.units).filter(|u| !u.frozen).flat_map(|u| &u.params);
    let whole = |n: usize| n.is_multiple_of(PAD);
    let p = trained.find(|p| p.copies > 1 && !(whole(p.start) && whole(p.len())))?;
    let fact = format!(
        "8-bit moments have a scale for each {PAD} values; {}, which {} tensor ranks hold alike, has {} from place {} on, no whole runs",
        p.name,
        p.copies,
        p.len(),
        p.start
    );
    let hint = format!("sizes that are multiples of {PAD} (hidden_size above all), no tensor axis, or fp32 moments");
    Some(Problem::new(["optim.moments", "parallel.tensor"], fact).hint(hint))
}

impl Plan {
    /// Whether some weights of the model are not trained.
    pub fn partial(&self) -> bool {
        self.layout.units.iter().any(|u| u.frozen) || self.config.lora.is_some() || self.frozen_layers().is_some()
    }

    /// The layers that are frozen, if any are.
    pub fn frozen_layers(&self) -> Option<FreezeSection> {
        self.config.model.freeze.filter(|f| *f != FreezeSection::default())
    }
}
