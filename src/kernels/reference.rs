//! The operations in plain libtorch: the definition that the other versions are tested against.

use super::pages::{Pages, QueryRun, BLOCK};
use tch::{Kind, Tensor};

/// RMSNorm (arXiv:1910.07467): `y = x · rstd · w`, `rstd = 1/sqrt(mean(x²) + eps)`. x [N,H] T, w [H] T → (y [N,H] T, rstd [N] f32).
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let xf = x.to_kind(Kind::Float);
    let rstd = (xf.square().mean_dim([-1i64].as_slice(), true, Kind::Float) + eps).rsqrt();
    let y = (&xf * &rstd * w.to_kind(Kind::Float)).to_kind(x.kind());
    (y, rstd.squeeze_dim(-1))
}

/// Backward of [`rms_norm`]: returns dx [N,H] T (plus `residual` [N,H] T if given, the gradient that flows around the
/// norm), and adds into `dw` [H] f32.
pub fn rms_norm_backward(
    dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, residual: Option<&Tensor>, dw: &Tensor,
) -> Tensor {
    let (dyf, xf, wf, r) =
        (dy.to_kind(Kind::Float), x.to_kind(Kind::Float), w.to_kind(Kind::Float), rstd.unsqueeze(-1));
    let xhat = &xf * &r;
    let mut dw = dw.shallow_clone();
    let _ = dw.g_add_(&(&dyf * &xhat).sum_dim_intlist([0i64].as_slice(), false, Kind::Float));
    let g = &dyf * &wf;
    let mean = (&g * &xhat).mean_dim([-1i64].as_slice(), true, Kind::Float);
    let mut dx = (&g - &xhat * mean) * &r;
    if let Some(res) = residual {
        dx += res.to_kind(Kind::Float);
    }
    dx.to_kind(x.kind())
}

/// Rotary embedding in place, Hugging Face's half-split form: x [B,S,heads,D] T (strided over a larger row is fine),
/// cos and sin [S,D/2] f32. `inverse` rotates back: the backward pass.
pub fn rope_(x: &Tensor, cos: &Tensor, sin: &Tensor, inverse: bool) {
    let half = x.size()[3] / 2;
    let (a, b) = (x.narrow(3, 0, half).to_kind(Kind::Float), x.narrow(3, half, half).to_kind(Kind::Float));
    let (c, s) = (cos.unsqueeze(1), if inverse { -sin.unsqueeze(1) } else { sin.unsqueeze(1) });
    // In fp32 `a` and `b` are `x` itself: both results before either is written.
    let (ra, rb) = (&a * &c - &b * &s, &b * &c + &a * &s);
    x.narrow(3, 0, half).copy_(&ra);
    x.narrow(3, half, half).copy_(&rb);
}

/// SwiGLU: gate_up [N,2F] T (gate first) → silu(gate)·up [N,F] T.
pub fn swiglu(gate_up: &Tensor) -> Tensor {
    let f = gate_up.size()[1] / 2;
    let (g, u) = (gate_up.narrow(1, 0, f).to_kind(Kind::Float), gate_up.narrow(1, f, f).to_kind(Kind::Float));
    (g.silu() * u).to_kind(gate_up.kind())
}

/// Backward of [`swiglu`]: dy [N,F] T → d gate_up [N,2F] T.
pub fn swiglu_backward(dy: &Tensor, gate_up: &Tensor) -> Tensor {
    let f = gate_up.size()[1] / 2;
    let (g, u) = (gate_up.narrow(1, 0, f).to_kind(Kind::Float), gate_up.narrow(1, f, f).to_kind(Kind::Float));
    let dyf = dy.to_kind(Kind::Float);
    let s = g.sigmoid();
    let silu = &g * &s;
    let dg = &dyf * &u * (&s + &silu * (1.0 - &s));
    Tensor::cat(&[dg, dyf * silu], 1).to_kind(gate_up.kind())
}

/// See [`crate::kernels::attention`].
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
    let (scores, v) = scores(q, k, v);
    let lse = scores.logsumexp([-1i64].as_slice(), false);
    let p = (scores - lse.unsqueeze(-1)).exp();
    let out = p.matmul(&v).transpose(1, 2).contiguous().to_kind(q.kind());
    (out, lse)
}

