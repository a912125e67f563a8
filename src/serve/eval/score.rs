//! From what was heard of a task's rows to its measures.

use super::task::{EvalTask, TaskKind, TaskRow};
use serde::Serialize;
use serde_json::{json, Map, Value};

/// What was heard of one text.
#[derive(Clone, Debug)]
pub struct HeardText {
    /// Natural log, summed over the scored tokens in order.
    pub logprob: f64,
    /// Tokens that were scored.
    pub tokens: usize,
    /// Each scored token was the likeliest one.
    pub greedy: bool,
    /// What was made.
    pub text: String,
    /// Characters and bytes of what was scored.
    pub size: (usize, usize),
}

impl Default for HeardText {
    fn default() -> HeardText {
        HeardText { logprob: 0.0, tokens: 0, greedy: true, text: String::new(), size: (0, 0) }
    }
}

/// A number of a task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// A share of rows from 0 to 1, a perplexity, or bits per byte.
    pub value: f64,
    /// Standard error of the mean over rows; none for ratios of sums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
}

/// A task's rows as they came out.
#[derive(Clone, Debug)]
pub struct TaskScore {
    /// The task's name: its file, without folders and ending.
    pub name: String,
    /// Which kind all its rows are of.
    pub kind: TaskKind,
    /// Line numbers of the rows, in the file's order.
    pub lines: Vec<usize>,
    /// One object a row: what was heard, and whether it is right.
    pub rows: Vec<Value>,
    /// Sums over rows: log-probability, tokens, bytes.
    sums: (f64, usize, usize),
}

impl TaskScore {
    /// A score of `task` to which no row is added yet.
    pub fn new(task: &EvalTask) -> TaskScore {
        TaskScore {
            name: task.name.clone(),
            kind: task.kind,
            lines: task.rows.iter().map(|(line, _)| *line).collect(),
            rows: Vec::new(),
            sums: (0.0, 0, 0),
        }
    }

    /// The next row.
    pub fn add(&mut self, row: &TaskRow, heard: &[HeardText]) {
        let line = match row {
            TaskRow::Choice { right, .. } => {
                let sums: Vec<f64> = heard.iter().map(|h| h.logprob).collect();
                let each: Vec<f64> = heard.iter().map(|h| h.logprob / h.size.0.max(1) as f64).collect();
                let is = |all: &[f64]| likeliest(all) == Some(*right);
                json!({ "acc": is(&sums), "acc_norm": is(&each), "right": right, "logprobs": sums })
            }
            TaskRow::Generate { answers, .. } => {
                let text = heard.first().map_or("", |h| h.text.trim());
                let exact = answers.iter().any(|a| a.trim() == text);
                let contains = answers.iter().any(|a| text.contains(a.trim()));
                json!({ "exact_match": exact, "contains": contains, "text": text })
            }
            TaskRow::Continuation { .. } | TaskRow::Text { .. } => {
                let (logprob, tokens) = heard.iter().fold((0.0, 0), |(l, n), h| (l + h.logprob, n + h.tokens));
                let bytes: usize = heard.iter().map(|h| h.size.1).sum();
                self.sums = (self.sums.0 + logprob, self.sums.1 + tokens, self.sums.2 + bytes);
                let greedy = heard.iter().all(|h| h.greedy);
                match self.kind {
                    TaskKind::Text => json!({ "logprob": logprob, "tokens": tokens }),
                    _ => json!({ "acc": greedy, "logprob": logprob, "tokens": tokens }),
                }
            }
        };
        self.rows.push(line);
    }

