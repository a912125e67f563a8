//! The engine over a small random model: against the model's full forward pass, and in company against alone.

mod guided;
mod speculation;

use super::engine::{Asked, Chosen, Engine, Reader, Stop};
use super::logprobs::Scored;
use super::scheduler::{blocks, Limits};
use super::start::Holding;
use super::Sampling;
use crate::config::ModelConfig;
use crate::error::{Error, Exit, Result};
use crate::kernels::quantized::{row_tops, WeightFormat};
use crate::layout::Layout;
use crate::model::{init, Axes, InferenceWeights, Llama, Params};
use crate::topology::Topology;
use serde_json::json;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

pub fn model(max_position: usize) -> ModelConfig {
    serde_json::from_value(json!({
        "vocab_size": 97, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "rope_theta": 10000.0,
        "max_position_embeddings": max_position, "tie_word_embeddings": true, "initializer_range": 0.3
    }))
    .unwrap()
}

pub fn params(m: &ModelConfig, kind: Kind) -> Params {
    let p = Params::frozen(&Layout::new(m, &Topology::solo()), kind, Device::Cpu);
    for unit in &p.units {
        for param in &unit.layout.params {
            let mut values = vec![0f32; param.len()];
            init::fill(param, &mut values, 3, m.initializer_range);
            let mut view = unit.param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
        }
    }
    p
}

/// What comes, by ticket.
#[derive(Default)]
struct Heard {
    tokens: BTreeMap<u64, Vec<Chosen>>,
    ended: BTreeMap<u64, Stop>,
    enough: usize,
    scores: BTreeMap<u64, Scores>,
}

/// Of a prompt's tokens, from the second on.
type Scores = Vec<(Scored, Vec<Scored>)>;

impl Heard {
    fn of(&mut self, ticket: u64) -> (Vec<Chosen>, Stop, Scores) {
        let (tokens, scores) = (self.tokens.remove(&ticket), self.scores.remove(&ticket));
        (tokens.unwrap_or_default(), self.ended[&ticket], scores.unwrap_or_default())
    }
}

impl Reader for Heard {
    fn token(&mut self, ticket: u64, token: Chosen) -> Result<bool> {
        let all = self.tokens.entry(ticket).or_default();
        all.push(token);
        Ok(all.len() == self.enough)
    }

    fn scored(&mut self, ticket: u64, own: Scored, top: Vec<Scored>) -> Result<()> {
        assert!(!self.tokens.contains_key(&ticket), "scores come before the text");
        self.scores.entry(ticket).or_default().push((own, top));
        Ok(())
    }

    fn ended(&mut self, ticket: u64, why: Stop) -> Result<()> {
        assert!(self.ended.insert(ticket, why).is_none(), "{ticket} ended twice");
        Ok(())
    }
}

fn engine(m: &ModelConfig, kind: Kind, limits: Limits, cached: usize) -> Engine {
    sharing(m, kind, limits, cached, false)
}

/// The model's parameters with their matrices quantized.
fn quantized(m: &ModelConfig, kind: Kind, format: WeightFormat) -> InferenceWeights {
    let layout = Layout::new(m, &Topology::solo());
    let mut weights = InferenceWeights::zeros(&layout, kind, Device::Cpu, Some(format));
    for (unit, param) in layout.params() {
        let mut values = vec![0f32; param.len()];
        init::fill(param, &mut values, 3, m.initializer_range);
        if weights.keeps(unit.unit, param) {
            let mut view = weights.params.unit(unit.unit).param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
        }
        if let Some(place) = weights.place(&layout, unit.unit, param) {
            weights.set(place, &values, &row_tops(&values, param.extent[1]));
        }
    }
    weights
}

/// How the matrices of a test lie: as they are in this type, or in integers beside it.
type Held = (Kind, Option<WeightFormat>);

fn sharing(m: &ModelConfig, kind: Kind, limits: Limits, cached: usize, sharing: bool) -> Engine {
    holding(m, (kind, None), limits, cached, sharing)
}

fn holding(m: &ModelConfig, (kind, quantize): Held, limits: Limits, cached: usize, sharing: bool) -> Engine {
    let longest = m.max_position_embeddings;
    let topology = Topology::solo();
    let (device, blocks) = (Device::Cpu, blocks(cached) + 1);
    let holding = Holding { model: m, topology, kind, device, quantize, longest, blocks };
    let weights = quantize.map_or_else(|| params(m, kind).into(), |format| quantized(m, kind, format));
    holding.engine(holding.of_weights(weights), limits, sharing)
}

