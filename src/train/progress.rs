use super::metrics::StepRecord;
use super::state::State;
use crate::checkpoint::Saved;
use crate::plan::Plan;
use crate::wire::World;
pub struct Progress(bool);
impl Progress {
 pub fn new(_p: &Plan, w: &World, _s: u64) -> Self { Progress(w.rank()==0) }
 pub fn step(&mut self, r: &StepRecord) { if self.0 { eprintln!("{}", r.v); } }
 pub fn validation(&mut self, s: u64, l: f64) { if self.0 { eprintln!("validation {s} {l}"); } }
 pub fn saved(&mut self, s: u64, d: &Saved) { if self.0 { eprintln!("saved {s} {d:?}"); } }
 pub fn finish(&mut self, _s: &State, _saved: Option<u64>) {}
}
