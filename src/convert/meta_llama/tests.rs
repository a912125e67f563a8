//! Pickles that are no state dict, row order, and how slices are recognised. Whole files come from torch: `tests/it/meta.rs`.

use crate::convert::meta_llama::*;

fn refused(pickle: &[u8], word: &str) {
    let e = pickle::tensors(pickle).expect_err(word);
    assert!(e.contains(word), "{e} does not say {word:?}");
}

#[test]
fn nothing_but_tensors_comes_out_of_a_pickle() {
    refused(b"cos\nsystem\n(X\x02\x00\x00\x00ls\x85R.", "os.system");
    refused(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval");
    refused(b"ctorch\nload\n.", "torch.load");
    refused(b"(i__main__\nX\n.", "opcode 0x69");
    refused(b"", "cut off");
    refused(b"X\xff\xff\xff\xffshort", "cut off");
    refused(b"R.", "takes more");
    refused(b"h\x01.", "never remembered");
    refused(b"u.", "no mark");
    refused(b"]K\x01s.", "no dictionary");
    refused(b"K\x01.", "no dictionary of tensors");
    refused(b"]K\x01K\x02s.", "no dictionary");
    assert_eq!(pickle::tensors(b"}.").unwrap(), []);
    assert_eq!(pickle::tensors(b"}X\x01\x00\x00\x00aK\x05s.").unwrap(), []);
}

/// A pickle of one tensor of `len` stored fp32 numbers.
fn one(len: u8, offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let text = |s: &str| [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat();
    let tuple = |xs: &[u8]| [b"(".to_vec(), xs.iter().flat_map(|&x| [b'K', x]).collect(), b"t".to_vec()].concat();
    let storage = [
        b"(".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("7"),
        text("cpu"),
        vec![b'K', len],
        b"tQ".to_vec(),
    ]
    .concat();
    let arguments =
        [b"(".to_vec(), storage, vec![b'K', offset], tuple(shape), tuple(strides), b"\x89Nt".to_vec()].concat();
    [b"}".to_vec(), text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(), arguments, b"Rs.".to_vec()].concat()
}

#[test]
fn tensors_stay_within_their_storage() {
    let (name, t) = pickle::tensors(&one(12, 2, &[2, 5], &[5, 1])).unwrap().remove(0);
    assert_eq!((name.as_str(), &*t.storage.key, t.storage.len), ("w", "7", 12));
    assert_eq!((t.offset, t.shape, t.strides), (2, vec![2, 5], vec![5, 1]));
    refused(&one(12, 3, &[2, 5], &[5, 1]), "passes its storage of 12");
    refused(&one(12, 0, &[2, 5], &[8, 1]), "passes its storage");
    refused(&one(12, 0, &[2], &[5, 1]), "strides");
    assert!(pickle::tensors(&one(0, 0, &[0, 5], &[5, 1])).is_ok());
}

#[test]
fn rows_go_from_neighbours_to_halves() {
    // One head of 6: Meta rotates (0,1), (2,3), (4,5); Hugging Face (0,3), (1,4), (2,5).
    let order: Vec<usize> = (0..12).map(|r| theirs(r, 6)).collect();
    assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
}

#[test]
fn names_are_metas() {
    assert_eq!(meta_name("model.layers.12.post_attention_layernorm.weight"), "layers.12.ffn_norm.weight");
    assert_eq!(meta_name("model.layers.0.self_attn.k_proj.weight"), "layers.0.attention.wk.weight");
    assert_eq!(meta_name("lm_head.weight"), "output.weight");
}

#[test]
fn slices_are_told_by_their_shapes() {
    let held = |shape: &[usize], n: usize| vec![shape.to_vec(); n];
    let places = |shape: &[usize], held: &[Vec<usize>]| {
        slices(shape, held).map(|s| s.into_iter().map(|(file, span)| (file, span.offset)).collect::<Vec<_>>())
    };
    assert_eq!(places(&[8, 6], &held(&[8, 6], 3)), Some(vec![(0, vec![0, 0])]));
    assert_eq!(places(&[8, 6], &held(&[4, 6], 2)), Some(vec![(0, vec![0, 0]), (1, vec![4, 0])]));
    assert_eq!(places(&[8, 6], &held(&[8, 2], 3)), Some(vec![(0, vec![0, 0]), (1, vec![0, 2]), (2, vec![0, 4])]));
    // Four files, two key/value heads: pairs hold the same.
    assert_eq!(places(&[4, 6], &held(&[2, 6], 4)), Some(vec![(0, vec![0, 0]), (2, vec![2, 0])]));
    assert_eq!(places(&[8, 6], &held(&[3, 6], 2)), None);
    assert_eq!(places(&[8, 6], &held(&[4, 3], 2)), None);
    assert_eq!(places(&[8, 6], &[vec![4, 6], vec![3, 6]]), None);
}