fn asked(prompt: &[u32], max_tokens: usize, sampling: Sampling) -> Asked {
    let (prompt, stop, logprobs, score_from, grammar) = (prompt.into(), vec![], None, None, None);
    Asked { prompt, max_tokens, sampling, sample: 0, stop, logprobs, score_from, grammar }
}

const ALONE: Limits = Limits { tokens: 64, sequences: 1 };

/// One request: its tokens and how it ended.
fn run(e: &mut Engine, a: Asked) -> (Vec<Chosen>, Stop) {
    let (chosen, stop, _) = run_scored(e, a);
    (chosen, stop)
}

/// The same, with the scores of its prompt.
fn run_scored(e: &mut Engine, a: Asked) -> (Vec<Chosen>, Stop, Scores) {
    let mut heard = Heard::default();
    let ticket = e.submit(a).unwrap();
    while e.pending() > 0 {
        e.step(&mut heard).unwrap();
    }
    heard.of(ticket)
}

fn ids(chosen: &[Chosen]) -> Vec<u32> {
    chosen.iter().map(|c| c.id).collect()
}

#[test]
fn logprobs_equal_the_full_forward_pass() {
    for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 6e-2)] {
        let m = model(64);
        let mut e = engine(&m, kind, Limits { tokens: 7, sequences: 1 }, 64);
        let prompt: Vec<u32> = (0..17).map(|i| i * 37 % 97).collect();
        let (chosen, _) = run(&mut e, Asked { logprobs: Some(97), ..asked(&prompt, 23, Sampling::greedy()) });
        let all: Vec<i64> = prompt.iter().copied().chain(ids(&chosen)).map(i64::from).collect();
        let llama = Llama::new(&m, 40, Device::Cpu, &Axes::solo());
        let full = llama.logits(&params(&m, kind), &Tensor::from_slice(&all).unsqueeze(0)).unwrap();
        let full = full.to_kind(Kind::Float).log_softmax(-1, Kind::Float).squeeze_dim(0);
        let scale = if kind == Kind::Float { 1.0 } else { full.abs().max().double_value(&[]) };
        for (i, c) in chosen.iter().enumerate() {
            let (own, top) = c.scored.as_ref().unwrap();
            assert_eq!((own.id, top.len()), (c.id, 97));
            for s in top {
                let want = full.double_value(&[16 + i as i64, s.id as i64]);
                let error = (s.logprob as f64 - want).abs() / scale;
                assert!(error < tolerance, "{kind:?} token {i}: {} {want}", s.logprob);
            }
        }
    }
}

#[test]
fn sampling_is_reproducible_and_greedy_ignores_the_seed() {
    let mut e = engine(&model(64), Kind::Float, ALONE, 64);
    let drawn = Sampling { temperature: 1.0, top_p: 0.95, ..Sampling::greedy() };
    let mut sampled =
        |seed, sample| ids(&run(&mut e, Asked { sample, ..asked(&[1, 2, 3], 30, Sampling { seed, ..drawn }) }).0);
    assert_eq!(sampled(5, 0), sampled(5, 0));
    assert_ne!(sampled(5, 0), sampled(6, 0));
    assert_ne!(sampled(5, 0), sampled(5, 1));
    let mut greedy = |seed| ids(&run(&mut e, asked(&[1, 2, 3], 30, Sampling { seed, ..Sampling::greedy() })).0);
    assert_eq!(greedy(1), greedy(2));
    assert_eq!(greedy(1).len(), 30);
}

