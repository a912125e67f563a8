//! Text to ids and back, by the server's tokenizer: `/tokenize`, `/detokenize`, `/tokenizer_info`, as vLLM has them.

use crate::serve::batch::fields::{Fields, Refusal};
use crate::serve::http::call::object;
use crate::serve::http::front::FrontDesk;
use serde_json::{json, Map, Value};

/// `{"prompt", "add_special_tokens"}` or `{"messages"}` → `{"tokens", "count", "max_model_len"}`.
pub fn tokenize(front: &FrontDesk, body: &[u8]) -> Result<Value, Refusal> {
    let rules = &front.rules;
    let mut body = Fields::new(object(body)?);
    rules.model(&mut body)?;
    let ids = match body.has("messages") {
        true => rules.conversation(&mut body)?,
        false => {
            let special = body.flag("special_tokens")?.unwrap_or(false);
            let front = body.flag("add_special_tokens")?.unwrap_or(true);
            let text =
                body.text("prompt")?.ok_or_else(|| Refusal::new("missing_field", "prompt", "there is no prompt"))?;
            let ids = rules.prompt_of(&json!(text), special)?;
            match front || !ids.starts_with(&rules.front) {
                true => ids,
                false => ids[rules.front.len()..].to_vec(),
            }
        }
    };
    // What a conversation is rendered with anyway.
    body.neutral("add_generation_prompt", &[json!(true)])?;
    body.neutral("return_token_strs", &[json!(false)])?;
    body.end()?;
    Ok(json!({"tokens": ids, "count": ids.len(), "max_model_len": rules.longest}))
}

/// `{"tokens"}` → `{"prompt"}`.
pub fn detokenize(front: &FrontDesk, body: &[u8]) -> Result<Value, Refusal> {
    let mut body = Fields::new(object(body)?);
    front.rules.model(&mut body)?;
    let ids = body.typed("tokens", "a list of token ids", |v| {
        v.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<Vec<u32>>>()
    })?;
    body.end()?;
    let ids = ids.ok_or_else(|| Refusal::new("missing_field", "tokens", "there are no tokens"))?;
    Ok(json!({"prompt": front.tokenizer.decode(&ids)}))
}

/// What lies beside the tokenizer (`tokenizer_config.json`, the chat template), and what herd makes of it.
pub fn info(front: &FrontDesk) -> Value {
    let (t, files) = (front.tokenizer, front.tokenizer.files());
    let content = |name: &str| files.iter().find(|(n, _)| n == name).map(|(_, c)| c);
    let config = content("tokenizer_config.json").and_then(|c| serde_json::from_slice::<Map<String, Value>>(c).ok());
    let mut info = config.unwrap_or_default();
    if let Some(template) = content("chat_template.jinja") {
        info.insert("chat_template".into(), json!(String::from_utf8_lossy(template)));
    }
    for (key, id) in [("bos_token", t.bos()), ("eos_token", t.eos())] {
        if let Some(id) = id {
            info.entry(key).or_insert_with(|| json!(t.decode(&[id])));
            info.insert(format!("{key}_id"), json!(id));
        }
    }
    info.entry("tokenizer_class").or_insert_with(|| json!(t.kind()));
    info.insert("vocab_size".into(), json!(t.vocab_size()));
    info.insert("max_model_len".into(), json!(front.rules.longest));
    Value::Object(info)
}
