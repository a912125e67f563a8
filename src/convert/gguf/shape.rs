//! What the metadata says of a Llama, and llama.cpp's names of its parameters.

use super::header::GgufHead;
use crate::config::{ModelConfig, RopeScaling, RopeType};
use crate::error::{Error, Exit, Result};

/// Factors of Llama 3.1's rotary frequencies, which llama.cpp stores as they come out.
pub const ROPE: &str = "rope_freqs.weight";

/// llama.cpp's name of a parameter.
pub fn gguf_name(name: &str) -> String {
    let table = [
        ("model.embed_tokens.", "token_embd."),
        ("model.norm.", "output_norm."),
        ("lm_head.", "output."),
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.down_proj", "ffn_down"),
        ("mlp.up_proj", "ffn_up"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ];
    table.iter().fold(name.to_string(), |name, (ours, theirs)| name.replace(ours, theirs))
}

/// The model. `factors`: those of [`ROPE`], where the file has them. Errors ([`Exit::Model`]): another architecture or variant.
pub fn model(head: &GgufHead, factors: Option<&[f32]>) -> Result<ModelConfig> {
    let architecture = head.text("general.architecture").unwrap_or("missing");
    if architecture != "llama" {
        return Err(wrong(format!("its architecture is {architecture}; herd runs llama only")));
    }
    let key = |name: &str| format!("llama.{name}");
    let size = |name: &str| -> Result<Option<usize>> {
        match head.count(&key(name)) {
            Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
            None if !head.meta.contains_key(&key(name)) => Ok(None),
            _ => Err(wrong(format!("llama.{name} is {:?}, not one count from 1 to 2^31", head.meta.get(&key(name))))),
        }
    };
    let need = |name: &str| size(name)?.ok_or_else(|| wrong(format!("llama.{name} is missing")));
    if head.count(&key("expert_count")).is_some_and(|n| n > 0) {
        return Err(wrong("it is a mixture of experts (llama.expert_count); herd runs dense models only".into()));
    }
    // As llama.cpp reads it: linear where no type is named, the old key where the new one is absent, 0 is none.
    let scaling = head.text(&key("rope.scaling.type")).unwrap_or("linear");
    let linear = head.number(&key("rope.scaling.factor")).or(head.number(&key("rope.scale_linear"))).unwrap_or(1.0);
    if scaling != "none" && ![0.0, 1.0].contains(&linear) {
        return Err(wrong(format!("llama.rope.scaling.type is {scaling}; herd knows Llama 3.1's scaling only")));
    }
    let (hidden_size, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let width = size("attention.key_length")?;
    let head_dim = width.unwrap_or(hidden_size / heads);
    if let Some(rotated) = size("rope.dimension_count")?.filter(|&n| n != head_dim) {
        return Err(wrong(format!(
            "llama.rope.dimension_count is {rotated}, heads have {head_dim}; herd rotates whole heads only"
        )));
    }
    if let Some(values) = size("attention.value_length")?.filter(|&n| n != head_dim) {
        return Err(wrong(format!("values have {values} elements a head, keys {head_dim}; herd wants them equal")));
    }
    let rope_theta = head.number(&key("rope.freq_base")).unwrap_or(10_000.0);
    let vocab = |t: &super::header::StoredTensor| t.shape[0];
    let model = ModelConfig {
        vocab_size: head
            .tensors
            .get("token_embd.weight")
            .map(vocab)
            .ok_or_else(|| wrong("it lacks token_embd.weight".into()))?,
        hidden_size,
        intermediate_size: need("feed_forward_length")?,
        num_hidden_layers: need("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim: width,
        max_position_embeddings: need("context_length")?,
        rms_norm_eps: head
            .number(&key("attention.layer_norm_rms_epsilon"))
            .ok_or_else(|| wrong("llama.attention.layer_norm_rms_epsilon is missing".into()))?,
        rope_theta,
        rope_scaling: factors.map(|f| rope_scaling(f, rope_theta, head_dim)).transpose()?.flatten(),
        tie_word_embeddings: !head.tensors.contains_key("output.weight"),
        initializer_range: 0.02,
    };
    match model.fault() {
        Some(fault) => Err(wrong(fault)),
        None => Ok(model),
    }
}

/// Llama 3.1's and 3.2's settings, which differ in `factor` alone, from what came out of them.
fn rope_scaling(factors: &[f32], theta: f64, head_dim: usize) -> Result<Option<RopeScaling>> {
    let factor = factors.iter().copied().fold(1.0f32, f32::max) as f64;
    if factors.iter().all(|&f| f == 1.0) {
        return Ok(None);
    }
    let s = RopeScaling {
        rope_type: RopeType::Llama3,
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let want = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * i as f64 / head_dim as f64);
        let turns = s.original_max_position_embeddings as f64 / wavelength;
        let smooth = ((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)).clamp(0.0, 1.0);
        1.0 / ((1.0 - smooth) / factor + smooth)
    };
    let fits = factors.len() == head_dim / 2
        && factors.iter().enumerate().all(|(i, &f)| (f as f64 - want(i)).abs() <= 1e-3 * want(i));
    match fits {
        true => Ok(Some(s)),
        false => Err(wrong(format!(
            "{ROPE} is not what Llama 3.1's scaling by {factor} gives (low 1, high 4, context 8192)"
        ))),
    }
}

fn wrong(fact: String) -> Error {
    Error::new(Exit::Model, fact)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// llama.cpp's convert_hf_to_gguf.py, generate_extra_tensors of LlamaModel.
    #[test]
    fn the_scaling_is_found_again_in_its_factors() {
        let (theta, dim, factor) = (500_000f64, 64usize, 32.0);
        let made = |i: usize| {
            let wavelength = 2.0 * std::f64::consts::PI / (1.0 / theta.powf(2.0 * i as f64 / dim as f64));
            if wavelength < 8192.0 / 4.0 {
                return 1.0f32;
            }
            if wavelength > 8192.0 {
                return factor as f32;
            }
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        };
        let factors: Vec<f32> = (0..dim / 2).map(made).collect();
        assert_eq!(rope_scaling(&factors, theta, dim).unwrap().unwrap().factor, 32.0);
        assert_eq!(rope_scaling(&[1.0; 32], theta, dim).unwrap(), None);
        assert!(rope_scaling(&factors, 10_000.0, dim).unwrap_err().fact.contains(ROPE));
    }
}
