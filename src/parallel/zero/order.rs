//! Which unit will be wanted next.
//!
//! The passes of a step want the units in the same order every time, whatever the pipeline schedule: the first step is
//! written down, the later ones follow it. Until then, and outside of steps, nothing is foreseen.

#[derive(Default)]
pub(super) struct UnitOrder {
    tape: Vec<usize>,
    at: usize,
    /// The tape holds a whole step.
    known: bool,
    inside: bool,
}

impl UnitOrder {
    pub fn begin(&mut self) {
        (self.at, self.inside) = (0, true);
    }

    pub fn end(&mut self) {
        self.tape.truncate(self.at);
        (self.known, self.inside) = (true, false);
    }

    /// Unit `i` is wanted now.
    pub fn want(&mut self, i: usize) {
        if !self.inside {
            return;
        }
        if self.tape.get(self.at) != Some(&i) {
            self.tape.truncate(self.at);
            self.tape.push(i);
            self.known = false;
        }
        self.at += 1;
    }

    /// The unit that comes after the last one wanted in this step.
    pub fn next(&self) -> Option<usize> {
        self.tape.get(self.at).copied().filter(|_| self.inside && self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::UnitOrder;

    fn step(order: &mut UnitOrder, units: &[usize]) -> Vec<Option<usize>> {
        order.begin();
        let next = units.iter().map(|&i| {
            order.want(i);
            order.next()
        });
        let next = next.collect();
        order.end();
        next
    }

    #[test]
    fn the_second_step_is_foreseen() {
        let mut order = UnitOrder::default();
        assert_eq!(step(&mut order, &[0, 1, 1, 0]), [None; 4]);
        order.want(0);
        assert_eq!(order.next(), None);
        assert_eq!(step(&mut order, &[0, 1, 1, 0]), [Some(1), Some(1), Some(0), None]);
        // Another order is learned again.
        assert_eq!(step(&mut order, &[0, 2, 0]), [Some(1), None, None]);
        assert_eq!(step(&mut order, &[0, 2, 0]), [Some(2), Some(0), None]);
        // A shorter one too.
        assert_eq!(step(&mut order, &[0, 2]), [Some(2), Some(0)]);
        assert_eq!(step(&mut order, &[0, 2]), [Some(2), None]);
    }
}