#[test]
fn texts_end_at_a_stop_token_at_the_length_and_at_the_context() {
    let mut e = engine(&model(24), Kind::Float, ALONE, 24);
    let (all, why) = run(&mut e, asked(&[5, 6], 100, Sampling::greedy()));
    assert_eq!((all.len(), why), (22, Stop::Context));
    let (some, why) = run(&mut e, asked(&[5, 6], 7, Sampling::greedy()));
    assert_eq!((ids(&some), why), (ids(&all)[..7].to_vec(), Stop::Length));
    let stop = all[9].id;
    let first = ids(&all).iter().position(|&t| t == stop).unwrap();
    let (ended, why) = run(&mut e, Asked { stop: vec![stop], ..asked(&[5, 6], 100, Sampling::greedy()) });
    assert_eq!((ids(&ended), why, ended[first].ends), (ids(&all)[..=first].to_vec(), Stop::Token, true));
    assert_eq!(run(&mut e, asked(&[5], 0, Sampling::greedy())).1, Stop::Length);
    let mut heard = Heard { enough: 3, ..Heard::default() };
    let ticket = e.submit(asked(&[5, 6], 100, Sampling::greedy())).unwrap();
    while e.pending() > 0 {
        e.step(&mut heard).unwrap();
    }
    assert_eq!((heard.tokens[&ticket].len(), heard.ended[&ticket]), (3, Stop::Reader));
}

#[test]
fn bad_prompts_are_errors_with_their_numbers() {
    let mut e = engine(&model(24), Kind::Float, ALONE, 24);
    let mut fails = |prompt: &[u32]| e.submit(asked(prompt, 3, Sampling::greedy())).unwrap_err();
    assert!(fails(&[]).exit == Exit::Data);
    let wrong = fails(&[1, 97]);
    assert!(wrong.fact.contains("token 97 at place 1") && wrong.fact.contains("of 97"), "{wrong}");
    let wrong = fails(&[1; 24]);
    assert!(
        wrong.exit == Exit::Data && wrong.fact.contains("24 tokens") && wrong.fact.contains("may have 24"),
        "{wrong}"
    );
    struct Full;
    impl Reader for Full {
        fn token(&mut self, _: u64, _: Chosen) -> Result<bool> {
            Err(Error::new(Exit::Storage, "full"))
        }
        fn ended(&mut self, _: u64, _: Stop) -> Result<()> {
            Ok(())
        }
    }
    e.submit(asked(&[1], 3, Sampling::greedy())).unwrap();
    assert_eq!(e.step(&mut Full).unwrap_err().exit, Exit::Storage);
}

/// Requests of every kind, from a seed.
pub fn various(n: usize, vocab: usize, longest: usize) -> Vec<Asked> {
    let mut seed = 11u64;
    let mut random = move |n: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % n
    };
    let mut one = |i: usize| {
        let mut prompt: Vec<u32> = (0..1 + random(longest - 2)).map(|_| random(vocab) as u32).collect();
        // Every other one begins like many others.
        prompt.iter_mut().take(i % 2 * 57).enumerate().for_each(|(at, id)| *id = (at * 7 % vocab) as u32);
        let sampling = match i % 4 {
            0 => Sampling::greedy(),
            1 => Sampling { temperature: 1.0, seed: i as u64, ..Sampling::greedy() },
            2 => Sampling { temperature: 0.8, top_p: 0.9, top_k: 20, seed: 1, ..Sampling::greedy() },
            _ => Sampling {
                temperature: 1.3,
                min_p: 0.02,
                repetition_penalty: 1.1,
                frequency_penalty: 0.3,
                ..Sampling::greedy()
            },
        };
        let stop = if i.is_multiple_of(3) { vec![random(vocab) as u32] } else { vec![] };
        let logprobs = i.is_multiple_of(2).then_some(i % 5);
        Asked {
            prompt,
            max_tokens: 1 + random(40),
            sampling,
            sample: i as u64,
            stop,
            logprobs,
            score_from: i.is_multiple_of(5).then_some(1),
            grammar: None,
        }
    };
    (0..n).map(&mut one).collect()
}