/// See [`crate::kernels::attention_backward`].
#[allow(clippy::too_many_arguments)]
pub fn attention_backward(
    dout: &Tensor, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, lse: &Tensor, dq: &mut Tensor, dk: &mut Tensor,
    dv: &mut Tensor,
) {
    let f = |t: &Tensor| t.to_kind(Kind::Float).transpose(1, 2);
    let size = q.size();
    let (b, keys, hq, d) = (size[0], k.size()[1], size[2], size[3]);
    let (hkv, scale) = (k.size()[2], 1.0 / (d as f64).sqrt());
    let (scores, vr) = scores(q, k, v);
    let p = (scores - lse.unsqueeze(-1)).exp();
    let (do_, o) = (f(dout), f(out));
    let delta = (&do_ * &o).sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
    let ds = &p * (do_.matmul(&vr.transpose(2, 3)) - delta) * scale;
    let kr = repeat(&f(k), hq / hkv);
    let group = |t: Tensor| {
        t.view([b, hkv, hq / hkv, keys, d]).sum_dim_intlist([2i64].as_slice(), false, Kind::Float).transpose(1, 2)
    };
    dq.copy_(&ds.matmul(&kr).transpose(1, 2));
    dk.copy_(&group(ds.transpose(2, 3).matmul(&f(q))));
    dv.copy_(&group(p.transpose(2, 3).matmul(&do_)));
}

/// Scaled, causally masked scores [B,Hq,S,K] and v repeated to [B,Hq,K,D], fp32.
fn scores(q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
    let f = |t: &Tensor| t.to_kind(Kind::Float).transpose(1, 2);
    let (s, keys, d, groups) = (q.size()[1], k.size()[1], q.size()[3], q.size()[2] / k.size()[2]);
    let mask = Tensor::ones([s, keys], (Kind::Bool, q.device())).triu(1 + keys - s);
    let scores = f(q).matmul(&repeat(&f(k), groups).transpose(2, 3)) / (d as f64).sqrt();
    (scores.masked_fill(&mask, f64::NEG_INFINITY), repeat(&f(v), groups))
}

fn repeat(x: &Tensor, groups: i64) -> Tensor {
    x.repeat_interleave_self_int(groups, 1, None)
}

/// Sums over the rows of one call of [`cross_entropy_`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Sum of -log p(target), natural log.
    pub loss: f64,
    /// Sum of (log Z)².
    pub z: f64,
    /// Rows that counted (target ≥ 0).
    pub tokens: u64,
}

impl std::ops::AddAssign for LossSums {
    fn add_assign(&mut self, o: LossSums) {
        self.loss += o.loss;
        self.z += o.z;
        self.tokens += o.tokens;
    }
}

impl LossSums {
    /// Of what [`cross_entropy_sums_`] gives; waits for the device.
    pub fn read([loss, z, tokens]: &[Tensor; 3]) -> LossSums {
        LossSums { loss: loss.double_value(&[]), z: z.double_value(&[]), tokens: tokens.int64_value(&[]) as u64 }
    }
}

/// Cross-entropy with its gradient in place: logits [N,V] T become d(grad_scale·(loss + z_loss·z))/d logits.
/// targets [N] i64; a negative target does not count. With `grad_scale` None logits are left as they are.
pub fn cross_entropy_(logits: &Tensor, targets: &Tensor, grad_scale: Option<f64>, z_loss: f64) -> LossSums {
    LossSums::read(&cross_entropy_sums_(logits, targets, grad_scale, z_loss))
}

/// [`cross_entropy_`] whose sums stay where the logits are: loss and z [] f64, tokens [] i64.
pub fn cross_entropy_sums_(logits: &Tensor, targets: &Tensor, grad_scale: Option<f64>, z_loss: f64) -> [Tensor; 3] {
    let x = logits.to_kind(Kind::Float);
    let valid = targets.ge(0);
    let t = targets.clamp_min(0).unsqueeze(1);
    let lse = x.logsumexp([1i64].as_slice(), false);
    let w = valid.to_kind(Kind::Float);
    let loss = ((&lse - x.gather(1, &t, false).squeeze_dim(1)) * &w).sum(Kind::Double);
    let z = (lse.square() * &w).sum(Kind::Double);
    if let Some(scale) = grad_scale {
        let p = (&x - lse.unsqueeze(1)).exp();
        let mut g = &p * (lse * (2.0 * z_loss) + 1.0).unsqueeze(1);
        let _ = g.scatter_add_(1, &t, &Tensor::full_like(&t, -1).to_kind(Kind::Float));
        logits.shallow_clone().copy_(&(g * (w * scale).unsqueeze(1)));
    }
    [loss, z, valid.sum(Kind::Int64)]
}

