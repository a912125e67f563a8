//! The same functions in differentiable libtorch operations and in double precision, written from the papers and not from
//! the kernels.

use crate::config::ModelConfig;
use crate::layout::Unit;
use crate::model::{Flat, Params};
use tch::{Device, Kind, Tensor};

/// A unit's parameters as leaves that take a gradient.
pub struct Leaves(pub Vec<(String, Tensor)>);

impl Leaves {
    pub fn new(unit: &Flat) -> Leaves {
        let leaf = |name: &str| unit.param(name).to_kind(Kind::Double).set_requires_grad(true);
        Leaves(unit.layout.params.iter().map(|p| (p.name.clone(), leaf(&p.name))).collect())
    }

    pub fn get(&self, tail: &str) -> &Tensor {
        &self.0.iter().find(|(name, _)| name.ends_with(tail)).unwrap().1
    }
}

pub fn leaf(x: &Tensor) -> Tensor {
    x.to_kind(Kind::Double).detach().copy().set_requires_grad(true)
}

pub fn norm(x: &Tensor, w: &Tensor, eps: f64) -> Tensor {
    x / (x.square().mean_dim(-1, true, Kind::Double) + eps).sqrt() * w
}

/// The angle of each (position, pair), from the definition, in double.
pub fn angles(m: &ModelConfig, s: i64) -> Tensor {
    let d = m.head_dim();
    let frequency = |i: usize| {
        let f = m.rope_theta.powf(-2.0 * i as f64 / d as f64);
        let Some(r) = &m.rope_scaling else { return f };
        let turns = r.original_max_position_embeddings as f64 * f / (2.0 * std::f64::consts::PI);
        let kept = ((turns - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor)).clamp(0.0, 1.0);
        f * (kept + (1.0 - kept) / r.factor)
    };
    let f: Vec<f64> = (0..d / 2).map(frequency).collect();
    Tensor::arange(s, (Kind::Double, Device::Cpu)).outer(&Tensor::from_slice(&f))
}

/// x [B,S,heads,D], the pair (i, i + D/2) as a complex number turned by its angle.
fn rotate(x: &Tensor, angles: &Tensor) -> Tensor {
    let halves = x.chunk(2, -1);
    let turned = Tensor::complex(&halves[0], &halves[1]) * Tensor::polar(&angles.ones_like(), angles).unsqueeze(1);
    Tensor::cat(&[turned.real(), turned.imag()], -1)
}

/// The attention half: x [B,S,H] → [B,S,H].
pub fn attention(m: &ModelConfig, w: &Leaves, x: &Tensor) -> Tensor {
    masked_attention(m, w, x, None)
}

/// The same where `apart` [B,1,1,S,S] says which query does not see which key, besides those in its future.
pub fn masked_attention(m: &ModelConfig, w: &Leaves, x: &Tensor, apart: Option<&Tensor>) -> Tensor {
    let size = x.size();
    let (b, s, d) = (size[0], size[1], m.head_dim() as i64);
    let (hq, hkv) = (m.num_attention_heads as i64, m.num_key_value_heads as i64);
    let n = norm(x, w.get("input_layernorm.weight"), m.rms_norm_eps);
    let heads = |name: &str, count: i64| n.matmul(&w.get(name).tr()).view([b, s, count, d]);
    let angles = angles(m, s);
    let q = rotate(&heads("q_proj.weight", hq), &angles).view([b, s, hkv, hq / hkv, d]);
    let (k, v) = (rotate(&heads("k_proj.weight", hkv), &angles), heads("v_proj.weight", hkv));
    let scores = Tensor::einsum("bqhgd,bkhd->bhgqk", &[&q, &k], None::<i64>) / (d as f64).sqrt();
    let mut hidden = Tensor::ones([s, s], (Kind::Bool, Device::Cpu)).triu(1);
    if let Some(apart) = apart {
        hidden = hidden.logical_or(apart);
    }
    let p = scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, None);
    let out = Tensor::einsum("bhgqk,bkhd->bqhgd", &[&p, &v], None::<i64>).reshape([b, s, hq * d]);
    x + out.matmul(&w.get("o_proj.weight").tr())
}

/// The feed-forward half.
pub fn mlp(m: &ModelConfig, w: &Leaves, x: &Tensor) -> Tensor {
    let n = norm(x, w.get("post_attention_layernorm.weight"), m.rms_norm_eps);
    let gate = n.matmul(&w.get("gate_proj.weight").tr());
    let up = n.matmul(&w.get("up_proj.weight").tr());
    x + (&gate * gate.sigmoid() * up).matmul(&w.get("down_proj.weight").tr())
}

/// What the head computes.
pub struct Out {
    pub logits: Tensor,
    /// Σ -log p(target).
    pub loss: Tensor,
    /// Σ (log Z)².
    pub z: Tensor,
    /// `scale·(loss + z_loss·z)`.
    pub objective: Tensor,
}

/// Final norm, logits and loss: x [..,H], targets [N].
pub fn head(norm_w: &Tensor, matrix: &Tensor, eps: f64, x: &Tensor, targets: &Tensor, scale: f64, z_loss: f64) -> Out {
    let logits = norm(x, norm_w, eps).matmul(&matrix.tr());
    let rows = logits.reshape([targets.size()[0], -1]);
    let counted = targets.ge(0).nonzero().squeeze_dim(-1);
    let (rows, targets) = (rows.index_select(0, &counted), targets.index_select(0, &counted));
    let loss = -rows.log_softmax(-1, None).gather(1, &targets.unsqueeze(1), false).sum(Kind::Double);
    let z = rows.logsumexp([-1i64].as_slice(), false).square().sum(Kind::Double);
    let objective = (&loss + &z * z_loss) * scale;
    Out { logits, loss, z, objective }
}

/// The whole model: the leaves of every unit, and what came out.
pub fn model(
    m: &ModelConfig, p: &Params, tokens: &Tensor, targets: &Tensor, scale: f64, z_loss: f64,
) -> (Vec<(Unit, Leaves)>, Out) {
    let units: Vec<_> = p.units.iter().map(|u| (u.layout.unit, Leaves::new(u))).collect();
    let embedding = units[0].1.get("embed_tokens.weight");
    let mut x = embedding.index_select(0, &tokens.reshape([-1])).view([tokens.size()[0], tokens.size()[1], -1]);
    for (unit, leaves) in &units {
        if let Unit::Block(_) = unit {
            x = mlp(m, leaves, &attention(m, leaves, &x));
        }
    }
    let last = &units[units.len() - 1].1;
    let matrix = if m.tie_word_embeddings { embedding } else { last.get("lm_head.weight") };
    let out = head(last.get("norm.weight"), matrix, m.rms_norm_eps, &x, &targets.reshape([-1]), scale, z_loss);
    (units, out)
}
