//! Import of Meta's originals: Meta's own forward pass in PyTorch is the oracle, transformers reads what herd exports.

use crate::support::{herd, python, said};
use herd::convert::weights;
use herd::error::Exit;
use std::fs;
use std::path::Path;

fn oracle(args: &[&str]) -> String {
    said(python().arg("tests/oracle/checkpoint_meta.py").args(args))
}

fn run(args: &[&str]) -> String {
    said(herd().args(args))
}

#[test]
fn originals_in_any_number_of_files_compute_what_metas_code_does() {
    let dir = tempfile::tempdir().unwrap();
    oracle(&["make", dir.path().to_str().unwrap()]);
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let mut pairs = vec!["compare".to_string()];
    for variant in ["one", "two", "four-columns", "replicated", "tied"] {
        let (run_dir, hf) = (at(&format!("{variant}-run")), at(&format!("{variant}-hf")));
        run(&["checkpoint", "import", &at(variant), &run_dir]);
        run(&["checkpoint", "export", &run_dir, &hf, "--dtype", "fp32"]);
        pairs.extend([at(&format!("{variant}.pt")), hf.clone()]);
        // The original itself is read the same way, without an import.
        let same = run(&["checkpoint", "diff", &at(variant), &hf]);
        assert!(same.contains("0 of "), "{same}");
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(Path::new(&hf).join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], variant == "tied");
        match variant {
            "two" => assert_eq!(config["rope_scaling"]["factor"], 8.0),
            "tied" => assert_eq!(config["rope_scaling"]["factor"], 32.0),
            "replicated" => assert_eq!((&config["rope_theta"], &config["vocab_size"]), (&10000.0.into(), &96.into())),
            _ => {}
        }
    }
    let said = oracle(&pairs.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(said.matches("the logits are equal").count(), 5, "{said}");
    slices_of_permuted_rows_equal_the_whole(&dir.path().join("two"));
    broken_files_are_refused(&dir.path().join("two"));
}

/// Any rectangle and flat range of q and k is cut from the same permuted matrix.
fn slices_of_permuted_rows_equal_the_whole(directory: &Path) {
    let w = weights::open(directory).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let mut whole = vec![0.0; 64 * 64];
    w.read(name, &[0, 0], &[64, 64], &mut whole).unwrap();
    for (offset, extent, start, len) in
        [([3, 5], [40, 20], 33, 500), ([8, 0], [8, 64], 0, 512), ([63, 60], [1, 4], 1, 2)]
    {
        let mut out = vec![0.0; len];
        w.read_range(name, &offset, &extent, start, &mut out).unwrap();
        let expected: Vec<f32> =
            (start..start + len).map(|i| whole[(offset[0] + i / extent[1]) * 64 + offset[1] + i % extent[1]]).collect();
        assert_eq!(out, expected, "{offset:?} {extent:?} {start}");
    }
}

fn broken_files_are_refused(directory: &Path) {
    let refused = |word: &str| {
        let e = weights::open(directory).err().expect(word);
        assert_eq!(e.exit, Exit::Model, "{e}");
        assert!(e.to_string().contains(word), "{e} does not say {word:?}");
    };
    let file = directory.join("consolidated.01.pth");
    let good = fs::read(&file).unwrap();
    for len in (0..good.len()).step_by(good.len() / 40) {
        fs::write(&file, &good[..len]).unwrap();
        refused("consolidated.01.pth");
    }
    // Whatever a flipped bit does, it is an answer, not a panic.
    for at in (0..good.len()).step_by(good.len() / 300).chain(good.len() - 400..good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        fs::write(&file, bad).unwrap();
        let _ = weights::open(directory);
    }
    fs::remove_file(&file).unwrap();
    refused("layers");
    fs::write(directory.join("consolidated.02.pth"), &good).unwrap();
    refused("lacks consolidated.01.pth");
    fs::remove_file(directory.join("consolidated.02.pth")).unwrap();
    fs::write(&file, &good).unwrap();
    assert!(weights::open(directory).is_ok());
    let params = directory.join("params.json");
    let text = fs::read_to_string(&params).unwrap();
    for (from, to, word) in [
        ("\"n_layers\": 2", "\"n_layers\": 3", "lacks layers.2"),
        ("\"n_layers\": 2", "\"n_layers\": 1", "has not"),
        ("\"dim\": 64", "\"dim\": 128", "params.json means"),
        ("\"n_kv_heads\": 4", "\"n_kv_heads\": 3", "not a multiple"),
        ("\"multiple_of\": 32", "\"multiple_of\": 512", "a feed-forward layer of 512"),
        ("\"n_heads\": 8", "\"moe_args\": {}, \"n_heads\": 8", "moe_args"),
        ("{", "[", "params.json"),
    ] {
        assert!(text.contains(from));
        fs::write(&params, text.replace(from, to)).unwrap();
        refused(word);
    }
    fs::remove_file(&params).unwrap();
    refused("holds no weights");
}

/// Peak resident bytes of a child that succeeds, as the kernel keeps them for its program (proc(5), VmHWM). What wait4 says
/// counts what was there before the exec too, which is this process's own size.
fn peak(c: &mut std::process::Command) -> u64 {
    let mut child = c.spawn().unwrap();
    let file = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let status = fs::read_to_string(&file).unwrap_or_default();
        let kib = status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        peak = peak.max(kib.unwrap_or(0u64));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success() && peak > 0, "{c:?}: {status}");
            return peak * 1024;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn imports_and_exports_stream() {
    let dir = tempfile::tempdir().unwrap();
    let meta = dir.path().join("meta");
    oracle(&["big", meta.to_str().unwrap(), "0.3"]);
    let (run, out) = (dir.path().join("run"), dir.path().join("out"));
    let import = peak(herd().args(["checkpoint", "import"]).arg(&meta).arg(&run));
    let export = peak(herd().args(["checkpoint", "export"]).arg(&run).arg(&out));
    let again = peak(herd().args(["checkpoint", "import"]).arg(&out).arg(dir.path().join("again")));
    let size = fs::metadata(run.join("checkpoints/step-00000000/rank-00000.h5")).unwrap().len();
    eprintln!("of {size} bytes: import {import}, export {export}, from Hugging Face {again}");
    assert!(size > 580 << 20);
    for (verb, peak) in [("import", import), ("export", export), ("import from Hugging Face", again)] {
        assert!(peak < 200 << 20, "{verb} of {size} bytes took {peak} bytes of memory");
    }
}
