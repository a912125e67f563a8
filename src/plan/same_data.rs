//! Whether a run that goes on from a checkpoint draws the samples that it would have drawn: the same corpora, in the same
//! order, with the same shares.

use crate::checkpoint::Meta;
use crate::config::{Config, OnChange};
use crate::data::identity::{CorpusNote, DataNote};
use crate::data::mixture::same_turns;
use crate::error::{Error, Exit, Result};
use serde_json::Value;

/// What is not as it was, a line each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DataChanges {
    /// Other samples come: `data.on_change` accepted it.
    pub accepted: Vec<String>,
    /// What makes no difference to training, or could not be compared.
    pub notes: Vec<String>,
}

/// Compares the corpora of this start, `now`, with those of the run that wrote the checkpoint.
///
/// # Errors
/// [`Exit::Config`] with every difference that makes other samples come, unless `data.on_change` is `accept`.
pub fn check_same_data(config: &Config, now: &DataNote, checkpoint: &Meta) -> Result<DataChanges> {
    // An import has no run behind it.
    if !checkpoint.config.is_object() {
        return Ok(DataChanges::default());
    }
    let mut notes = Vec::new();
    let older;
    let then = match &checkpoint.data {
        Some(then) => then,
        None => {
            notes.push(
                "the checkpoint is of an older herd: whether the content of data.train is what it was could not be compared"
                    .into(),
            );
            older = of_config(&checkpoint.config, now);
            &older
        }
    };
    let changed = differences(&now.train, &then.train, &mut notes);
    if !differences(&now.validation, &then.validation, &mut Vec::new()).is_empty() {
        notes.push("data.validation is not what it was: validation losses before and after cannot be compared".into());
    }
    if changed.is_empty() || config.data.on_change == OnChange::Accept {
        return Ok(DataChanges { accepted: changed, notes });
    }
    let place = format!(
        "{}: cannot go on from its checkpoint of step {} with other data",
        config.run_dir.display(),
        checkpoint.step
    );
    Err(Error::several(Exit::Config, place, changed).hint(format!(
        "put the old corpora back, start afresh with another run_dir, or set data.on_change: accept to go on with sample {} of \
         the new ones",
        checkpoint.next_sample
    )))
}

/// What an older herd's configuration says: how many corpora there were, and their weights, 1 where none was given. The rest
/// is taken to be as it is `now`.
fn of_config(config: &Value, now: &DataNote) -> DataNote {
    let listed = config["data"]["train"].as_array().map(Vec::as_slice).unwrap_or_default();
    let note = |(i, corpus): (usize, &Value)| {
        let unknown = CorpusNote {
            path: corpus["path"].as_str().unwrap_or_default().into(),
            weight: 1.0,
            tokens: 0,
            documents: 0,
            content: String::new(),
        };
        let same = now.train.get(i).cloned().unwrap_or(unknown);
        CorpusNote { weight: corpus["weight"].as_f64().unwrap_or(1.0), ..same }
    };
    DataNote { train: listed.iter().enumerate().map(note).collect(), validation: now.validation.clone() }
}

/// Differences that make other samples come; into `notes`, those that do not.
fn differences(now: &[CorpusNote], then: &[CorpusNote], notes: &mut Vec<String>) -> Vec<String> {
    let names = |all: &[CorpusNote]| all.iter().map(|c| c.path.as_str()).collect::<Vec<_>>().join(", ");
    if now.len() != then.len() {
        return vec![format!(
            "data.train: has {} corpora ({}), but the checkpoint's run had {} ({})",
            now.len(),
            names(now),
            then.len(),
            names(then)
        )];
    }
    let pairs = || now.iter().zip(then).enumerate();
    if pairs().any(|(_, (n, t))| !n.same_content(t)) && reordered(now, then) {
        let fact = "the corpora are those of the checkpoint's run in another order";
        return vec![format!("data.train: {fact}: {}; it had {}", names(now), names(then))];
    }
    let mut out = Vec::new();
    for (i, (n, t)) in pairs() {
        match (n.same_content(t), n.path == t.path) {
            (true, true) => {}
            (true, false) => notes
                .push(format!("data.train.{i}.path: {} holds what {} held for the checkpoint's run", n.path, t.path)),
            (false, true) => out.push(format!(
                "data.train.{i}.path: {} was made anew: {}, but for the checkpoint's run it had {}",
                n.path,
                size(n),
                if size(n) == size(t) { "others".into() } else { size(t) }
            )),
            (false, false) => out.push(format!(
                "data.train.{i}.path: is {} ({}), but the checkpoint's run had {} ({})",
                n.path,
                size(n),
                t.path,
                size(t)
            )),
        }
    }
    let weights = |all: &[CorpusNote]| all.iter().map(|c| c.weight).collect::<Vec<f64>>();
    // Without weights the shares follow the content, which was spoken of.
    if out.is_empty() && !same_turns(&weights(now), &weights(then)) {
        let shown = |c: &CorpusNote, all: &[CorpusNote]| {
            format!("{} ({:.2}% of draws)", c.weight, 100.0 * c.weight / weights(all).iter().sum::<f64>())
        };
        let other = pairs().filter(|(_, (n, t))| n.weight != t.weight);
        out.extend(other.map(|(i, (n, t))| {
            let (n, t) = (shown(n, now), shown(t, then));
            format!("data.train.{i}.weight: is {n}, but the checkpoint's run had {t}")
        }));
    }
    out
}

