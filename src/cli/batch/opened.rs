//! What the first rank of `herd batch` has open: the requests, the weights, the tokenizer; and how it answers with them.

use super::super::engine::OpenedModel;
use super::super::generate::accepted;
use super::Args;
use crate::data::chat::ChatTemplate;
use crate::error::Result;
use crate::progress::Meter;
use crate::serve::batch::input::Input;
use crate::serve::batch::output::{self, Output};
use crate::serve::batch::request::Defaults;
use crate::serve::batch::share::{Finish, Queue};
use crate::serve::start::Holding;
use crate::serve::{Engine, Sampling};
use crate::text::grouped;
use crate::topology::Axis;
use crate::train::StopFlag;
use crate::world::Mailbox;
use jiff::Zoned;
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::time::Instant;

/// What the first rank has open.
pub struct Opened {
    pub input: Input,
    pub model: OpenedModel,
}

/// The file of answers, and the lines that it lacks.
pub struct Begun {
    output: Output,
    left: VecDeque<u64>,
    /// When the first start was: what conversations say of the date is of that moment, whenever they are answered.
    began: Zoned,
}

/// The leaders of the other replicas.
pub struct Others<'a> {
    pub mailbox: &'a mut Mailbox,
    pub leaders: usize,
}

impl Opened {
    pub fn new(args: &Args, meter: &Meter) -> Result<Opened> {
        Sampling { temperature: args.temperature, ..Sampling::greedy() }.check()?;
        let input = Input::open(&args.input)?;
        let model = args.engine.open(meter)?;
        Ok(Opened { input, model })
    }

    /// Opens the file of answers.
    pub fn begin(&self, args: &Args, holding: &Holding) -> Result<Begun> {
        let began = output::began(&args.output).unwrap_or_else(Zoned::now);
        let (output, found) = Output::open(&args.output, &self.note(args, holding, &began), self.input.numbers())?;
        found.says.iter().for_each(|line| tracing::warn!("{line}"));
        if !self.input.unused.is_empty() {
            tracing::info!("{} of requests: read past, they change no answer", self.input.unused.join(", "));
        }
        let (all, done) = (self.input.len(), found.done.len());
        let there = if done > 0 { format!(", {} answered before", grouped(done as u64)) } else { String::new() };
        tracing::info!("{} requests{there}", grouped(all as u64));
        let left = self.input.numbers().filter(|n| !found.done.contains(n)).collect();
        Ok(Begun { output, left, began })
    }

    /// What answers are made of.
    fn note(&self, args: &Args, holding: &Holding, began: &Zoned) -> Value {
        let mut must = json!({
            "input": self.input.fingerprint,
            "served_model_name": args.engine.served_model_name,
            "max_length": self.model.longest,
            "temperature": args.temperature,
            "max_tokens": args.max_tokens,
            "seed": args.seed,
        });
        if let (Value::Object(must), Value::Object(made_by)) =
            (&mut must, args.engine.made_by(&self.model, holding.kind))
        {
            must.extend(made_by);
        }
        json!({
            "herd": env!("CARGO_PKG_VERSION"),
            "began": began.to_string(),
            "must": must,
            "may": {
                "tensor": holding.topology.size(Axis::Tensor),
                "pipeline": holding.topology.size(Axis::Pipeline),
                "device": format!("{:?}", holding.device).split('(').next(),
            },
        })
    }

    /// Answers what is left.
    pub fn answer(
        &self, args: &Args, begun: Begun, engine: Engine, others: Others, meter: &Meter, stop: &StopFlag,
    ) -> Result<Finish> {
        let Begun { output, left, began: first } = begun;
        let (began, all) = (Instant::now(), left.len() as u64);
        let OpenedModel { weights, tokenizer, longest } = &self.model;
        let defaults = Defaults { temperature: args.temperature, max_tokens: args.max_tokens, seed: args.seed };
        let (input, mut rules) = (&self.input, args.engine.rules(weights, tokenizer, *longest, defaults)?);
        if rules.chat.as_ref().is_ok_and(ChatTemplate::tells_the_date) {
            tracing::info!("conversations tell the date of the first start, {}", first.date());
        }
        rules.chat = rules.chat.map(|chat| chat.at(first));
        let replicas = others.leaders + 1;
        let mut queue = Queue {
            input,
            output,
            rules,
            left,
            replicas,
            meter: meter.clone(),
            tokens: 0,
            proposed: (0, 0),
            refused: 0,
        };
        meter.begin_pieces("batch", "requests", all);
        let finish = queue.run(engine, tokenizer, others.mailbox, &|| stop.raised())?;
        let (seconds, tokens) = (began.elapsed().as_secs_f64(), queue.tokens);
        let speed = tokens as f64 / seconds.max(1e-9);
        let done = meter.done();
        let of = if finish == Finish::Stopped { "stopped by a signal; start again to go on: " } else { "" };
        tracing::info!(
            "{of}{} of {} requests answered, {} refused, {} tokens in {seconds:.1} s, {speed:.1} tokens/s{}, replicas {replicas}",
            grouped(done),
            grouped(all),
            grouped(queue.refused),
            grouped(tokens),
            accepted(queue.proposed),
        );
        Ok(finish)
    }
}