/// See [`crate::kernels::cross_entropy_part`].
pub fn cross_entropy_part(logits: &Tensor, targets: &Tensor, first: i64) -> Tensor {
    let (n, columns) = (logits.size()[0], logits.size()[1]);
    if columns == 0 {
        let none = Tensor::zeros([2, n], (Kind::Float, logits.device()));
        let _ = none.narrow(0, 0, 1).fill_(f64::NEG_INFINITY);
        return none;
    }
    let x = logits.to_kind(Kind::Float);
    let (here, column) = columns_of(targets, first, columns);
    let at = x.gather(1, &column, false).squeeze_dim(1) * here.to_kind(Kind::Float);
    Tensor::stack(&[x.logsumexp([1i64].as_slice(), false), at], 0)
}

/// See [`crate::kernels::cross_entropy_join`].
pub fn cross_entropy_join(parts: &Tensor, targets: &Tensor) -> (LossSums, Tensor) {
    let lse = parts.select(1, 0).logsumexp([0i64].as_slice(), false);
    let at = parts.select(1, 1).sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
    let valid = targets.ge(0);
    let w = valid.to_kind(Kind::Float);
    let sum = |x: Tensor| (x * &w).sum(Kind::Double);
    let sums = LossSums::read(&[sum(&lse - at), sum(lse.square()), valid.sum(Kind::Int64)]);
    (sums, lse)
}

/// See [`crate::kernels::cross_entropy_gradient_`].
pub fn cross_entropy_gradient_(
    logits: &Tensor, targets: &Tensor, first: i64, lse: &Tensor, grad_scale: f64, z_loss: f64,
) {
    let columns = logits.size()[1];
    if columns == 0 {
        return;
    }
    let (here, column) = columns_of(targets, first, columns);
    let p = (logits.to_kind(Kind::Float) - lse.unsqueeze(1)).exp();
    let mut g = p * (lse * (2.0 * z_loss) + 1.0).unsqueeze(1);
    let _ = g.scatter_add_(1, &column, &-here.to_kind(Kind::Float).unsqueeze(1));
    let weight = targets.ge(0).to_kind(Kind::Float) * grad_scale;
    logits.shallow_clone().copy_(&(g * weight.unsqueeze(1)));
}

/// Which targets [N] lie in the columns `first..first + columns`, and where: [N] bool, [N,1] i64 (0 elsewhere).
fn columns_of(targets: &Tensor, first: i64, columns: i64) -> (Tensor, Tensor) {
    let local = targets - first;
    let here = targets.ge(0).logical_and(&local.ge(0)).logical_and(&local.lt(columns));
    let column = local.clamp(0, columns - 1).unsqueeze(1);
    (here, column)
}

/// y [N,O] = x [N,I] · w [O,I]ᵀ, plus `residual` [N,O] if given.
pub fn linear(x: &Tensor, w: &Tensor, residual: Option<&Tensor>) -> Tensor {
    match residual {
        Some(r) => r.addmm(x, &w.tr()),
        None => x.matmul(&w.tr()),
    }
}

/// dx [N,I] = dy [N,O] · w [O,I].
pub fn linear_backward_input(dy: &Tensor, w: &Tensor) -> Tensor {
    dy.matmul(w)
}

/// grad [O,I] f32 += dy [N,O]ᵀ · x [N,I].
pub fn linear_backward_weight(dy: &Tensor, x: &Tensor, grad: &Tensor) {
    let _ = grad.shallow_clone().g_add_(&dy.tr().matmul(x));
}

/// grad [O,I] f32 = dy [N,O]ᵀ · x [N,I].
pub fn linear_backward_weight_first(dy: &Tensor, x: &Tensor, grad: &Tensor) {
    grad.shallow_clone().copy_(&dy.tr().matmul(x));
}

/// grad f32 += x T.
pub fn accumulate(grad: &Tensor, x: &Tensor) {
    let _ = grad.shallow_clone().g_add_(&x.to_kind(Kind::Float));
}

/// dst = src.
pub fn cast(dst: &Tensor, src: &Tensor) {
    dst.shallow_clone().copy_(src);
}

/// grad [V,H] f32 += rows of dy [N,H] at `ids` [N] i64.
pub fn embedding_backward(dy: &Tensor, ids: &Tensor, grad: &Tensor) {
    let _ = grad.shallow_clone().index_add_(0, ids, &dy.to_kind(Kind::Float));
}

/// Sum of squares of a flat fp32 buffer, in f64.
pub fn sum_squares(x: &Tensor) -> f64 {
    x.square().sum(Kind::Double).double_value(&[])
}

