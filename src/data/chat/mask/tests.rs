use super::*;
use crate::data::chat::forms;

const CHATML: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

fn template(source: &str) -> ChatTemplate {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), source).unwrap();
    ChatTemplate::read(file.path(), &Tokenizer::open("bytes").unwrap()).unwrap()
}

/// What counts, each run between bars.
fn counted(source: &str, row: &str, which: Counted) -> Result<String> {
    let t = Tokenizer::open("bytes").unwrap();
    let made = tokens(&template(source), &t, &forms::read(&forms::row(row).unwrap()).unwrap(), which)?;
    assert_eq!(made.ids, t.encode_special(&made.text).unwrap());
    let runs: Vec<(u32, u8)> = made.ids.iter().copied().zip(made.mask.iter().copied()).collect();
    let shown = runs.chunk_by(|a, b| a.1 == b.1).filter(|run| run[0].1 > 0);
    Ok(shown.map(|run| t.decode(&run.iter().map(|r| r.0).collect::<Vec<_>>())).collect::<Vec<_>>().join("|"))
}

const TALK: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "é"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c", "weight": WEIGHT}, {"role": "assistant", "content": "d"}]}"#;

#[test]
fn turns_are_found_by_beginnings_and_by_marks() {
    let marked = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end_of_text|>\n{% endgeneration %}{% else %}{{ m.content }}<|end_of_text|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let end = "<|end_of_text|>\n";
    for source in [CHATML, marked] {
        let of = |weight: &str, which| counted(source, &TALK.replace("WEIGHT", weight), which).unwrap();
        assert_eq!(of("1", Counted::All), format!("é{end}|c{end}|d{end}"), "{source}");
        assert_eq!(of("0", Counted::All), format!("é{end}|d{end}"), "{source}");
        assert_eq!(of("1", Counted::Last), format!("d{end}"), "{source}");
    }
    let first = r#"{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}"#;
    assert_eq!(counted(CHATML, first, Counted::All).unwrap(), format!("x{end}"));
}

/// A template that strips earlier turns, as those of reasoning models do.
#[test]
fn a_template_that_rewrites_earlier_turns_is_refused() {
    let strips = "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role == 'user' else m.content.split('/')[-1] }}<|end_of_text|>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    let row = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "t/b"}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "t/d"}]}"#;
    let e = counted(strips, row, Counted::All).unwrap_err();
    assert!(
        e.exit == Exit::Data && e.fact.contains("message 2 otherwise") && e.hint.unwrap().contains("--loss last"),
        "{}",
        e.fact
    );
    assert_eq!(counted(strips, row, Counted::Last).unwrap(), "t/d<|end_of_text|>");
}