fn size(c: &CorpusNote) -> String {
    format!("{} tokens in {} documents", c.tokens, c.documents)
}

/// Whether the same corpora with the same weights stand at other places.
fn reordered(now: &[CorpusNote], then: &[CorpusNote]) -> bool {
    let mut left: Vec<&CorpusNote> = then.iter().collect();
    now.iter().all(|n| {
        let at = left.iter().position(|t| n.content == t.content && n.weight == t.weight);
        at.map(|at| left.swap_remove(at)).is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    fn corpus(path: &str, weight: f64, tokens: u64, content: &str) -> CorpusNote {
        CorpusNote { path: path.into(), weight, tokens, documents: 3, content: content.into() }
    }

    fn had() -> Vec<CorpusNote> {
        vec![corpus("a", 1.0, 100, "xxh3:1"), corpus("b", 1.0, 200, "xxh3:2")]
    }

    fn check(now: Vec<CorpusNote>, then: Option<Vec<CorpusNote>>, sets: &[&str]) -> Result<DataChanges> {
        let plan = plan(sets);
        let mut meta = Meta::new(plan.model.clone());
        meta.config = serde_json::to_value(&plan.config).unwrap();
        (meta.step, meta.next_sample) = (10, 120);
        meta.data = then.map(|train| DataNote { train, validation: vec![] });
        check_same_data(&plan.config, &DataNote { train: now, validation: vec![] }, &meta)
    }

    #[test]
    fn other_samples_are_refused_by_name_unless_they_are_accepted() {
        let [a, b] = [had().remove(0), had().remove(1)];
        let cases: Vec<(Vec<CorpusNote>, &str)> = vec![
            (
                vec![corpus("a", 9.0, 100, "xxh3:1"), b.clone()],
                "data.train.0.weight: is 9 (90.00% of draws), but the checkpoint's run had 1 (50.00% of draws)",
            ),
            (
                vec![a.clone(), a.clone()],
                "data.train.1.path: is a (100 tokens in 3 documents), but the checkpoint's run had b (200",
            ),
            (vec![a.clone()], "has 1 corpora (a), but the checkpoint's run had 2 (a, b)"),
            (vec![b.clone(), a.clone()], "in another order: b, a; it had a, b"),
            (vec![corpus("a", 1.0, 100, "xxh3:7"), b.clone()], "data.train.0.path: a was made anew"),
            (vec![corpus("a", 1.0, 101, "sampled:7"), b.clone()], "data.train.0.path: a was made anew: 101 tokens"),
        ];
        for (now, words) in cases {
            let e = check(now.clone(), Some(had()), &[]).unwrap_err();
            let text = e.to_string();
            assert!(e.exit == Exit::Config && text.contains(words), "{words}: {text}");
            assert!(
                text.contains("step 10") && text.contains("on_change: accept") && text.contains("sample 120"),
                "{text}"
            );
            let found = check(now, Some(had()), &["data.on_change=accept"]).unwrap();
            assert!(found.accepted[0].contains(words) && found.notes.is_empty(), "{found:?}");
        }
    }

    #[test]
    fn what_makes_no_difference_goes_on_with_a_line() {
        assert_eq!(check(had(), Some(had()), &[]).unwrap(), DataChanges::default());
        // Weights are shares.
        let scaled = had().into_iter().map(|c| CorpusNote { weight: 0.5, ..c }).collect();
        assert_eq!(check(scaled, Some(had()), &[]).unwrap(), DataChanges::default());
        let moved = vec![corpus("elsewhere/a", 1.0, 100, "xxh3:1"), had().remove(1)];
        let found = check(moved, Some(had()), &[]).unwrap();
        assert!(found.accepted.is_empty() && found.notes[0].contains("elsewhere/a holds what a held"), "{found:?}");
        // A sidecar that has come or gone, and nothing else to tell two corpora of one size apart.
        let sampled = vec![corpus("a", 1.0, 100, "sampled:9"), had().remove(1)];
        assert_eq!(check(sampled, Some(had()), &[]).unwrap(), DataChanges::default());
        // The plan of the tests lists one corpus.
        let old = check(vec![had().remove(0)], None, &[]).unwrap();
        assert!(old.accepted.is_empty() && old.notes[0].contains("could not be compared"), "{old:?}");
        let e = check(had(), None, &[]).unwrap_err();
        assert!(e.to_string().contains("has 2 corpora (a, b), but the checkpoint's run had 1"), "{e}");
    }
}