    /// The task's measures, by name: shares of rows, `perplexity` (e to the mean over tokens; of continuations over rows, as the
    /// harness has it) and `bits_per_byte`.
    pub fn measures(&self) -> Vec<(&'static str, Measure)> {
        let share = |key: &'static str| (key, mean(self.rows.iter().map(|r| f64::from(r[key] == true))));
        let plain = |value: f64| Measure { value, stderr: None };
        let (logprob, tokens, bytes) = self.sums;
        match self.kind {
            TaskKind::Choice => vec![share("acc"), share("acc_norm")],
            TaskKind::Generate => vec![share("exact_match"), share("contains")],
            TaskKind::Continuation => {
                vec![share("acc"), ("perplexity", plain((-logprob / self.rows.len().max(1) as f64).exp()))]
            }
            TaskKind::Text => vec![
                ("perplexity", plain((-logprob / tokens.max(1) as f64).exp())),
                ("bits_per_byte", plain(-logprob / std::f64::consts::LN_2 / bytes.max(1) as f64)),
            ],
        }
    }

    /// Name, kind, number of rows and measures, as the file of results has them.
    pub fn json(&self) -> Value {
        let measures: Map<String, Value> = self.measures().into_iter().map(|(n, m)| (n.into(), json!(m))).collect();
        json!({ "task": self.name, "kind": self.kind.name(), "rows": self.rows.len(), "measures": measures })
    }
}

/// The first of the largest.
fn likeliest(all: &[f64]) -> Option<usize> {
    (0..all.len()).reduce(|best, i| if all[i] > all[best] { i } else { best })
}

/// The mean, and the sample's standard deviation over the root of their number.
fn mean(values: impl Iterator<Item = f64> + Clone) -> Measure {
    let n = values.clone().count().max(1) as f64;
    let value = values.clone().sum::<f64>() / n;
    let stderr = match n > 1.0 {
        true => Some((values.map(|x| (x - value).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()),
        false => None,
    };
    Measure { value, stderr }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(logprob: f64, chars: usize, text: &str) -> HeardText {
        HeardText { logprob, tokens: 2, text: text.into(), size: (chars, chars), ..HeardText::default() }
    }

    fn score(kind: TaskKind, rows: &[(TaskRow, Vec<HeardText>)]) -> TaskScore {
        let mut score = TaskScore { name: "t".into(), kind, lines: vec![], rows: vec![], sums: (0.0, 0, 0) };
        rows.iter().for_each(|(row, heard)| score.add(row, heard));
        score
    }

    #[test]
    fn the_likeliest_choice_counts_whole_and_by_character() {
        let row = |right| TaskRow::Choice { context: String::new(), choices: vec![], right };
        let both = vec![heard(-4.0, 2, ""), heard(-5.0, 10, "")];
        let s = score(TaskKind::Choice, &[(row(0), both.clone()), (row(1), both)]);
        let want = Measure { value: 0.5, stderr: Some(0.5) };
        assert_eq!(s.measures(), [("acc", want), ("acc_norm", want)]);
        assert_eq!(s.rows[0]["acc"], true);
        assert_eq!(s.rows[1]["acc_norm"], true);
    }

    #[test]
    fn an_answer_is_right_whole_or_within() {
        let row = TaskRow::Generate { prompt: String::new(), answers: vec!["four".into(), "4".into()] };
        let s = score(
            TaskKind::Generate,
            &[(row.clone(), vec![heard(0.0, 0, " 4\n")]), (row, vec![heard(0.0, 0, "it is 4")])],
        );
        let values: Vec<f64> = s.measures().iter().map(|m| m.1.value).collect();
        assert_eq!(values, [0.5, 1.0]);
    }

    #[test]
    fn perplexity_is_over_tokens_of_texts_and_rows_of_continuations() {
        let text = score(
            TaskKind::Text,
            &[(TaskRow::Text { text: String::new() }, vec![heard(-2.0, 4, ""), heard(-2.0, 0, "")])],
        );
        let m = text.measures();
        assert!(
            (m[0].1.value - 1f64.exp()).abs() < 1e-12 && (m[1].1.value - 1.0 / std::f64::consts::LN_2).abs() < 1e-12
        );
        let row = TaskRow::Continuation { context: String::new(), continuation: String::new() };
        let next = score(TaskKind::Continuation, &[(row, vec![heard(-2.0, 4, "")])]);
        assert!((next.measures()[1].1.value - 2f64.exp()).abs() < 1e-12);
        assert_eq!(next.measures()[0].1, Measure { value: 1.0, stderr: None });
    }
}
