//! What does not fit, and what would.

use super::hardware::Hardware;
use super::search::{search, Ranking, SearchSpace};
use super::shape::StepShape;
use super::stages::{memory_of_stages, StageMemory};
use super::{step, Allocation};
use crate::config::{self, BlockFormat, Config, Draft, LoraSection, MomentFormat, Recompute};
use crate::error::{Error, Exit, Result};
use crate::plan::memory::KernelForms;
use crate::plan::{device, shape, Plan};
use crate::text::binary;

/// A configuration that is about to be cut for an allocation, with everything but its axes checked when a layout is chosen.
pub struct Question<'a> {
    /// Name of the configuration's file, or of a model, for messages.
    pub place: String,
    /// As it was given; a search replaces its axes and settings.
    pub config: Config,
    /// Nodes and ranks that it is to be cut for.
    pub allocation: Allocation,
    /// Machine that it is planned for.
    pub hardware: &'a Hardware,
    /// Kernels that memory and time are counted with.
    pub forms: KernelForms,
}

/// A way to less memory: its words, whether it is open to this run, and the change.
type Saving = (&'static str, bool, fn(&mut Config));

impl Question<'_> {
    /// The plan of the first rank with the configuration's own axes.
    ///
    /// # Errors
    /// Those of [`Plan::from_draft`].
    pub fn plan(&self) -> Result<Plan> {
        self.checked(self.config.clone())
    }

    /// The same with other axes.
    pub fn checked(&self, config: Config) -> Result<Plan> {
        let draft = Draft { place: self.place.clone(), config, problems: Vec::new() };
        Plan::from_draft(draft, &self.allocation.ranks(0, self.hardware))
    }

    /// Every layout, ranked.
    ///
    /// # Errors
    /// The model's shape cannot be read, the device is another than the hardware's, no axes fit the world and the batch, or
    /// nothing fits in memory: [`Exit::Config`] with the numbers.
    pub fn search(&self) -> Result<Ranking> {
        let wrong = |problems: Vec<_>| config::to_error(&self.place, &problems);
        let shape = shape::resolve(&self.config.model).map_err(wrong)?;
        let ranks = self.allocation.ranks(0, self.hardware);
        let device = device(self.config.train.device, &ranks).map_err(|p| wrong(vec![p]))?;
        let (config, allocation) = (&self.config, self.allocation);
        let (hardware, forms, chunks) = (self.hardware, self.forms, Default::default());
        let space = SearchSpace { config, shape: &shape, allocation, hardware, forms, device, chunks };
        let found = search(&space)?;
        match (found.axes, found.best.is_empty()) {
            (0, _) => Err(self.no_axes()),
            (_, true) => Err(self.nothing_fits(&found)),
            _ => Ok(found),
        }
    }

    fn no_axes(&self) -> Error {
        let (world, global) = (self.allocation.world(), self.config.batch.global);
        let fact = format!(
            "{}: no axes cut this model and batch.global {global} into {} node(s) × {} = {world} ranks",
            self.place, self.allocation.nodes, self.allocation.per_node
        );
        Error::new(Exit::Config, fact)
            .hint("another batch.global, or nodes whose ranks divide it with the model's sizes")
    }

    fn nothing_fits(&self, found: &Ranking) -> Error {
        let (least, room) = (binary(found.least as u64), binary(self.hardware.room()));
        let fact = format!(
            "{}: of {} settings of {} axes none fits {} node(s) × {} {}: the smallest needs {least} a rank, which has {room}",
            self.place,
            found.settings,
            found.axes,
            self.allocation.nodes,
            self.allocation.per_node,
            self.hardware.name
        );
        Error::new(Exit::Config, fact).hint("more nodes, or a device with more memory")
    }

    /// That `memory` of `plan` is too much, with what would fit.
    pub fn refusal(&self, plan: &Plan, memory: &StageMemory) -> Error {
        let m = &memory.parts;
        let part = |name: &str, bytes: u64| format!("{name} {}", binary(bytes));
        let parts = [
            part("parameters", m.parameters),
            part("gradients", m.gradients),
            part("optimizer", m.master.saturating_add(m.moments)),
            part("activations", m.activations),
            part("working", m.working.saturating_add(m.inputs)),
        ];
        let fact = format!(
            "{}: {} on a rank of pipeline stage {} ({}) do not fit {}, which has {} less {} kept free",
            self.place,
            binary(memory.total),
            memory.stage,
            parts.join(", "),
            self.hardware.name,
            binary((self.hardware.memory_gib * (1u64 << 30) as f64) as u64),
            binary((self.hardware.costs.reserve_gib * (1u64 << 30) as f64) as u64),
        );
        let hints = self.remedies(plan);
        Error::new(Exit::Config, fact).hint(match hints.is_empty() {
            true => "no layout of these nodes fits: take more of them, or a device with more memory".to_string(),
            false => hints.join("; "),
        })
    }

    /// The same axes with less memory for the state: the first way that fits, with the recomputation as it is or full. What making values
    /// from 8 or 4 bits takes is not counted in any step.
    fn savings(&self, plan: &Plan) -> Option<String> {
        let own = step::estimate(&StepShape::of(plan, self.forms), self.hardware).ok()?.seconds;
        let adapters = plan.config.lora.is_some();
        let ways: [Saving; 4] = [
            ("optim.moments 8bit", true, |c| c.optim.moments = MomentFormat::Bits8),
            ("lora.quantize nf4", adapters, |c| {
                c.lora = c.lora.take().map(|l| LoraSection { quantize: Some(BlockFormat::Nf4), ..l })
            }),
            ("optim.offload true", true, |c| c.optim.offload = true),
            (
                "lora {rank: 16, alpha: 32} instead of all weights",
                !adapters && plan.config.model.weights.is_some(),
                |c| c.lora = Some(LoraSection::new(16, 32.0)),
            ),
        ];
        let fitting = |recompute: Recompute, (name, _, change): &Saving| {
            let mut config = plan.config.clone();
            config.train.recompute = recompute;
            change(&mut config);
            let changed = self.checked(config).ok()?;
            let memory = memory_of_stages(&changed, self.hardware, self.forms);
            let seconds = step::estimate(&StepShape::of(&changed, self.forms), self.hardware).ok()?.seconds;
            let with = if recompute == plan.config.train.recompute { "" } else { " with train.recompute full" };
            let needs = binary(memory.total);
            memory.fits().then(|| format!("{name}{with} needs {needs}, a step {:.2} times the time", seconds / own))
        };
        let both = [plan.config.train.recompute, Recompute::Full];
        both.into_iter().find_map(|r| ways.iter().filter(|way| way.1).find_map(|way| fitting(r, way)))
    }

    /// The same axes with more recomputation or sharing, the best of all layouts, a larger device.
    fn remedies(&self, plan: &Plan) -> Vec<String> {
        let mut out = Vec::new();
        let mut changes: Vec<(String, Config)> = Vec::new();
        for (recompute, name) in [(Recompute::Selective, "selective"), (Recompute::Full, "full")] {
            let mut config = plan.config.clone();
            (config.train.recompute, config.train.recompute_blocks) = (recompute, 0);
            changes.push((format!("train.recompute {name}"), config));
        }
        for zero in plan.config.parallel.zero + 1..=3 {
            let mut config = plan.config.clone();
            config.parallel.zero = zero;
            changes.push((format!("parallel.zero {zero}"), config));
        }
        let fitting = |(name, config): &(String, Config)| {
            let changed = self.checked(config.clone()).ok()?;
            let memory = memory_of_stages(&changed, self.hardware, self.forms);
            memory.fits().then(|| format!("{name} needs {}", binary(memory.total)))
        };
        out.extend(changes.iter().find_map(fitting));
        out.extend(self.savings(plan));
        if let Some(best) = self.search().ok().and_then(|found| found.best.into_iter().next()) {
            out.push(format!("{} needs {} (the fastest that fits)", words(&best.config), binary(best.memory.total)));
        }
        let holds = |h: &Hardware| memory_of_stages(plan, h, self.forms).fits();
        let larger = Hardware::table().into_iter().filter(|h| h.device == self.hardware.device && holds(h));
        out.extend(larger.map(|h| h.name).next().map(|name| format!("{name} has room for it as it is")));
        out
    }
}

/// The keys that a search sets.
pub fn words(config: &Config) -> String {
    let p = &config.parallel;
    let text = |value: serde_json::Value| value.as_str().unwrap_or_default().to_string();
    let schedule = match (p.pipeline, p.chunks) {
        (1, _) => String::new(),
        (_, 1) => format!(", {}", text(serde_json::json!(p.schedule))),
        (_, chunks) => format!(", {} with {chunks} chunks", text(serde_json::json!(p.schedule))),
    };
    format!(
        "tensor {} × context {} × pipeline {} × data {}{schedule}, zero {}, micro-batch {}, recompute {}",
        p.tensor,
        p.context,
        p.pipeline,
        p.data,
        p.zero,
        config.batch.micro,
        text(serde_json::json!(config.train.recompute)),
    )
}
