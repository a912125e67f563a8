//! Runs that train a part of the model: which units are frozen, and the units of the adapters. Pure arithmetic.

use super::{place, Cut, Layout, Unit};
use crate::config::{BlockFormat, FreezeSection, LoraSection, ModelConfig};
use crate::topology::Topology;

/// Names and global shapes of the adapters of a block, A [rank,in] and B [out,rank] of each target, in the order of the unit: what
/// reads one input lies together, A's first, so that their products are one.
pub fn adapter_shapes(m: &ModelConfig, lora: &LoraSection, block: usize) -> Vec<(String, Vec<usize>)> {
    let mut out = Vec::new();
    for group in [&["q_proj", "k_proj", "v_proj"][..], &["o_proj"], &["gate_proj", "up_proj"], &["down_proj"]] {
        let picked = || group.iter().filter(|name| lora.targets.iter().any(|t| t.name() == **name));
        let name = |module: &str, side: char| {
            let half = if module.ends_with("o_proj") || group.len() == 3 { "self_attn" } else { "mlp" };
            format!("model.layers.{block}.{half}.{module}.lora_{side}.weight")
        };
        out.extend(picked().map(|p| (name(p, 'A'), vec![lora.rank, module_shape(m, p)[1]])));
        out.extend(picked().map(|p| (name(p, 'B'), vec![module_shape(m, p)[0], lora.rank])));
    }
    out
}

/// [out, in] of a block's matrix.
fn module_shape(m: &ModelConfig, module: &str) -> [usize; 2] {
    match module {
        "q_proj" => [m.q_dim(), m.hidden_size],
        "k_proj" | "v_proj" => [m.kv_dim(), m.hidden_size],
        "o_proj" => [m.hidden_size, m.q_dim()],
        "gate_proj" | "up_proj" => [m.intermediate_size, m.hidden_size],
        _ => [m.hidden_size, m.intermediate_size],
    }
}

impl Layout {
    /// Every unit frozen, and behind each block the unit of its adapters.
    pub fn with_adapters(self, model: &ModelConfig, topo: &Topology, lora: &LoraSection) -> Layout {
        let mut units = Vec::new();
        for mut unit in self.units {
            let block = unit.unit;
            unit.frozen = true;
            // Parts that replicas read are whole runs.
            if lora.quantize.is_some() && unit.is_block() {
                unit.len = unit.len.next_multiple_of(BlockFormat::RUN * topo.replicas());
            }
            units.push(unit);
            if let Unit::Block(i) = block {
                let shapes = adapter_shapes(model, lora, i);
                units.push(place(Unit::Adapter(i), shapes, &Cut::new(model, topo), true, topo.replicas()));
            }
        }
        Layout { units }
    }

    /// The units that `freeze` names frozen.
    pub fn with_frozen(mut self, freeze: &FreezeSection) -> Layout {
        for unit in &mut self.units {
            unit.frozen = match unit.unit {
                Unit::Embedding => freeze.embedding,
                Unit::Block(i) => i < freeze.blocks,
                Unit::Head => freeze.head,
                Unit::Adapter(_) => false,
            };
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LoraTarget;

    fn model() -> ModelConfig {
        serde_json::from_value(serde_json::json!({
            "vocab_size": 100, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2,
            "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 5
        }))
        .unwrap()
    }

    fn lora(targets: &[LoraTarget]) -> LoraSection {
        LoraSection { targets: targets.to_vec(), ..LoraSection::new(4, 8.0) }
    }

    #[test]
    fn what_reads_one_input_lies_together() {
        use LoraTarget::*;
        let names: Vec<String> =
            adapter_shapes(&model(), &lora(&[VProj, QProj, DownProj]), 1).into_iter().map(|(n, _)| n).collect();
        let tails: Vec<&str> = names.iter().map(|n| n.trim_start_matches("model.layers.1.")).collect();
        assert_eq!(
            tails,
            [
                "self_attn.q_proj.lora_A.weight",
                "self_attn.v_proj.lora_A.weight",
                "self_attn.q_proj.lora_B.weight",
                "self_attn.v_proj.lora_B.weight",
                "mlp.down_proj.lora_A.weight",
                "mlp.down_proj.lora_B.weight"
            ]
        );
    }

    /// Over the tensor ranks the owners' slices are every element of every adapter once, and nothing else is trained.
    #[test]
    fn adapters_are_cut_with_their_matrices() {
        let (m, lora) = (model(), lora(&LoraTarget::ALL));
        for size in [1, 2, 6] {
            let mut held = std::collections::HashMap::<String, usize>::new();
            for rank in 0..size {
                let topo = Topology::new(rank, [size, 1, 1, 1]);
                let l = Layout::new(&m, &topo).with_adapters(&m, &topo, &lora);
                assert!(l.units.iter().all(|u| u.frozen != matches!(u.unit, Unit::Adapter(_))));
                let adapter = l.unit(Unit::Adapter(1));
                for (p, base) in adapter.params.iter().filter_map(|p| {
                    let base = p.name.replace(".lora_B", "");
                    l.unit(Unit::Block(1)).params.iter().find(|b| b.name == base).map(|b| (p, b))
                }) {
                    // A row-cut matrix and its B have the same rows, copies and owner.
                    if base.extent[0] != base.shape[0] || size == 1 {
                        assert_eq!((p.offset[0], p.extent[0], p.copies), (base.offset[0], base.extent[0], base.copies));
                    }
                }
                adapter
                    .params
                    .iter()
                    .filter(|p| p.owner)
                    .for_each(|p| *held.entry(p.name.clone()).or_default() += p.len());
            }
            for (name, shape) in adapter_shapes(&m, &lora, 1) {
                assert_eq!(held[&name], shape.iter().product::<usize>(), "{name} on {size}");
            }
        }
    }

    #[test]
    fn layers_are_frozen_by_name() {
        let freeze = FreezeSection { embedding: true, blocks: 1, head: false };
        let l = Layout::new(&model(), &Topology::solo()).with_frozen(&freeze);
        assert_eq!(l.units.iter().map(|u| u.frozen).collect::<Vec<_>>(), [true, true, false, false]);
    }
}
