//! Device time of operations, read from events once the device has come to them; liveness is told then as well.

use crate::error::Result;
use crate::threads;
use crate::wire::nccl::cuda::{CudaEvent, Gpu};
use crate::wire::Timing;
use crate::world::meters::WireMeter;
use std::sync::Mutex;
use std::time::Duration;

#[derive(Default)]
pub(super) struct Clock(Mutex<State>);

#[derive(Default)]
struct State {
    total: Timing,
    /// Operations: begin and end on the wire's stream.
    busy: Vec<Span>,
    /// Waits: the compute stream before and after.
    exposed: Vec<Span>,
}

struct Span {
    from: CudaEvent,
    to: CudaEvent,
    meter: Option<WireMeter>,
}

impl Clock {
    /// An operation; `meter` counts collectives.
    pub(super) fn busy(&self, from: CudaEvent, to: CudaEvent, meter: Option<WireMeter>) {
        if let Some(m) = &meter {
            m.began();
        }
        self.lock().busy.push(Span { from, to, meter });
    }

    pub(super) fn exposed(&self, from: CudaEvent, to: CudaEvent) {
        self.lock().exposed.push(Span { from, to, meter: None });
    }

    /// Adds up what the device has reached. The calling thread is on the device.
    pub(super) fn collect(&self, gpu: &Gpu) -> Result<()> {
        let State { total, busy, exposed } = &mut *self.lock();
        drain(gpu, busy, &mut total.busy)?;
        drain(gpu, exposed, &mut total.exposed)
    }

    pub(super) fn take(&self) -> Timing {
        std::mem::take(&mut self.lock().total)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        threads::lock(&self.0)
    }
}

fn drain(gpu: &Gpu, list: &mut Vec<Span>, sum: &mut Duration) -> Result<()> {
    let mut rest = Vec::new();
    for span in list.drain(..) {
        match gpu.reached(&span.to)? {
            true => {
                *sum += gpu.between(&span.from, &span.to)?;
                span.meter.iter().for_each(WireMeter::ended);
            }
            false => rest.push(span),
        }
    }
    *list = rest;
    Ok(())
}
