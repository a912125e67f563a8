//! Texts of a given form: of that form, with the bits that they have alone, and with scores of the model's own.

use super::speculation::{stammerer, together};
use super::*;
use crate::data::Tokenizer;
use crate::serve::guide::{Grammar, Grammars};

const END: u32 = 257;

fn forms() -> Vec<Option<Grammar>> {
    let string = json!({"type": "string", "maxLength": 8});
    let object = json!({"type": "object", "properties": {"name": string, "tags": {"type": "array", "items": string, "maxItems": 3}},
                        "required": ["name", "tags"], "additionalProperties": false});
    vec![
        Some(Grammar::Json(object)),
        Some(Grammar::object()),
        Some(Grammar::Regex("(ab|cd){2,12}[0-9]?".into())),
        Some(Grammar::Choice(vec!["maybe, maybe, maybe, maybe not".into(), "maybe, maybe, maybe".into(), "no".into()])),
        None,
    ]
}

fn requests() -> Vec<Asked> {
    let forms = forms();
    let one = |i: usize| {
        let prompt: Vec<u32> =
            b"maybe, maybe, {\"name\": \"ababcdcd".iter().map(|&b| u32::from(b)).take(1 + i * 3 % 32).collect();
        let sampling = match i % 4 {
            0 => Sampling::greedy(),
            1 => Sampling { temperature: 1.0, seed: i as u64, ..Sampling::greedy() },
            2 => Sampling { temperature: 0.7, top_p: 0.9, top_k: 5, seed: 2, ..Sampling::greedy() },
            _ => Sampling {
                temperature: 1.2,
                min_p: 0.01,
                repetition_penalty: 1.1,
                frequency_penalty: 0.2,
                ..Sampling::greedy()
            },
        };
        // Some may not end by a token: their form alone ends them.
        let stop = if i % 6 == 5 { vec![] } else { vec![END] };
        let (grammar, sample, max_tokens) = (forms[i % forms.len()].clone(), i as u64, 20 + 13 * (i % 8));
        Asked { prompt, max_tokens, sampling, sample, stop, logprobs: Some(i % 3), score_from: None, grammar }
    };
    (0..80).map(one).collect()
}

#[test]
fn guided_texts_have_their_form_and_the_bits_that_they_have_alone() {
    let m = ModelConfig { vocab_size: 258, max_position_embeddings: 160, ..stammerer() };
    let tokenizer = Tokenizer::open("bytes").unwrap();
    let grammars = Grammars::new(&tokenizer, 258);
    let guides = |a: &Asked| grammars.guide_of(a.grammar.as_ref()).unwrap();
    let requests = requests();
    let held = (Kind::Float, None);
    let mut one = holding(&m, held, Limits { tokens: 512, sequences: 1 }, 160, false);
    let alone = together(&mut one, &requests, 0, &guides);
    for (tokens, sequences, cached, most) in
        [(512, 80, 20_000, 0), (61, 7, 200, 8), (512, 30, 4000, 20), (30, 80, 300, 3)]
    {
        let mut e = holding(&m, held, Limits { tokens, sequences }, cached, true).proposing(most);
        let got = together(&mut e, &requests, 0, &guides);
        let differ: Vec<usize> = (0..requests.len()).filter(|&i| got[i] != alone[i]).collect();
        let t = e.tally();
        assert!(differ.is_empty(), "{tokens} {sequences} {cached} {most}: {differ:?}");
        assert!(most == 0 || t.accepted > 30, "{t:?}");
    }
    let mut whole = 0;
    for (a, (chosen, why, _)) in requests.iter().zip(&alone) {
        let body = &chosen[..chosen.len() - usize::from(chosen.last().is_some_and(|c| c.ends))];
        let text = tokenizer.decode(&ids(body));
        let ended = [Stop::Token, Stop::Grammar].contains(why);
        whole += usize::from(ended && a.grammar.is_some());
        assert!(ended || (*why == Stop::Length && chosen.len() == a.max_tokens), "{why:?} {text}");
        match &a.grammar {
            Some(Grammar::Json(schema)) if ended => {
                let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
                assert!(jsonschema::is_valid(schema, &value), "{text}");
            }
            Some(Grammar::Choice(all)) => {
                assert!(all.iter().any(|c| if ended { c == &text } else { c.starts_with(&text) }))
            }
            Some(Grammar::Regex(_)) => assert!(text.bytes().all(|b| b"abcd0123456789".contains(&b)), "{text}"),
            _ => {}
        }
        // Scores are those that the same tokens have as a prompt.
        let whole = [&a.prompt[..], &ids(chosen)].concat();
        let scoring =
            Asked { logprobs: Some(2), score_from: Some(a.prompt.len()), ..asked(&whole, 0, Sampling::greedy()) };
        let (_, _, scores) = run_scored(&mut one, scoring);
        let own = |c: &Chosen| c.scored.as_ref().unwrap().0.logprob;
        assert!(scores.iter().map(|s| s.0.logprob).eq(chosen.iter().map(own)), "{text}");
    }
    assert!(whole > 25, "{whole} texts were ended by their form");
    assert!(one.submit(requests[0].clone()).is_err(), "a form without its guide");
}