/// Hyper-parameters of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate; 0 for none.
    pub weight_decay: f64,
    /// 1-based count of updates made, for bias correction.
    pub step: u64,
    /// Factor on the gradient (clipping).
    pub grad_scale: f64,
}

/// Decoupled AdamW (arXiv:1711.05101) on flat ranges: master, m, v, grad [n] f32 are updated or read; the result is written
/// to `param` [n] T (which may be the master itself in fp32).
pub fn adamw(h: &AdamW, master: &Tensor, param: &Tensor, m: &Tensor, v: &Tensor, grad: &Tensor) {
    let (mut master_, mut m_, mut v_) = (master.shallow_clone(), m.shallow_clone(), v.shallow_clone());
    let g = grad * h.grad_scale;
    m_.copy_(&(&m_ * h.beta1 + &g * (1.0 - h.beta1)));
    v_.copy_(&(&v_ * h.beta2 + g.square() * (1.0 - h.beta2)));
    let c1 = 1.0 - h.beta1.powi(h.step as i32);
    let c2 = 1.0 - h.beta2.powi(h.step as i32);
    let update = (&m_ / c1) / ((&v_ / c2).sqrt() + h.eps);
    master_.copy_(&(&master_ * (1.0 - h.lr * h.weight_decay) - update * h.lr));
    if param.data_ptr() != master.data_ptr() {
        param.shallow_clone().copy_(master);
    }
}

/// Rows of x in one product of [`linear_by_row`]: always as many, so that always the same kernel runs.
const TILE: i64 = 16;

/// y [N,O] = x [N,I] · w [O,I]ᵀ, plus `residual` [N,O] if given, in tiles of 16 rows, filled up with zeros.
pub fn linear_by_row(x: &Tensor, w: &Tensor, residual: Option<&Tensor>) -> Tensor {
    let n = x.size()[0];
    let filled = x.constant_pad_nd([0, 0, 0, (TILE - n % TILE) % TILE]);
    let tiles: Vec<Tensor> = filled.split(TILE, 0).iter().map(|x| x.contiguous().matmul(&w.tr())).collect();
    let y = Tensor::cat(&tiles, 0).narrow(0, 0, n);
    match residual {
        Some(r) => y + r,
        None => y,
    }
}

/// See [`crate::kernels::paged::write`].
pub fn paged_write(pages: &Pages, k: &Tensor, v: &Tensor, slots: &[usize]) {
    for (t, slot) in slots.iter().enumerate() {
        let (block, place) = ((slot / BLOCK) as i64, (slot % BLOCK) as i64);
        let token = |x: &Tensor| x.select(0, 0).select(0, t as i64);
        pages.keys.select(0, block).select(2, place).copy_(&token(k));
        pages.values.select(0, block).select(1, place).narrow(1, 0, k.size()[3]).copy_(&token(v));
    }
}

/// See [`crate::kernels::paged::attention`]: one query after another.
pub fn paged_attention(pages: &Pages, q: &Tensor, runs: &[QueryRun]) -> Tensor {
    let (size, kv_heads) = (q.size(), pages.keys.size()[1]);
    let (heads, width) = (size[2], size[3]);
    let out = Tensor::zeros([1, size[1], heads, width], (q.kind(), q.device()));
    for run in runs {
        let seen = (run.start + run.tokens).div_ceil(BLOCK);
        let blocks: Vec<i64> = run.blocks[..seen].iter().map(|&b| b as i64).collect();
        let blocks = Tensor::from_slice(&blocks).to_device(q.device());
        let all = |t: &Tensor| t.index_select(0, &blocks).to_kind(Kind::Float).transpose(0, 1);
        // [Hkv,D,keys] and [Hkv,keys,D]
        let keys = all(&pages.keys).transpose(1, 2).reshape([kv_heads, width, -1]);
        let values = all(&pages.values).reshape([kv_heads, -1, pages.values.size()[3]]).narrow(2, 0, width);
        for t in 0..run.tokens {
            let (row, seen) = ((run.row + t) as i64, (run.start + t + 1) as i64);
            let q = q.select(0, 0).select(0, row).to_kind(Kind::Float).view([kv_heads, heads / kv_heads, width]);
            let scores = q.matmul(&keys.narrow(2, 0, seen)) / (width as f64).sqrt();
            let o = scores.softmax(-1, Kind::Float).matmul(&values.narrow(1, 0, seen));
            out.select(0, 0).select(0, row).copy_(&o.view([heads, width]));
        }
    }
    out
}
