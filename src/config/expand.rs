//! `~` and `$NAME` in the paths of a configuration, as people write them in scripts. A key is a path if its schema says so
//! (`"format": "path"`). What cannot be expanded is a problem of its key: else a directory called `$SCRATCH` would be made.

use super::problem::Problem;
use super::yaml::join;
use serde_json::Value;
use std::env;

/// Expands every path in `value` that is text.
pub fn paths(value: &mut Value, schema: &Value, problems: &mut Vec<Problem>) {
    walk(value, schema, "", &|name| env::var(name).ok(), problems);
}

/// Writes every path in `value` so that [`paths`] gives it back as it is.
pub fn escape(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, v)| escape(v, &schema["properties"][key.as_str()])),
        Value::Array(items) => items.iter_mut().for_each(|v| escape(v, &schema["items"])),
        Value::String(text) if schema["format"] == "path" => {
            *text = text.replace('$', "$$");
            if text.starts_with('~') {
                text.insert_str(0, "./");
            }
        }
        _ => {}
    }
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

fn walk(value: &mut Value, schema: &Value, path: &str, lookup: Lookup, problems: &mut Vec<Problem>) {
    match value {
        Value::Object(map) => map.iter_mut().for_each(|(key, v)| {
            let below = schema["properties"].get(key).unwrap_or(&Value::Null);
            walk(v, below, &join(path, key), lookup, problems)
        }),
        Value::Array(items) => (items.iter_mut().enumerate())
            .for_each(|(i, v)| walk(v, &schema["items"], &join(path, &i.to_string()), lookup, problems)),
        Value::String(text) if schema["format"] == "path" => match expand(text, lookup) {
            Ok(expanded) => *text = expanded,
            Err((fact, hint)) => problems.push(Problem::new([path], format!("\"{text}\": {fact}")).hint(hint)),
        },
        _ => {}
    }
}

/// `~` at the beginning, `$NAME` and `${NAME}` anywhere; `$$` is a dollar sign.
fn expand(text: &str, lookup: Lookup) -> Result<String, (String, &'static str)> {
    let variable = |name: &str, shown: &str| match lookup(name) {
        Some(value) if !value.is_empty() => Ok(value),
        Some(_) => Err((format!("{shown} is empty"), "set the variable, or write the path out")),
        None => Err((format!("{shown} is not set"), "set the variable, or write the path out; $$ is a dollar sign")),
    };
    let mut out = String::new();
    let mut rest = text;
    if let Some(home) = text.strip_prefix('~') {
        let user = home.split('/').next().unwrap_or_default();
        if !user.is_empty() {
            return Err((
                format!("~{user} is not expanded"),
                "only ~ and ~/ are; write the path out, or put ./ before it",
            ));
        }
        out = variable("HOME", "~, the variable HOME,")?;
        rest = home;
    }
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        let word = |s: &str| s.len() - s.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_').len();
        rest = match after.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                &after[1..]
            }
            Some(b'{') => {
                let name = after[1..].split_once('}').filter(|(name, _)| !name.is_empty() && word(name) == name.len());
                let (name, behind) =
                    name.ok_or(("`${` without a name and `}`".to_string(), "write ${NAME}; $$ is a dollar sign"))?;
                out += &variable(name, &format!("${{{name}}}"))?;
                behind
            }
            Some(c) if c.is_ascii_alphabetic() || *c == b'_' => {
                let (name, behind) = after.split_at(word(after));
                out += &variable(name, &format!("${name}"))?;
                behind
            }
            _ => return Err(("a `$` without a name".into(), "write $NAME or ${NAME}; $$ is a dollar sign")),
        };
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema;
    use serde_json::json;

    fn of(text: &str) -> Result<String, String> {
        let lookup = |name: &str| match name {
            "HOME" => Some("/home/me".into()),
            "SCRATCH" => Some("/scratch/me".into()),
            "N_1" => Some("a$HOME".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(text, &lookup).map_err(|(fact, _)| fact)
    }

    #[test]
    fn as_a_shell_would_or_not_at_all() {
        for (text, want) in [
            ("runs/a", "runs/a"),
            ("~", "/home/me"),
            ("~/runs", "/home/me/runs"),
            ("a/~/b~", "a/~/b~"),
            ("$SCRATCH/run", "/scratch/me/run"),
            ("${SCRATCH}x/$N_1-${N_1}", "/scratch/mex/a$HOME-a$HOME"),
            ("a$$b", "a$b"),
            ("file://$SCRATCH", "file:///scratch/me"),
            ("ünï/$SCRATCH/ö", "ünï//scratch/me/ö"),
        ] {
            assert_eq!(of(text), Ok(want.into()), "{text}");
        }
        for (text, words) in [
            ("$WORK/x", "$WORK is not set"),
            ("${WORK}", "${WORK} is not set"),
            ("$EMPTY/x", "$EMPTY is empty"),
            ("~you/x", "~you is not expanded"),
            ("${SCRATCH", "without a name"),
            ("${}", "without a name"),
            ("${A:-b}", "without a name"),
            ("a$", "a `$` without a name"),
            ("$1", "a `$` without a name"),
        ] {
            assert!(of(text).is_err_and(|e| e.contains(words)), "{text}: {:?}", of(text));
        }
    }

    #[test]
    fn what_was_expanded_is_written_so_that_it_reads_the_same() {
        let mut value = json!({"run_dir": "/a$b/$$", "name": "a$b", "data": {"train": [{"path": "/c$d"}]}});
        let mut problems = Vec::new();
        escape(&mut value, schema::schema());
        assert_eq!((&value["run_dir"], &value["name"]), (&json!("/a$$b/$$$$"), &json!("a$b")));
        super::paths(&mut value, schema::schema(), &mut problems);
        assert_eq!((&value["run_dir"], &value["data"]["train"][0]["path"]), (&json!("/a$b/$$"), &json!("/c$d")));
        assert!(problems.is_empty());
    }

    #[test]
    fn every_path_is_expanded_and_nothing_else() {
        let paths: Vec<String> =
            schema::leaves().into_iter().filter(|(_, s)| s["format"] == "path").map(|(path, _)| path).collect();
        assert_eq!(
            paths,
            [
                "run_dir",
                "model.config",
                "model.weights",
                "lora.weights",
                "dpo.reference_dir",
                "data.tokenizer",
                "data.train[].path",
                "data.validation[].path",
                "validation.tasks[].path",
                "checkpoint.snapshot_dir",
                "checkpoint.store.url",
                "launch.ledger",
                "launch.rescue_dir",
                "alerts.webhook_file"
            ]
        );
        let mut value =
            json!({"run_dir": "$NO_SUCH_1/x", "name": "$NO_SUCH_2", "data": {"train": [{"path": "~nobody/c"}]}});
        let mut problems = Vec::new();
        super::paths(&mut value, schema::schema(), &mut problems);
        let keys: Vec<&str> = problems.iter().map(|p| p.keys[0].as_str()).collect();
        assert_eq!(keys, ["run_dir", "data.train.0.path"]);
        assert!(problems[0].to_string().contains("\"$NO_SUCH_1/x\": $NO_SUCH_1 is not set"), "{}", problems[0]);
    }
}
