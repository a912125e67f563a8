use super::*;

const END: &str = "<|end_of_text|>";

fn with<T>(source: &str, rules: ChatRules, f: impl FnOnce(&ChatEncoder) -> T) -> T {
    let tokenizer = Tokenizer::open("bytes").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), source).unwrap();
    let template = ChatTemplate::read(file.path(), &tokenizer).unwrap();
    f(&ChatEncoder::new(&tokenizer, &template, rules))
}

fn rules() -> ChatRules {
    ChatRules { counted: Counted::All, front: None, eos: None, allowed: Vec::new(), skip_bad: false }
}

fn plain(end: &str) -> String {
    format!("{{% for m in messages %}}{{{{ m.role }}}}: {{{{ m.content }}}}{end}\n{{% endfor %}}{{% if add_generation_prompt %}}assistant: {{% endif %}}")
}

const ROW: &str = r#"{"prompt": "a", "completion": "b"}"#;

fn caught(source: &str, rules: ChatRules, row: &str) -> String {
    with(source, rules, |e| e.encode(row).unwrap_err().to_string())
}

#[test]
fn a_clean_row_passes() {
    with(&plain(END), rules(), |e| {
        let (ids, mask) = e.encode(ROW).unwrap().remove(0);
        assert_eq!((ids.len(), mask.iter().map(|&m| m as usize).sum::<usize>()), (23, 3));
        let tally = e.tally();
        assert_eq!((tally.skipped, tally.named, tally.ends.len()), (0, 0, 1));
        assert_eq!(e.note().ends, [257]);
    });
}

#[test]
fn every_trap_is_caught_by_name_and_let_pass_when_it_is_allowed() {
    let bos = "{{ '<|begin_of_text|>' }}".to_string() + &plain(END);
    let unweighted =
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}"#;
    let bare = "{{ '<|begin_of_text|>' }}{% for m in messages %}{{ m.content }}<|end_of_text|>{% endfor %}".to_string();
    let written = r#"{"prompt": "<|begin_of_text|>a", "completion": "b"}"#;
    let twice = ChatRules { front: Some(256), ..rules() };
    let cases = [
        (Trap::EmptyMask, plain(END), rules(), unweighted),
        (Trap::EmptyMask, plain(END), rules(), r#"{"messages": [{"role": "user", "content": "a"}]}"#),
        (Trap::DoubleBos, bos, twice, ROW),
        (Trap::DoubleBos, bare, rules(), written),
        (Trap::EndNotTrained, plain(""), rules(), ROW),
        (Trap::ForeignTemplate, plain("<|im_end|>"), rules(), ROW),
        (Trap::SameAnswers, plain(END), rules(), r#"{"prompt": "a", "chosen": "b", "rejected": "b"}"#),
    ];
    for (trap, source, rules, row) in cases {
        let e = caught(&source, rules.clone(), row);
        assert!(e.contains(&format!("trap {trap}")), "{trap}: {e}");
        let allowing = ChatRules { allowed: vec![trap], ..rules };
        with(&source, allowing, |e| {
            e.encode(row).unwrap();
            assert_eq!(e.tally().allowed[&trap], 1);
        });
    }
    let outside = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}<|end_of_text|>{% else %}{{ m.content }}{% endif %}{% endfor %}";
    assert!(caught(outside, rules(), ROW).contains("trap end-not-trained"));
    let appended = ChatRules { eos: Some(257), ..rules() };
    with(&plain(""), appended, |e| assert_eq!(e.encode(ROW).unwrap()[0].1.last(), Some(&1)));
}

#[test]
fn bad_rows_are_left_out_only_when_that_is_asked_for() {
    assert!(caught(&plain(END), rules(), r#"{"chosen": "a", "rejected": "b"}"#).contains("without a prompt"));
    let skipping = ChatRules { skip_bad: true, ..rules() };
    with(&plain(END), skipping, |e| {
        assert!(e.encode("{}").unwrap().is_empty());
        assert!(!e.encode(r#"{"prompt": "<|end_of_text|>", "completion": "b"}"#).unwrap().is_empty());
        let tally = e.tally();
        assert_eq!((tally.skipped, tally.named, tally.first_name.as_deref()), (1, 1, Some(END)));
        assert!(tally.first_skipped.unwrap().contains("no conversation"));
    });
}

/// The answers of a pair are documents side by side, each with the prompt and nothing learned of it; conversations are not among them.
#[test]
fn a_pair_is_two_documents() {
    let pair = r#"{"prompt": "a", "chosen": "b", "rejected": "cd"}"#;
    with(&plain(END), rules(), |e| {
        let documents = e.encode(pair).unwrap();
        let learned = |(ids, mask): &IdsAndMask| -> Vec<u32> {
            ids.iter().zip(mask).filter(|(_, &m)| m > 0).map(|(&id, _)| id).collect()
        };
        let end = [257, b'\n' as u32];
        assert_eq!(documents.len(), 2);
        assert_eq!(learned(&documents[0]), [&[b'b' as u32], &end[..]].concat());
        assert_eq!(learned(&documents[1]), [&[b'c' as u32, b'd' as u32], &end[..]].concat());
        assert!(e.note().pairs);
        let fact = e.encode(ROW).unwrap_err().fact;
        assert!(fact.contains("preference pairs and conversations"), "{fact}");
        assert_eq!(e.tally().forms.len(), 1);
    });
    with(&plain(END), rules(), |e| {
        e.encode(ROW).unwrap();
        assert!(!e.note().pairs && e.encode(pair).is_err());
    });
}
