//! The kinds of events as Markdown tables: docs/events.md holds them, and a test compares.

use super::kinds::{RunEvent, GROUPS};
use schemars::SchemaGenerator;
use serde_json::Value;

/// A table for each group of kinds.
pub fn markdown() -> String {
    let schema = SchemaGenerator::default().into_root_schema_for::<RunEvent>().to_value();
    let mut kinds = schema["oneOf"].as_array().into_iter().flatten();
    let table = |(group, count): &(&str, usize)| {
        let rows: String = kinds.by_ref().take(*count).map(row).collect();
        format!("### {group}\n\n| kind | fields | when |\n| --- | --- | --- |\n{rows}")
    };
    GROUPS.iter().map(table).collect::<Vec<_>>().join("\n")
}

fn row(kind: &Value) -> String {
    let name = kind["properties"]["kind"]["const"].as_str().unwrap_or_default();
    let field = |(name, about): (&String, &Value)| {
        let about = text(about);
        let mut letters = about.trim_end_matches('.').chars();
        match letters.next() {
            Some(first) => format!("`{name}` ({}{})", first.to_lowercase(), letters.as_str()),
            None => format!("`{name}`"),
        }
    };
    let fields = kind["properties"].as_object().into_iter().flatten().filter(|(name, _)| *name != "kind");
    let fields: Vec<String> = fields.map(field).collect();
    let fields = if fields.is_empty() { "–".into() } else { fields.join(", ") };
    format!("| `{name}` | {fields} | {} |\n", text(kind))
}

/// A description in one line.
fn text(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
