//! Proposed tokens change how soon a text comes, and no bit of it.

use super::*;
use crate::serve::guide::Guide;

/// All requests at once; of each its tokens, its end and its scores. Blocks are all given back at the end.
pub fn together(
    e: &mut Engine, requests: &[Asked], enough: usize, guides: &dyn Fn(&Asked) -> Option<Guide>,
) -> Vec<(Vec<Chosen>, Stop, Scores)> {
    let mut heard = Heard { enough, ..Heard::default() };
    let tickets: Vec<u64> = requests.iter().map(|a| e.submit_guided(a.clone(), guides(a)).unwrap()).collect();
    while e.pending() > 0 {
        e.step(&mut heard).unwrap();
    }
    assert_eq!(e.blocks_now().0, 0);
    tickets.into_iter().map(|t| heard.of(t)).collect()
}

/// A model whose likeliest token is often the last one again, by its tied embedding: greedy texts repeat, drawn ones now and then.
pub fn stammerer() -> ModelConfig {
    ModelConfig { initializer_range: 0.1, ..model(120) }
}

/// Those of other tests, and some whose prompts repeat: with penalties, drawn, scored, with ends among what is repeated.
fn repeating() -> Vec<Asked> {
    let mut requests = various(60, 97, 120);
    for i in 0..40u32 {
        let part: Vec<u32> = (0..2 + i % 9).map(|at| (at * 31 + i) % 97).collect();
        let prompt: Vec<u32> = part.iter().cycle().take(20 + i as usize).copied().collect();
        let sampling = match i % 4 {
            0 => Sampling::greedy(),
            1 => Sampling { temperature: 0.3, seed: u64::from(i), ..Sampling::greedy() },
            2 => Sampling { temperature: 0.5, top_p: 0.8, repetition_penalty: 1.05, ..Sampling::greedy() },
            _ => Sampling { presence_penalty: 0.3, ..Sampling::greedy() },
        };
        let stop = if i % 5 == 0 { vec![part[1]] } else { vec![] };
        let (logprobs, score_from) = ((i % 2 == 0).then_some(2), (i % 7 == 0).then_some(1));
        let sample = u64::from(i % 3);
        requests.push(Asked { prompt, max_tokens: 60, sampling, sample, stop, logprobs, score_from, grammar: None });
    }
    requests
}

#[test]
fn proposals_change_no_bit() {
    let m = stammerer();
    let requests = repeating();
    for held in [(Kind::Float, None), (Kind::BFloat16, None), (Kind::Float, Some(WeightFormat::Int8))] {
        let mut plain = holding(&m, held, Limits { tokens: 512, sequences: 30 }, 4000, false);
        for enough in [0, 9] {
            let want = together(&mut plain, &requests, enough, &|_| None);
            for (most, tokens, sequences, cached) in
                [(1, 512, 1, 120), (4, 61, 8, 130), (20, 512, 30, 4000), (64, 30, 40, 500), (8, 9, 3, 400)]
            {
                let mut e = holding(&m, held, Limits { tokens, sequences }, cached, true).proposing(most);
                let at = format!("{held:?}, {most} proposed, {tokens} tokens, {sequences} sequences, {cached} cached");
                // The second time what the first left in the cache is read again: no block of it holds a refused token.
                for _ in 0..2 {
                    let got = together(&mut e, &requests, enough, &|_| None);
                    let differ: Vec<usize> = (0..requests.len()).filter(|&i| got[i] != want[i]).collect();
                    assert!(differ.is_empty(), "{at}: {differ:?}");
                }
                let t = e.tally();
                assert!(
                    t.accepted > if enough > 0 { 5 } else { 30 } && t.proposed > t.accepted && t.shared > 0,
                    "{at}: {t:?}"
                );
                assert!(cached > 130 || sequences == 1 || t.gave_up > 0, "{at}: the cache was meant to be too small");
            }
        }
    }
}

/// A text that repeats itself is made in a fraction of the passes, and one that does not in no more of them.
#[test]
fn proposals_save_passes() {
    let m = stammerer();
    let limits = Limits { tokens: 64, sequences: 1 };
    let made = |most: usize, prompt: &[u32], sampling: Sampling| {
        let mut e = sharing(&m, Kind::Float, limits, 120, false).proposing(most);
        let text = run(&mut e, asked(prompt, 100, sampling)).0;
        (ids(&text), e.tally())
    };
    let (text, plain) = made(0, &[5, 6], Sampling::greedy());
    let (same, ahead) = made(16, &[5, 6], Sampling::greedy());
    assert_eq!((text, plain.iterations, plain.proposed), (same, 100, 0));
    assert!(ahead.chosen == 100 && ahead.iterations + ahead.accepted == 100, "{ahead:?}");
    assert!(ahead.iterations < 60, "a greedy text of this model repeats: {ahead:?}");
    let hot = Sampling { temperature: 8.0, seed: 1, ..Sampling::greedy() };
    let (text, _) = made(0, &[5, 6], hot);
    let (same, ahead) = made(16, &[5, 6], hot);
    assert!(text == same && ahead.proposed < 30, "{ahead:?}");
}
