//! Weights that lie in a directory beside those that are read: a model must not be half of one set and half of another,
//! nor the one that its user did not mean.

use crate::convert::meta_llama::rank_of;
use std::path::Path;

/// A line that names the files of weights in `directory` that are not `read`; none where there are none.
pub fn left_unread(directory: &Path, read: &[&str]) -> Option<String> {
    let names = std::fs::read_dir(directory).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let mut others: Vec<String> = names.filter(|n| is_weights(n) && !read.contains(&n.as_str())).collect();
    others.sort();
    let shown = match others.len() {
        0 => return None,
        n @ 1..=3 => others[..n].join(", "),
        n => format!("{}, {} and {} more", others[0], others[1], n - 2),
    };
    let what = match read {
        [one] => one.to_string(),
        [first, .., last] => format!("{first} to {last}"),
        [] => "none".into(),
    };
    Some(format!("{} holds other weights too: {what} is read, {shown} not", directory.display()))
}

/// By the names that transformers, Meta and llama.cpp give them.
fn is_weights(name: &str) -> bool {
    let torch = name.starts_with("pytorch_model") && name.ends_with(".bin");
    torch || name.ends_with(".safetensors") || name.ends_with(".gguf") || rank_of(name).is_some()
}