/// Every request alone, and all together under several limits and with a cache that is too small for them: the same tokens and
/// the same bits of every log-probability.
#[test]
fn company_changes_no_bit() {
    use WeightFormat::{Int4, Int8};
    let all = [(Kind::Float, None), (Kind::BFloat16, None), (Kind::Float, Some(Int8)), (Kind::BFloat16, Some(Int4))];
    for held in all {
        let m = model(120);
        let requests = various(150, 97, 120);
        let mut one = holding(&m, held, Limits { tokens: 1000, sequences: 1 }, 120, false);
        let alone: Vec<(Vec<Chosen>, Stop, Scores)> =
            requests.iter().map(|a| run_scored(&mut one, a.clone())).collect();
        for (a, (.., scores)) in requests.iter().zip(&alone) {
            assert_eq!(scores.len(), if a.score_from.is_some() { a.prompt.len() - 1 } else { 0 });
        }
        for (tokens, sequences, cached) in [(1, 3, 400), (16, 8, 330), (61, 32, 4000), (512, 150, 20_000), (9, 4, 130)]
        {
            let mut e = holding(&m, held, Limits { tokens, sequences }, cached, true);
            let mut heard = Heard::default();
            let mut tickets = Vec::new();
            for (i, a) in requests.iter().enumerate() {
                tickets.push(e.submit(a.clone()).unwrap());
                // They come one after another while others run.
                (0..i % 3).for_each(|_| e.step(&mut heard).unwrap());
            }
            while e.pending() > 0 {
                e.step(&mut heard).unwrap();
            }
            let differ = (0..requests.len()).filter(|&i| heard.of(tickets[i]) != alone[i]);
            assert_eq!(differ.count(), 0, "{held:?} {tokens} tokens, {sequences} sequences, {cached} cached");
            assert!(e.tally().shared > 0, "prompts were meant to have beginnings in common");
            assert!(cached > 330 || e.tally().gave_up > 0, "the small cache was meant to be too small");
        }
    }
}

#[test]
fn a_prompt_is_scored_as_the_full_forward_pass_and_needs_no_text() {
    let m = model(64);
    let prompt: Vec<u32> = (0..40).map(|i| i * 29 % 97).collect();
    let llama = Llama::new(&m, 40, Device::Cpu, &Axes::solo());
    let ids: Vec<i64> = prompt.iter().map(|&id| id as i64).collect();
    let full = llama.logits(&params(&m, Kind::Float), &Tensor::from_slice(&ids).unsqueeze(0)).unwrap();
    let full = full.log_softmax(-1, Kind::Float).squeeze_dim(0);
    for tokens in [1, 7, 64] {
        let mut e = sharing(&m, Kind::Float, Limits { tokens, sequences: 4 }, 200, true);
        let scoring = Asked { logprobs: Some(1), score_from: Some(1), ..asked(&prompt, 0, Sampling::greedy()) };
        for _ in 0..2 {
            let (text, why, scores) = run_scored(&mut e, scoring.clone());
            assert_eq!((text.len(), why, scores.len()), (0, Stop::Length, 39));
            for (i, (own, top)) in scores.iter().enumerate() {
                assert_eq!(own.id, prompt[i + 1]);
                let want = full.double_value(&[i as i64, own.id as i64]);
                assert!((own.logprob as f64 - want).abs() < 1e-4 && top[0].logprob >= own.logprob, "{i}");
            }
            assert_eq!(e.blocks_now().0, 0);
        }
        let (text, _, scores) = run_scored(&mut e, Asked { prompt: vec![5], max_tokens: 1, ..scoring });
        assert_eq!((text.len(), scores.len()), (1, 0), "the first token has no score");
    }
}

#[test]
fn who_is_cancelled_holds_nothing_and_who_is_resumed_goes_on_with_the_same_bits() {
    let m = model(120);
    let limits = Limits { tokens: 16, sequences: 4 };
    let drawn = Sampling { temperature: 1.0, seed: 3, ..Sampling::greedy() };
    let a = Asked { logprobs: Some(1), ..asked(&[1, 2, 3], 60, drawn) };
    let mut e = sharing(&m, Kind::Float, limits, 400, true);
    let (whole, ..) = run_scored(&mut e, a.clone());
    for kept in [1, 15, 59] {
        let mut heard = Heard::default();
        let ticket = e.resume(a.clone(), &ids(&whole[..kept])).unwrap();
        let others: Vec<u64> = (0..6).map(|_| e.submit(asked(&[9; 30], 50, drawn)).unwrap()).collect();
        (0..5).for_each(|_| e.step(&mut heard).unwrap());
        assert!(e.standing_now().1 > 0 && e.blocks_now().0 > 0);
        others.iter().for_each(|&t| e.cancel(t));
        e.cancel(12345);
        while e.pending() > 0 {
            e.step(&mut heard).unwrap();
        }
        assert_eq!(heard.tokens.remove(&ticket).unwrap(), whole[kept..]);
        assert!(others.iter().all(|t| !heard.ended.contains_key(t)));
        assert_eq!(e.blocks_now().0, 0);
    }
}
