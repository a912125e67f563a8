//! Generation against transformers' `generate`.

use crate::model::Case;
use herd::generate::{Generator, Options, Sampling, Stop};
use tch::Device;

#[test]
fn greedy_continuation_equals_transformers() {
    for name in ["grouped", "tied", "scaled", "wide_heads"] {
        let case = Case::get(name);
        let p = case.params();
        let text: Vec<i64> = Vec::try_from(case.tensor("greedy")).unwrap();
        let text: Vec<u32> = text.iter().map(|&t| t as u32).collect();
        let (prompt, want) = text.split_at(40);
        let generator = Generator::new(&case.config, &p, text.len(), Device::Cpu);
        let options = Options { max_new_tokens: want.len(), sampling: Sampling::greedy(), stop: vec![] };
        let mut streamed = vec![];
        let got = generator
            .run(prompt, 0, &options, &mut |t| {
                streamed.push(t);
                Ok(())
            })
            .unwrap();
        assert_eq!(got.tokens, want, "{name}");
        assert_eq!(streamed, want, "{name}");
        assert_eq!(got.stop, Stop::Length);
    }
}
