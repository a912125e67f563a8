//! A layer forward and backward by hand, against libtorch's autograd.
//!
//!     target/release/examples/2_layer
//!
//! Rooms: `layout` (where a parameter lies in its unit's flat buffer), `model` (the layers; no autograd, so that input and weight
//! gradients can be made at different times, as pipeline schedules want). Over the tensor axis the same code runs on a part of the
//! columns; here the axes are `solo`.

use herd::config::ModelConfig;
use herd::layout::{Layout, Unit};
use herd::model::mlp::Mlp;
use herd::model::{init, Accumulate, Axes, Params};
use herd::topology::Topology;
use tch::{Device, Kind, Tensor};

fn main() -> herd::error::Result<()> {
    let shape: ModelConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8
    }))
    .expect("a model's shape");
    let params = Params::zeros(&Layout::new(&shape, &Topology::solo()), Kind::Float, Device::Cpu);
    let block = params.unit(Unit::Block(0));
    for param in &block.layout.params {
        let mut values = vec![0f32; param.len()];
        init::fill(param, &mut values, 7, 0.05);
        let mut view = block.param(&param.name);
        view.copy_(&Tensor::from_slice(&values).view_as(&view));
    }

    tch::manual_seed(7);
    let (x, dy) =
        (Tensor::randn([10, 32], (Kind::Float, Device::Cpu)), Tensor::randn([10, 32], (Kind::Float, Device::Cpu)));
    let mlp = Mlp::new(&shape, &Axes::solo());
    let (y, saved) = mlp.forward(block, &x)?;
    let (back, pending) = mlp.backward_products(block, saved, dy.copy(), true)?;
    let dx = mlp.backward_norm(block, back, Accumulate::Replace)?;
    mlp.backward_weight(block, pending, Accumulate::Replace)?;

    let leaf = |t: Tensor| t.detach().copy().set_requires_grad(true);
    let (xr, down) = (leaf(x), leaf(block.param("down_proj.weight")));
    let rstd = (xr.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + shape.rms_norm_eps).rsqrt();
    let normed = &xr * rstd * block.param("post_attention_layernorm.weight");
    let gate = normed.matmul(&block.param("gate_proj.weight").tr());
    let up = normed.matmul(&block.param("up_proj.weight").tr());
    let yr = &xr + (gate.silu() * up).matmul(&down.tr());
    let want = Tensor::run_backward(&[(&yr * &dy).sum(Kind::Float)], &[&xr, &down], false, false);

    let gap = |a: &Tensor, b: &Tensor| ((a - b).abs().max() / b.abs().max()).double_value(&[]);
    let gaps = [gap(&y, &yr), gap(&dx, &want[0]), gap(&block.grad("down_proj.weight"), &want[1])];
    println!(
        "largest difference over the largest value: y {:.1e}, dx {:.1e}, d down_proj {:.1e}",
        gaps[0], gaps[1], gaps[2]
    );
    assert!(gaps.iter().all(|g| *g < 1e-5), "{gaps:?}");
    Ok(())
}
