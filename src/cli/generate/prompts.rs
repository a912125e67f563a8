//! What a model is given to continue: texts, or conversations in the form of its own chat template.

use crate::data::chat::ChatTemplate;
use crate::data::tokenizer::{Bos, Tokenizer};
use crate::error::{Error, Exit, Result};
use crate::text::unmarked;
use serde_json::{json, Value};
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct PromptArgs {
    /// Text to continue, or with --chat the user's turn; may be given several times. `-` reads standard input to its end.
    #[arg(long, short, value_name = "TEXT", required_unless_present = "messages")]
    prompt: Vec<String>,
    /// Prompts are the user's turns of conversations, in the form of the model's own chat template; the answer is printed.
    #[arg(long, conflicts_with_all = ["bos", "no_bos", "special_tokens"])]
    chat: bool,
    /// The system's message of each conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// JSON file of the messages that a conversation begins with: objects with `role` and `content`, in a list or under
    /// `messages`. A prompt is the turn after them. `-` reads standard input.
    #[arg(long, value_name = "FILE", requires = "chat")]
    messages: Option<PathBuf>,
    /// Take the names of special tokens in prompts (<|eot_id|>) for the tokens. Default: for their characters.
    #[arg(long)]
    special_tokens: bool,
    /// Put the beginning-of-text token before each prompt, whatever the tokenizer's own rule is.
    #[arg(long, conflicts_with = "no_bos")]
    bos: bool,
    /// Put nothing before a prompt. Default: what the tokenizer itself puts before a text (its post-processor).
    #[arg(long)]
    no_bos: bool,
}

/// One text to continue.
pub struct Prompt {
    pub ids: Vec<u32>,
    /// What is printed before the continuation.
    pub shown: String,
}

impl PromptArgs {
    /// The prompts, and a line that says what was made of them.
    ///
    /// Errors ([`Exit::Data`]): input that cannot be read, messages that are none, a template that is missing or refuses them.
    pub fn read(&self, tokenizer: &Tokenizer) -> Result<(Vec<Prompt>, String)> {
        let texts = self.prompt.iter().map(|p| text(p)).collect::<Result<Vec<String>>>()?;
        let (prompts, says) = match self.chat {
            true => self.conversations(texts, tokenizer)?,
            false => self.texts(texts, tokenizer)?,
        };
        Ok((prompts, format!("tokenizer {}: {says}", tokenizer.place())))
    }

    fn texts(&self, texts: Vec<String>, tokenizer: &Tokenizer) -> Result<(Vec<Prompt>, String)> {
        let front = tokenizer.front(Bos::from_flags(self.bos, self.no_bos))?;
        let mut says = front.says;
        let mut prompt = |shown: String| {
            let ids = match self.special_tokens {
                true => tokenizer.encode_special(&shown)?,
                false => tokenizer.encode(&shown)?,
            };
            // Who writes the tokens out may have written this one too.
            let twice = self.special_tokens && !front.ids.is_empty() && ids.starts_with(&front.ids);
            if twice {
                says += "; not once more where a prompt begins with it";
            }
            let before = if twice { &[][..] } else { &front.ids };
            Ok(Prompt { ids: [before, &ids].concat(), shown })
        };
        let prompts = texts.into_iter().map(&mut prompt).collect::<Result<Vec<Prompt>>>()?;
        Ok((prompts, says))
    }

    fn conversations(&self, turns: Vec<String>, tokenizer: &Tokenizer) -> Result<(Vec<Prompt>, String)> {
        let chat = ChatTemplate::of(tokenizer)?;
        let begin = self.beginning()?;
        let all: Vec<Vec<Value>> = match turns.is_empty() {
            true => vec![begin],
            false => turns.iter().map(|t| [&begin[..], &[message("user", t)]].concat()).collect(),
        };
        let mut prompts = Vec::new();
        for messages in &all {
            messages.iter().try_for_each(|m| warn_of_tokens(m, tokenizer))?;
            prompts.push(Prompt { ids: tokenizer.encode_special(&chat.render(messages)?)?, shown: String::new() });
        }
        Ok((prompts, format!("chat template of {}, nothing in front of what it writes", chat.file())))
    }

    /// What each conversation begins with.
    fn beginning(&self) -> Result<Vec<Value>> {
        let given = match &self.messages {
            Some(path) => messages(path)?,
            None => Vec::new(),
        };
        match &self.system {
            Some(_) if given.first().is_some_and(|m| m["role"] == "system") => {
                Err(Error::new(Exit::Usage, "the system's message is given twice, by --system and by --messages")
                    .hint("leave one of the two out"))
            }
            Some(text) => Ok([vec![message("system", text)], given].concat()),
            None => Ok(given),
        }
    }
}

fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// The messages in a JSON file.
fn messages(path: &Path) -> Result<Vec<Value>> {
    let raw = match path.to_str() {
        Some("-") => standard_input()?,
        _ => std::fs::read_to_string(path).map_err(|e| Error::io(path, "read the messages in", &e, Exit::Data))?,
    };
    let wrong = |what: String| {
        Error::new(Exit::Data, format!("{}: {what}", path.display()))
            .hint("expected a list of objects with role and content, as [{\"role\": \"user\", \"content\": \"Hello\"}]")
    };
    let mut value: Value =
        serde_json::from_slice(unmarked(raw.as_bytes())).map_err(|e| wrong(format!("not JSON: {e}")))?;
    let list = if value.is_object() { value["messages"].take() } else { value };
    let Value::Array(list) = list else { return Err(wrong("no list of messages".into())) };
    match list.iter().position(|m| !m["role"].is_string()) {
        _ if list.is_empty() => Err(wrong("the list of messages is empty".into())),
        Some(i) => Err(wrong(format!("message {} has no role", i + 1))),
        None => Ok(list),
    }
}

/// A template's text is read with its special tokens, and so is what stands in the messages.
fn warn_of_tokens(message: &Value, tokenizer: &Tokenizer) -> Result<()> {
    if let Some(text) = message["content"].as_str() {
        if tokenizer.encode(text)? != tokenizer.encode_special(text)? {
            tracing::warn!(
                "a message of the {} has the name of a special token in it, taken for the token",
                message["role"]
            );
        }
    }
    Ok(())
}

/// The text itself, or standard input for `-`.
fn text(prompt: &str) -> Result<String> {
    match prompt {
        "-" => {
            let text = standard_input()?;
            // The newline that ends a file is not part of the sentence to go on with.
            Ok(text.strip_suffix('\n').map(String::from).unwrap_or(text))
        }
        _ => Ok(prompt.to_string()),
    }
}

fn standard_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| {
        Error::new(Exit::Data, format!("cannot read the prompt from standard input: {e}")).hint("it must be UTF-8 text")
    })?;
    Ok(text)
}
