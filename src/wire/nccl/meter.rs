//! Device time of operations, read from events once the device has come to them.

use super::cuda::{Event, Gpu};
use crate::error::Result;
use crate::wire::Timing;
use std::sync::Mutex;

#[derive(Default)]
pub(super) struct Meter(Mutex<State>);

#[derive(Default)]
struct State {
    total: Timing,
    /// Operations: begin and end on the wire's stream.
    busy: Vec<(Event, Event)>,
    /// Waits: the compute stream before and after.
    exposed: Vec<(Event, Event)>,
}

impl Meter {
    pub(super) fn busy(&self, from: Event, to: Event) {
        self.lock().busy.push((from, to));
    }

    pub(super) fn exposed(&self, from: Event, to: Event) {
        self.lock().exposed.push((from, to));
    }

    /// Adds up what the device has reached. The calling thread is on the device.
    pub(super) fn collect(&self, gpu: &Gpu) -> Result<()> {
        let mut state = self.lock();
        let State { total, busy, exposed } = &mut *state;
        for (list, sum) in [(busy, &mut total.busy), (exposed, &mut total.exposed)] {
            let mut rest = Vec::new();
            for (from, to) in list.drain(..) {
                match gpu.reached(&to)? {
                    true => *sum += gpu.between(&from, &to)?,
                    false => rest.push((from, to)),
                }
            }
            *list = rest;
        }
        Ok(())
    }

    pub(super) fn take(&self) -> Timing {
        std::mem::take(&mut self.lock().total)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}
