//! The measure of all hosts: the median of numbers, the majority of values.

use std::collections::BTreeMap;

/// Of at least one number.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.into_iter().collect();
    v.sort_by(f64::total_cmp);
    match v.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => (v[n / 2 - 1] + v[n / 2]) / 2.0,
        n => v[n / 2],
    }
}

/// How values lie over nodes.
#[derive(Clone, Debug, PartialEq)]
pub enum Agreement<T> {
    Same(T),
    /// More nodes have this than any other value; the others have theirs.
    Most {
        usual: T,
        others: Vec<(String, T)>,
    },
    /// No value has more nodes than any other.
    Split(Vec<(T, Vec<String>)>),
}

/// Of at least one node.
pub fn agreement<T: Ord + Clone>(values: &[(String, T)]) -> Agreement<T> {
    let mut groups: BTreeMap<T, Vec<String>> = BTreeMap::new();
    for (node, value) in values {
        groups.entry(value.clone()).or_default().push(node.clone());
    }
    let most = groups.values().map(Vec::len).max().unwrap_or(0);
    let mut largest = groups.iter().filter(|(_, nodes)| nodes.len() == most);
    match (largest.next(), largest.next()) {
        (Some((usual, _)), None) if groups.len() == 1 => Agreement::Same(usual.clone()),
        (Some((usual, _)), None) => Agreement::Most {
            usual: usual.clone(),
            others: values.iter().filter(|(_, v)| v != usual).cloned().collect(),
        },
        _ => Agreement::Split(groups.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0]), 2.5);
        assert!(median([]).is_nan());
    }

    #[test]
    fn majorities() {
        let of =
            |values: &[(&str, u8)]| agreement(&values.iter().map(|(n, v)| (n.to_string(), *v)).collect::<Vec<_>>());
        assert_eq!(of(&[("a", 1), ("b", 1)]), Agreement::Same(1));
        let others = vec![("b".to_string(), 2)];
        assert_eq!(of(&[("a", 1), ("b", 2), ("c", 1)]), Agreement::Most { usual: 1, others });
        assert!(matches!(of(&[("a", 1), ("b", 2)]), Agreement::Split(groups) if groups.len() == 2));
    }
}
