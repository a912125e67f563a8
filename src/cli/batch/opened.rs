//! What the first rank of `herd batch` has open: the requests, the weights, the tokenizer; and how it answers with them.

use super::super::generate::open_tokenizer;
use super::Args;
use crate::convert::weights::{self, Weights};
use crate::data::chat::ChatTemplate;
use crate::data::tokenizer::{Bos, Tokenizer};
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::serve::batch::input::Input;
use crate::serve::batch::output::Output;
use crate::serve::batch::request::{Defaults, RequestRules};
use crate::serve::batch::share::{Finish, Queue};
use crate::serve::start::Holding;
use crate::serve::{Engine, Sampling};
use crate::text::grouped;
use crate::topology::Axis;
use crate::train::StopFlag;
use crate::world::Mailbox;
use serde_json::{json, Value};
use std::collections::VecDeque;
use std::time::Instant;

/// What the first rank has open.
pub struct Opened {
    pub input: Input,
    pub weights: Weights,
    pub tokenizer: Tokenizer,
    /// Tokens of the longest text.
    pub longest: usize,
}

/// The file of answers, and the lines that it lacks.
pub struct Begun {
    output: Output,
    left: VecDeque<u64>,
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
        let weights = weights::open_metered(&args.model, meter)?;
        let tokenizer = open_tokenizer(args.tokenizer.as_deref(), &weights, &args.model)?;
        let most = weights.model().max_position_embeddings;
        let longest = match args.max_length {
            Some(n) if n > most => {
                let fact = format!("--max-length is {n}, but the model's longest sequence is {most}");
                return Err(Error::new(Exit::Usage, fact).hint(format!("at most {most}")));
            }
            Some(n) => n,
            None => most.min(8192),
        };
        if longest < most && args.max_length.is_none() {
            tracing::info!("texts may have {longest} tokens, of the model's {most} (--max-length)");
        }
        Ok(Opened { input, weights, tokenizer, longest })
    }

    /// Opens the file of answers.
    pub fn begin(&self, args: &Args, holding: &Holding) -> Result<Begun> {
        let (output, found) = Output::open(&args.output, &self.note(args, holding), self.input.numbers())?;
        found.says.iter().for_each(|line| tracing::warn!("{line}"));
        if !self.input.unused.is_empty() {
            tracing::info!("{} of requests: read past, they change no answer", self.input.unused.join(", "));
        }
        let (all, done) = (self.input.len(), found.done.len());
        let there = if done > 0 { format!(", {} answered before", grouped(done as u64)) } else { String::new() };
        tracing::info!("{} requests{there}", grouped(all as u64));
        let left = self.input.numbers().filter(|n| !found.done.contains(n)).collect();
        Ok(Begun { output, left })
    }

    /// What answers are made of.
    fn note(&self, args: &Args, holding: &Holding) -> Value {
        let place = std::path::absolute(&args.model).unwrap_or_else(|_| args.model.clone());
        let step = self.weights.checkpoint().map(|c| c.meta().step);
        json!({
            "herd": env!("CARGO_PKG_VERSION"),
            "must": {
                "input": self.input.fingerprint,
                "model": place,
                "step": step,
                "shape": self.weights.model(),
                "tokenizer": self.tokenizer.fingerprint(),
                "served_model_name": args.served_model_name,
                "precision": format!("{:?}", holding.kind),
                "max_length": self.longest,
                "temperature": args.temperature,
                "max_tokens": args.max_tokens,
                "seed": args.seed,
            },
            "may": {
                "tensor": holding.topology.size(Axis::Tensor),
                "pipeline": holding.topology.size(Axis::Pipeline),
                "device": format!("{:?}", holding.device).split('(').next(),
            },
        })
    }

    fn rules(&self, args: &Args) -> Result<RequestRules<'_>> {
        let front = self.tokenizer.front(Bos::Own)?;
        tracing::info!("tokenizer {}: {}", self.tokenizer.place(), front.says);
        let path = args.model.to_string_lossy().into_owned();
        let last = args.model.file_name().map(|n| n.to_string_lossy().into_owned());
        let mut models = args.served_model_name.clone();
        models.extend(last.into_iter().chain([path]));
        Ok(RequestRules {
            tokenizer: &self.tokenizer,
            front: front.ids,
            chat: ChatTemplate::of(&self.tokenizer),
            ends: self.tokenizer.ends().into_iter().chain(self.weights.ends()).collect(),
            models,
            vocab: self.weights.model().vocab_size,
            longest: self.longest,
            defaults: Defaults { temperature: args.temperature, max_tokens: args.max_tokens, seed: args.seed },
        })
    }

    /// Answers what is left.
    pub fn answer(
        &self, args: &Args, begun: Begun, engine: Engine, others: Others, meter: &Meter, stop: &StopFlag,
    ) -> Result<Finish> {
        let Begun { output, left } = begun;
        let (began, all) = (Instant::now(), left.len() as u64);
        let (input, rules) = (&self.input, self.rules(args)?);
        let replicas = others.leaders + 1;
        let mut queue = Queue { input, output, rules, left, replicas, meter: meter.clone(), tokens: 0, refused: 0 };
        meter.begin_pieces("batch", "requests", all);
        let finish = queue.run(engine, &self.tokenizer, others.mailbox, &|| stop.raised())?;
        let (seconds, tokens) = (began.elapsed().as_secs_f64(), queue.tokens);
        let speed = tokens as f64 / seconds.max(1e-9);
        let done = meter.done();
        let of = if finish == Finish::Stopped { "stopped by a signal; start again to go on: " } else { "" };
        tracing::info!(
            "{of}{} of {} requests answered, {} refused, {} tokens in {seconds:.1} s, {speed:.1} tokens/s, replicas {replicas}",
            grouped(done),
            grouped(all),
            grouped(queue.refused),
            grouped(tokens),
        );
        Ok(finish)
    }
}
