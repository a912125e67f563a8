//! Blocks by hand; files that are cut, changed or another's.

use super::blocks::BlockType;
use super::header::GgufHead;
use super::*;
use half::f16;

/// Bytes of a head.
struct File(Vec<u8>);

impl File {
    fn text(&mut self, s: &str) -> &mut File {
        self.0.extend((s.len() as u64).to_le_bytes());
        self.0.extend(s.as_bytes());
        self
    }

    fn u32(&mut self, n: u32) -> &mut File {
        self.0.extend(n.to_le_bytes());
        self
    }

    fn u64(&mut self, n: u64) -> &mut File {
        self.0.extend(n.to_le_bytes());
        self
    }
}

/// A Llama of one block with 2 heads of 4, whose q rows hold their own number in llama.cpp's order.
fn small(architecture: &str, kind: u32) -> Vec<u8> {
    let mut f = File(b"GGUF".to_vec());
    let counts = [("block_count", 1), ("embedding_length", 8), ("feed_forward_length", 8), ("context_length", 64)];
    let heads = [("attention.head_count", 2)];
    let tensors = [
        ("token_embd.weight", vec![8, 5]),
        ("blk.0.attn_norm.weight", vec![8]),
        ("blk.0.attn_q.weight", vec![8, 8]),
        ("blk.0.attn_k.weight", vec![8, 8]),
        ("blk.0.attn_v.weight", vec![8, 8]),
        ("blk.0.attn_output.weight", vec![8, 8]),
        ("blk.0.ffn_norm.weight", vec![8]),
        ("blk.0.ffn_gate.weight", vec![8, 8]),
        ("blk.0.ffn_up.weight", vec![8, 8]),
        ("blk.0.ffn_down.weight", vec![8, 8]),
        ("output_norm.weight", vec![8]),
    ];
    f.u32(3).u64(tensors.len() as u64).u64(7);
    f.text("general.architecture").u32(8).text(architecture);
    for (key, n) in counts.iter().chain(&heads) {
        f.text(&format!("llama.{key}")).u32(4).u32(*n);
    }
    f.text("llama.attention.layer_norm_rms_epsilon").u32(6).0.extend(1e-5f32.to_le_bytes());
    let mut at = 0;
    let mut data = Vec::new();
    for (name, dims) in &tensors {
        f.text(name).u32(dims.len() as u32);
        for &d in dims {
            f.u64(d);
        }
        f.u32(kind).u64(at);
        let n = dims.iter().product::<u64>();
        let values =
            (0..n).map(|i| if name.contains("attn_q") { (i / 8) as f32 + 0.125 * (i % 8) as f32 } else { 1.0 });
        data.extend(values.flat_map(f32::to_le_bytes));
        at += 4 * n;
    }
    f.0.resize(f.0.len().next_multiple_of(32), 0);
    f.0.extend(data);
    f.0
}

fn open(bytes: &[u8]) -> Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, bytes).unwrap();
    let gguf = Gguf::open(&path)?;
    // The file is open; its name is not needed any more.
    Ok(gguf)
}

#[test]
fn rows_of_q_come_back_in_the_order_of_halves() {
    let g = open(&small("llama", 0)).unwrap();
    assert_eq!((g.model().head_dim(), g.model().rms_norm_eps, g.model().tie_word_embeddings), (4, 1e-5, true));
    let name = "model.layers.0.self_attn.q_proj.weight";
    let mut all = vec![0.0; 64];
    g.read(name, &[0, 0], &[8, 8], 0, &mut all).unwrap();
    let rows: Vec<f32> = all.iter().step_by(8).copied().collect();
    assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    let mut part = vec![0.0; 5];
    g.read(name, &[1, 2], &[4, 3], 2, &mut part).unwrap();
    assert_eq!(part, [2.5, 1.25, 1.375, 1.5, 3.25]);
}

#[test]
fn damaged_and_foreign_files_are_refused_by_name_and_never_a_panic() {
    let whole = small("llama", 0);
    for cut in 0..whole.len() {
        assert!(open(&whole[..cut]).is_err(), "cut at {cut}");
    }
    for at in 0..whole.len() - 600 {
        for value in [0u8, 0x7F, 0xFF] {
            let mut changed = whole.clone();
            changed[at] = value;
            // Whatever it is taken for, nothing panics and no memory is asked for that the file has not.
            let _ = open(&changed);
        }
    }
    assert!(open(&small("qwen2", 0)).err().unwrap().fact.contains("qwen2"));
    assert!(open(&small("llama", 13)).err().unwrap().fact.contains("Q5_K"));
    assert!(open(&small("llama", 99)).err().unwrap().fact.contains("type 99"));
    assert!(open(&small("llama", 12)).err().unwrap().fact.contains("rows of 8"));
}

#[test]
fn blocks_hold_what_their_layouts_say() {
    let scale = |x: f32| f16::from_f32(x).to_le_bytes();
    let q: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let mut out = vec![0f32; 32];
    BlockType::Q4_0.decode(&[&scale(0.5)[..], &q].concat(), &mut out);
    assert_eq!((out[0], out[15], out[16], out[31]), (-4.0, 3.5, 3.5, -4.0));
    BlockType::Q4_1.decode(&[&scale(0.5)[..], &scale(-1.0), &q].concat(), &mut out);
    assert_eq!((out[0], out[15], out[16], out[31]), (-1.0, 6.5, 6.5, -1.0));
    let bytes: Vec<u8> = (0..32).map(|i| (i as i8 - 16) as u8).collect();
    BlockType::Q8_0.decode(&[&scale(2.0)[..], &bytes].concat(), &mut out);
    assert_eq!((out[0], out[31]), (-32.0, 30.0));
    let codes = [0, 1, 2, 3, 8, 12, 14, 30].map(|c| BlockType::of_code(c).unwrap());
    assert!(codes.iter().all(|t| t.bytes() > 0) && BlockType::of_code(2) == Ok(BlockType::Q4_0));
    let _ = GgufHead::read(Path::new("/nonexistent")).unwrap_err();
}
