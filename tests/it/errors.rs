//! Bad input through the real binary: the exit code, and one clear line per problem.

use crate::support::{herd, text};
use std::path::Path;

/// Runs `args` (`@` stands for the directory) and checks the code and that stderr is lines of `herd: error: …` with `words`.
fn fails(dir: &Path, args: &str, code: i32, words: &[&str]) {
    let args: Vec<String> = args.split(' ').map(|a| a.replace('@', dir.to_str().unwrap())).collect();
    let out = herd().args(&args).output().unwrap();
    let said = text(&out);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
    assert!(said.starts_with("herd: error: "), "{args:?}: {said}");
    assert!(said.lines().skip(1).all(|l| l.starts_with("  ")), "{args:?}: {said}");
    assert!(!said.contains("panicked") && !said.contains("backtrace"), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: {word} not in {said}");
    }
}

#[test]
fn configuration_files_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let put = |name: &str, body: &[u8]| std::fs::write(dir.join(name), body).unwrap();
    put("good.yaml", super::config::GOOD.as_bytes());
    put("empty.yaml", b"# nothing\n");
    put("list.yaml", b"- 1\n- 2\n");
    put("syntax.yaml", b"name: t\nmodel: {a: 1\nrun_dir: x\n");
    put("twice.yaml", b"name: t\nname: u\n");
    put("tab.yaml", b"name: t\n\trun_dir: x\n");
    put("two.yaml", b"name: t\n---\nname: u\n");
    put("binary.yaml", &[0xff, 0xfe, 0x00, 0x80]);
    put("bad.json", b"{\"model_type\": \"gpt2\"}");
    fails(dir, "config check @/no.yaml", 10, &["cannot read", "no.yaml", "no such file"]);
    fails(dir, "config check @", 21, &["cannot read", "is a directory"]);
    fails(dir, "config check @/empty.yaml", 10, &["empty.yaml", "the file is empty"]);
    fails(dir, "config check @/list.yaml", 10, &["is a list, but must be a section of keys"]);
    fails(dir, "config check @/syntax.yaml", 10, &["syntax.yaml:3:"]);
    fails(dir, "config check @/twice.yaml", 10, &["twice.yaml", "duplicate entry with key \"name\""]);
    fails(dir, "config check @/tab.yaml", 10, &["tab.yaml:2:"]);
    fails(dir, "config check @/two.yaml", 10, &["more than one document"]);
    fails(dir, "config check @/binary.yaml", 10, &["not UTF-8"]);
    fails(
        dir,
        "config check @/good.yaml --set model.shape= --set model.config=@/no.json",
        12,
        &["model.config", "no.json"],
    );
    fails(
        dir,
        "config check @/good.yaml --set model.shape= --set model.weights=@/no",
        12,
        &["model.weights", "no/config.json"],
    );
    fails(
        dir,
        "config check @/good.yaml --set model.shape= --set model.config=@/bad.json",
        12,
        &["gpt2", "LlamaForCausalLM"],
    );
    fails(
        dir,
        "config check @/good.yaml --set model.shape.num_key_value_heads=3",
        10,
        &["4 is not a multiple of num_key_value_heads 3"],
    );
    fails(dir, "config check @/good.yaml --set train.steps", 2, &["no `=` in", "--set train.steps"]);
    fails(dir, "config show @/good.yaml --set optim.lr=fast", 10, &["optim.lr: is \"fast\", a string"]);
    fails(
        dir,
        "config check @/good.yaml --ranks 5",
        10,
        &["12 sequences", "5 data-parallel ranks", "batch.global 10 or 20"],
    );
    fails(dir, "help no-such-command", 2, &["no help on `no-such-command`"]);
    fails(dir, "man @/good.yaml", 21, &["cannot create"]);
}

#[test]
fn wrong_command_lines_end_with_2() {
    for args in [
        &["bogus"][..],
        &["config"],
        &["config", "check"],
        &["config", "check", "x", "--ranks", "0"],
        &["--bogus"],
        &[],
    ] {
        let out = herd().args(args).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{args:?}: {}", text(&out));
        assert!(out.stdout.is_empty() && !out.stderr.is_empty(), "{args:?}");
    }
}
