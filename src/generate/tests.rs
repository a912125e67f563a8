//! Decoding with a cache against the model's full forward pass.

use super::decode::Decoder;
use super::{Generator, Options, Sampling, Stop};
use crate::config::ModelConfig;
use crate::error::{Error, Exit};
use crate::layout::Layout;
use crate::model::Axes;
use crate::model::{init, Llama, Params};
use crate::topology::Topology;
use serde_json::json;
use tch::{Device, Kind, Tensor};

fn model(max_position: usize) -> (ModelConfig, Params) {
    let m: ModelConfig = serde_json::from_value(json!({
        "vocab_size": 97, "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10, "rope_theta": 10000.0,
        "max_position_embeddings": max_position, "tie_word_embeddings": true, "initializer_range": 0.3
    }))
    .unwrap();
    let p = Params::frozen(&Layout::new(&m, &Topology::solo()), Kind::Float, Device::Cpu);
    for unit in &p.units {
        for param in &unit.layout.params {
            let mut values = vec![0f32; param.len()];
            init::fill(param, &mut values, 3, m.initializer_range);
            let mut view = unit.param(&param.name);
            view.copy_(&Tensor::from_slice(&values).view_as(&view));
        }
    }
    (m, p)
}

fn options(n: usize, sampling: Sampling) -> Options {
    Options { max_new_tokens: n, sampling, stop: vec![] }
}

fn run(g: &Generator, prompt: &[u32], o: &Options) -> super::Generation {
    g.run(prompt, 0, o, &mut |_| Ok(())).unwrap()
}

#[test]
fn cached_logits_equal_the_full_forward_pass() {
    for (dtype, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 6e-2)] {
        let (m, mut p) = model(64);
        p.units.iter_mut().for_each(|u| u.param = u.param.to_kind(dtype));
        let llama = Llama::new(&m, 40, Device::Cpu, &Axes::solo());
        let ids: Vec<u32> = (0..40).map(|i| i * 37 % 97).collect();
        let tokens = Tensor::from_slice(&ids.iter().map(|&i| i as i64).collect::<Vec<_>>()).unsqueeze(0);
        let full = llama.logits(&p, &tokens).unwrap().to_kind(Kind::Float);
        let scale = full.abs().max().double_value(&[]);
        let mut decoder = Decoder::new(&llama, &p, 40);
        for at in 16..40usize {
            let got = if at == 16 { decoder.prefill(&ids[..17]).unwrap() } else { decoder.step(ids[at]).unwrap() };
            let error = (Tensor::from_slice(&got) - full.get(0).get(at as i64)).abs().max().double_value(&[]) / scale;
            assert!(error < tolerance, "{dtype:?} token {at}: {error}");
        }
    }
}

#[test]
fn sampling_is_reproducible_and_greedy_ignores_the_seed() {
    let (m, p) = model(64);
    let g = Generator::new(&m, &p, 64, Device::Cpu);
    let sampled = |seed| run(&g, &[1, 2, 3], &options(30, Sampling { temperature: 1.0, top_k: 0, top_p: 0.95, seed }));
    assert_eq!(sampled(5), sampled(5));
    assert_ne!(sampled(5), sampled(6));
    let greedy = |seed| run(&g, &[1, 2, 3], &options(30, Sampling { seed, ..Sampling::greedy() }));
    assert_eq!(greedy(1), greedy(2));
    assert_eq!(greedy(1).tokens.len(), 30);
}

#[test]
fn texts_end_at_a_stop_token_at_the_length_and_at_the_context() {
    let (m, p) = model(24);
    let g = Generator::new(&m, &p, usize::MAX, Device::Cpu);
    let all = run(&g, &[5, 6], &options(100, Sampling::greedy()));
    assert_eq!((all.tokens.len(), all.stop), (22, Stop::Context));
    let some = run(&g, &[5, 6], &options(7, Sampling::greedy()));
    assert_eq!((&some.tokens[..], some.stop), (&all.tokens[..7], Stop::Length));
    let stop = all.tokens[9];
    let first = all.tokens.iter().position(|&t| t == stop).unwrap();
    let ended = run(&g, &[5, 6], &Options { stop: vec![stop], ..options(100, Sampling::greedy()) });
    assert_eq!((&ended.tokens[..], ended.stop), (&all.tokens[..=first], Stop::Token));
    assert_eq!(run(&g, &[5], &options(0, Sampling::greedy())).stop, Stop::Length);
}

#[test]
fn bad_prompts_are_errors_with_their_numbers() {
    let (m, p) = model(24);
    let g = Generator::new(&m, &p, 24, Device::Cpu);
    let fails = |prompt: &[u32]| g.run(prompt, 0, &options(3, Sampling::greedy()), &mut |_| Ok(())).unwrap_err();
    assert!(fails(&[]).exit == Exit::Data);
    let e = fails(&[1, 97]);
    assert!(e.exit == Exit::Data && e.fact.contains("token 97 at place 1") && e.fact.contains("of 97"), "{e}");
    let e = fails(&[1; 24]);
    assert!(e.fact.contains("24 tokens") && e.fact.contains("may have 24"), "{e}");
    let e =
        g.run(&[1], 0, &options(3, Sampling::greedy()), &mut |_| Err(Error::new(Exit::Storage, "full"))).unwrap_err();
    assert_eq!(e.exit, Exit::Storage);
}
