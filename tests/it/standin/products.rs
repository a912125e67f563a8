//! Weight gradients on a device: summed in fp32 where they lie, and nothing made on the way.

use super::inside;
use herd::kernels;
use herd::kernels::device::{reset_peak, DeviceMemory};
use tch::{Device, Kind, Tensor};

const CARD: Device = Device::Cuda(0);

#[test]
fn weight_gradients_are_added_in_place() {
    if !inside("standin::products::weight_gradients_are_added_in_place", &[]) {
        return;
    }
    for kind in [Kind::BFloat16, Kind::Float] {
        assert!(kernels::weight_gradients_in_place(kind, CARD));
        let (n, o, i) = (33, 24, 40);
        let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind);
        let (dy, x) = (random([n, o]), random([n, i]));
        let want = dy.to_kind(Kind::Double).tr().matmul(&x.to_kind(Kind::Double));
        let (dy, x) = (dy.to_device(CARD), x.to_device(CARD));
        // A part of a unit's flat buffer, unwritten as the first micro-batch finds it.
        let flat = Tensor::empty([64 + o * i], (Kind::Float, CARD));
        let grad = flat.narrow(0, 64, o * i).view([o, i]);
        let live = || DeviceMemory::of(CARD).unwrap().tensors;
        let before = live().live;
        reset_peak(CARD);
        kernels::linear_backward_weight_first(&dy, &x, &grad);
        kernels::linear_backward_weight(&dy, &x, &grad);
        assert_eq!(live().peak, before, "{kind:?}: no product beside the buffer");
        let error = (grad.to_device(Device::Cpu).to_kind(Kind::Double) / 2.0 - &want).abs().max().double_value(&[]);
        assert!(error < 1e-5 * want.abs().max().double_value(&[]), "{kind:?}: {error:e}");
        // What lies before it in the buffer is untouched.
        assert!(flat.narrow(0, 0, 64).isnan().all().int64_value(&[]) == 1);
    }
}
