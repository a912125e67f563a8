//! Attention as devices run it, against the reference in fp32 on the CPU: cuDNN's and FlashAttention's ways, packed
//! documents, pasts, and fp32 over pieces.

use super::inside;
use herd::kernels::{self, reference, PackedSequences};
use tch::{Device, Kind, Tensor};

const CARD: Device = Device::Cuda(0);

fn randn(seed: i64, shape: &[i64], kind: Kind) -> Tensor {
    tch::manual_seed(seed);
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// Largest difference relative to the largest value.
#[track_caller]
fn close(what: &str, got: &Tensor, want: &Tensor, bound: f64) {
    let (got, want) = (got.to_device(Device::Cpu).to_kind(Kind::Double), want.to_kind(Kind::Double));
    assert_eq!(got.size(), want.size(), "{what}");
    let scale = want.abs().max().double_value(&[]).max(1e-30);
    let error = (got - want).abs().max().double_value(&[]) / scale;
    assert!(error <= bound, "{what}: differs by {error:.1e}, {bound:.1e} allowed");
}

/// q, k, v as views of one row of [q heads | key heads | value heads].
fn split(t: &Tensor, hq: i64, hkv: i64) -> [Tensor; 3] {
    [t.narrow(2, 0, hq), t.narrow(2, hq, hkv), t.narrow(2, hq + hkv, hkv)]
}

/// B, S, query heads, key heads, D.
const SHAPES: [[i64; 5]; 6] = [
    [1, 1, 4, 2, 64],
    [2, 5, 4, 2, 32],
    [1, 65, 8, 1, 80],
    [2, 130, 3, 3, 128],
    [1, 129, 2, 1, 24],
    [1, 33, 4, 4, 200],
];

fn whole_and_with_a_past(kind: Kind, shapes: &[[i64; 5]], [bound, gradients]: [f64; 2]) {
    for &[b, s, hq, hkv, d] in shapes {
        for past in [0, 1, s / 2].into_iter().filter(|&p| p < s) {
            let what = format!("{kind:?} B {b} S {s} after {past} heads {hq}/{hkv} D {d}");
            let own = |t: &Tensor, dim: i64| t.narrow(dim, past, s - past);
            let qkv = randn(1, &[b, s, hq + 2 * hkv, d], kind);
            let exact = split(&qkv.to_kind(Kind::Float), hq, hkv);
            let (out0, lse0) = reference::attention(&own(&exact[0], 1), &exact[1], &exact[2]);
            let on = qkv.to_device(CARD);
            let [q, k, v] = split(&on, hq, hkv);
            let q = own(&q, 1);
            let (out, lse) = kernels::attention(&q, &k, &v);
            assert!(out.is_contiguous() && out.kind() == kind && lse.kind() == Kind::Float);
            close(&format!("{what}: out"), &out, &out0, bound);
            close(&format!("{what}: lse"), &lse, &lse0, 1e-4);
            let dout = randn(2, &[b, s - past, hq, d], kind);
            let zeros = |t: &Tensor| t.zeros_like();
            let (mut eq, mut ek, mut ev) = (zeros(&own(&exact[0], 1)), zeros(&exact[1]), zeros(&exact[2]));
            let d0 = dout.to_kind(Kind::Float);
            reference::attention_backward(
                &d0,
                &own(&exact[0], 1),
                &exact[1],
                &exact[2],
                &out0,
                &lse0,
                &mut eq,
                &mut ek,
                &mut ev,
            );
            let gradient = on.full_like(f64::NAN);
            let [dq, mut dk, mut dv] = split(&gradient, hq, hkv);
            let mut dq = own(&dq, 1);
            kernels::attention_backward(&dout.to_device(CARD), &q, &k, &v, &out, &lse, &mut dq, &mut dk, &mut dv);
            for (name, got, want) in [("dq", &dq, &eq), ("dk", &dk, &ek), ("dv", &dv, &ev)] {
                close(&format!("{what}: {name}"), got, want, gradients);
            }
        }
    }
}

#[test]
fn fused_attention_is_the_reference() {
    const NAME: &str = "standin::attention::fused_attention_is_the_reference";
    // cuDNN and FlashAttention; FlashAttention alone; a cuDNN that refuses; one of another version.
    for cudnn in ["1", "0", "2", "3"] {
        if !inside(NAME, &[("STANDIN_CUDNN", cudnn)]) {
            continue;
        }
        whole_and_with_a_past(Kind::BFloat16, &SHAPES, [8e-3, 2e-2]);
        return;
    }
}

#[test]
fn without_a_fused_kernel_it_goes_by_pieces() {
    if !inside("standin::attention::without_a_fused_kernel_it_goes_by_pieces", &[]) {
        return;
    }
    // Several pieces: more scores than one has.
    whole_and_with_a_past(Kind::Float, &[[2, 40, 4, 2, 16], [1, 1500, 16, 8, 8]], [1e-5, 1e-4]);
    // Too wide, and not a multiple of 8.
    whole_and_with_a_past(Kind::BFloat16, &[[1, 20, 2, 1, 20], [1, 9, 2, 1, 264]], [8e-3, 2e-2]);
}

/// A tensor that vector loads cannot read is copied first: the stand-in refuses it as a card would.
#[test]
fn what_cannot_be_loaded_is_copied() {
    if !inside("standin::attention::what_cannot_be_loaded_is_copied", &[]) {
        return;
    }
    let rows = randn(5, &[2, 17, 3, 33], Kind::BFloat16).to_device(CARD);
    let odd = rows.narrow(3, 1, 32);
    let even = odd.contiguous();
    let (a, b) = (kernels::attention(&odd, &odd, &odd), kernels::attention(&even, &even, &even));
    assert!(a.0.equal(&b.0) && a.1.equal(&b.1));
    let none = Tensor::new();
    let (odd, lse) = (&odd, &a.1);
    let refused = Tensor::f_internal_flash_attention_backward(
        odd, odd, odd, odd, odd, lse, &none, &none, 17, 17, 0.0, true, lse, lse, 0.1, None, None,
    );
    assert!(refused.unwrap_err().to_string().contains("misaligned address"));
}

#[test]
fn packed_documents_are_attention_one_by_one() {
    if !inside("standin::attention::packed_documents_are_attention_one_by_one", &[]) {
        return;
    }
    let (b, s, hq, hkv, d) = (2, 40, 4, 2, 16);
    let qkv = randn(3, &[b, s, hq + 2 * hkv, d], Kind::BFloat16).to_device(CARD);
    let [q, k, v] = split(&qkv, hq, hkv);
    let dout = randn(4, &[b, s, hq, d], Kind::BFloat16).to_device(CARD);
    // Rows of the queries; and of the keys, which documents of one chunk share with those of another.
    type Case<'a> = (&'a str, Vec<(std::ops::Range<i64>, std::ops::Range<i64>)>);
    let cases: [Case; 2] = [
        ("documents", vec![(0..7, 0..7), (7..40, 7..40), (40..41, 40..41), (41..80, 41..80)]),
        ("pasts", vec![(0..10, 0..10), (10..40, 5..38), (40..60, 40..70), (60..80, 40..80)]),
    ];
    for (name, entries) in cases {
        let spans: Vec<_> =
            entries.iter().map(|(q, k)| ((q.end - q.start) as usize, k.start as usize..k.end as usize)).collect();
        let packed = PackedSequences::new(&spans, (b * s) as usize, CARD);
        let (out, lse) = kernels::attention_packed(&q, &k, &v, &packed);
        assert_eq!((out.size(), lse.size()), (vec![b, s, hq, d], vec![b, hq, s]));
        let all = qkv.full_like(f64::NAN);
        let [mut dq, mut dk, mut dv] = split(&all, hq, hkv);
        kernels::attention_packed_backward(&dout, &q, &k, &v, &out, &lse, &packed, &mut dq, &mut dk, &mut dv);

        let host = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Float);
        let rows = |t: &Tensor| t.reshape([1, b * s, -1, d]);
        let [q0, k0, v0, d0, out0] = [&q, &k, &v, &dout, &out].map(|t| rows(&host(t)));
        let (sum_k, sum_v) = (k0.zeros_like(), v0.zeros_like());
        for (of, keys) in entries {
            let part = |t: &Tensor, r: &std::ops::Range<i64>| t.narrow(1, r.start, r.end - r.start);
            let (qs, ks, vs) = (part(&q0, &of), part(&k0, &keys), part(&v0, &keys));
            let (o, l) = reference::attention(&qs, &ks, &vs);
            close(&format!("{name}: out"), &part(&out0, &of), &o, 8e-3);
            let flat_lse = host(&lse).transpose(1, 2).reshape([1, b * s, hq]);
            close(&format!("{name}: lse"), &part(&flat_lse, &of), &l.transpose(1, 2), 1e-4);
            let (mut eq, mut ek, mut ev) = (qs.zeros_like(), ks.zeros_like(), vs.zeros_like());
            reference::attention_backward(&part(&d0, &of), &qs, &ks, &vs, &o, &l, &mut eq, &mut ek, &mut ev);
            close(&format!("{name}: dq"), &part(&rows(&host(&dq)), &of), &eq, 3e-2);
            let _ = part(&sum_k, &keys).g_add_(&ek);
            let _ = part(&sum_v, &keys).g_add_(&ev);
        }
        close(&format!("{name}: dk"), &rows(&host(&dk)), &sum_k, 3e-2);
        close(&format!("{name}: dv"), &rows(&host(&dv)), &sum_v, 3e-2);
    }
}
