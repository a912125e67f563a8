//! Jinja as transformers renders chat templates with it (its `chat_template_utils.py`): blocks trimmed, Python's string
//! methods, `raise_exception`, `strftime_now`, `tojson` without HTML's escapes, and `{% generation %}`.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, ErrorKind};

/// Stand around what a template calls generated. Unicode promises that no text has these two.
pub const OPEN: char = '\u{fdd0}';
pub const CLOSE: char = '\u{fdd1}';
/// The filter that puts them there.
const FILTER: &str = "herd_generated";

/// What templates expect to be there.
pub(super) fn environment() -> Environment<'static> {
    let mut jinja = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    jinja.set_syntax(syntax.expect("Jinja's own delimiters do not clash"));
    jinja.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.add_filter("tojson", tojson);
    // As in Jinja2, where nothing can be gone through but is not iterable.
    jinja.add_test("iterable", |value: Jinja| !value.is_none() && value.try_iter().is_ok());
    jinja.add_filter(FILTER, |text: String| format!("{OPEN}{text}{CLOSE}"));
    jinja.add_function("raise_exception", |why: String| -> std::result::Result<Jinja, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
    });
    jinja.add_function("strftime_now", |format: String| jiff::Zoned::now().strftime(&format).to_string());
    jinja
}

/// `{% generation %}` marks what a trainer learns from, and only transformers knows it. With `marks` it becomes a filter that
/// puts [`OPEN`] and [`CLOSE`] around what is inside, else a block that changes no text. Returns whether there is one.
pub(super) fn generation_blocks(source: &str, marks: bool) -> (String, bool) {
    let (begin, end) = match marks {
        true => (format!("filter {FILTER}"), "endfilter"),
        false => ("if true".into(), "endif"),
    };
    let (finish, mut any) = (end, false);
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at..].find("%}").map(|n| at + n) else { break };
        let tag = &rest[at + 2..end];
        let word = tag.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        let plain = match word {
            "generation" => {
                any = true;
                tag.replacen(word, &begin, 1)
            }
            "endgeneration" => tag.replacen(word, finish, 1),
            _ => tag.to_string(),
        };
        out += &format!("{}{{%{plain}%}}", &rest[..at]);
        rest = &rest[end + 2..];
    }
    (out + rest, any)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: Jinja, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _ = (options.get::<Option<bool>>("ensure_ascii")?, options.get::<Option<bool>>("sort_keys")?);
    options.assert_all_used()?;
    let mut out = Vec::new();
    let done = match indent {
        Some(n) => {
            let spaces = " ".repeat(n);
            let form = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, form))
        }
        None => serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut out, Spaced)),
    };
    done.map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// A space behind each comma and colon, as Python writes JSON.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            w.write_all(b", ")
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            w.write_all(b", ")
        }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}
