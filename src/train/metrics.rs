use super::state::State;
use super::step::Outcome;
use crate::error::Result;
use crate::kernels::memory;
use crate::plan::Plan;
use crate::wire::World;
use serde_json::{json, Value};
use std::io::Write;
use std::time::Duration;
pub struct Journal { run: std::path::PathBuf, on: bool }
pub struct StepRecord { pub v: Value }
impl StepRecord { pub fn new(plan: &Plan, s: &State, o: &Outcome, t: Duration) -> Self {
 StepRecord { v: json!({"step": s.step, "loss": o.loss, "lr": o.lr, "grad_norm": o.grad_norm, "step_s": t.as_secs_f64(), "tokens_per_s": plan.tokens_per_step() as f64/t.as_secs_f64(), "memory_peak": memory::peak(), "comm_busy_s": o.comm.busy.as_secs_f64(), "comm_exposed_s": o.comm.exposed.as_secs_f64(), "time": jiff::Timestamp::now().to_string()}) } } }
impl Journal {
 pub fn open(plan: &Plan, world: &World) -> Result<Self> { std::fs::create_dir_all(&plan.config.run_dir).ok(); Ok(Journal { run: plan.config.run_dir.clone(), on: world.rank() == 0 }) }
 fn put(&self, f: &str, v: &Value) { if self.on { let mut f = std::fs::OpenOptions::new().create(true).append(true).open(self.run.join(f)).unwrap(); writeln!(f, "{v}").unwrap(); } }
 pub fn step(&mut self, r: &StepRecord) -> Result<()> { self.put("metrics.jsonl", &r.v); Ok(()) }
 pub fn validation(&mut self, step: u64, loss: f64) -> Result<()> { self.put("metrics.jsonl", &json!({"step": step, "validation_loss": loss})); Ok(()) }
 pub fn event(&mut self, k: &str, v: Value) -> Result<()> { self.put("events.jsonl", &json!({"event": k, "v": v})); Ok(()) }
 pub fn checkpoint_search(&mut self, e: &crate::checkpoint::Event) -> Result<()> { self.put("events.jsonl", &json!(e)); Ok(()) }
 pub fn resumed(&mut self, step: u64) -> Result<()> { self.event("resume", json!({"step": step})) }
}
