//! `herd data chat`.

use super::tokenize::outputs::{Outputs, Wanted};
use super::tokenize::{stored_size, threads};
use crate::cli::print;
use crate::data::chat::{ChatEncoder, ChatRules, ChatTally, ChatTemplate, Counted, Trap};
use crate::data::indexed::{Sidecar, TokenizerNote};
use crate::data::pipeline::{self, Account, BatchJob};
use crate::data::source::{Format, SourceRules, Split};
use crate::data::tokenizer::Bos;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::text::grouped;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const EXAMPLES: &str = "\
Examples:
  herd data chat --tokenizer Llama-3.1-8B-Instruct --output data/sft train.jsonl
  herd data chat --tokenizer Llama-3.1-8B-Instruct --loss last --holdout 0.02 --output data/sft tulu/*.parquet
  herd data chat --tokenizer Llama-3.1-8B --template chatml.jinja --eos '<|eot_id|>' --output data/sft alpaca.json

Rows may be `messages` (role, content), ShareGPT's `conversations` (from, value), alpaca's `instruction`, `input` and `output`, or
`prompt` and `completion`. Rows with `chosen` and `rejected` become preference pairs, which `dpo` in a configuration trains on. Writes PREFIX.bin and PREFIX.idx as `herd data tokenize` does, PREFIX.mask, which has one byte for each
token, 1 where it counts in the loss, and PREFIX.json. docs/finetuning.md explains what is refused.";

/// Turn conversations into an indexed token file with a loss mask.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// JSON rows, a JSON array or Parquet, JSON also in gzip or zstd; `-` reads standard input.
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<String>,
    /// Tokenizer of the model, with its chat template beside it: a directory, a tokenizer.json or a tokenizer.model.
    #[arg(long, short)]
    tokenizer: String,
    /// Path of the result without its ending; with --holdout, _train and _validation are appended to it.
    #[arg(long, short, value_name = "PREFIX")]
    output: PathBuf,
    /// Chat template to use instead of the one beside the tokenizer.
    #[arg(long, value_name = "FILE")]
    template: Option<PathBuf>,
    /// Which of the model's turns count.
    #[arg(long, value_enum, default_value = "all")]
    loss: Counted,
    /// Share of conversations to hold out for validation, by a hash of their row.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    holdout: f64,
    /// Special token to put before each conversation, by its name. Default: none but what the template writes.
    #[arg(long, value_name = "TOKEN")]
    bos: Option<String>,
    /// Special token to append to each conversation, by its name; it counts where the last turn does. Default: none but what the
    /// template writes.
    #[arg(long, value_name = "TOKEN")]
    eos: Option<String>,
    /// Let this trap pass, and count it; may be given several times.
    #[arg(long, value_name = "TRAP", value_enum)]
    allow: Vec<Trap>,
    /// Leave out rows that are no conversation, that the template refuses or that have a trap in them, and count them.
    #[arg(long)]
    skip_bad: bool,
    /// Encoding threads; 0 takes one a core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Replace existing files.
    #[arg(long)]
    force: bool,
}

pub fn run(args: Args) -> Result<()> {
    pipeline::check_holdout(args.holdout)?;
    let tokenizer = Tokenizer::open(&args.tokenizer)?;
    let template = template(&args, &tokenizer)?;
    let rules = ChatRules {
        counted: args.loss,
        front: args.bos.as_deref().map(|name| special(&tokenizer, "--bos", name)).transpose()?,
        eos: args.eos.as_deref().map(|name| special(&tokenizer, "--eos", name)).transpose()?,
        allowed: args.allow.clone(),
        skip_bad: args.skip_bad,
    };
    let (front, eos) = (rules.front, rules.eos);
    let encoder = ChatEncoder::new(&tokenizer, &template, rules);
    let total = stored_size(&args.inputs)?;
    let wanted = Wanted {
        inputs: &args.inputs,
        tokenizer: &args.tokenizer,
        output: &args.output,
        holdout: args.holdout,
        force: args.force,
        masked: true,
        hint: "the inputs are empty",
    };
    let mut outputs = Outputs::create(&wanted, tokenizer.vocab_size())?;
    let rows = SourceRules { format: Format::Auto, split: Split::File, text_keys: Vec::new(), skip_bad: args.skip_bad };
    let meter = Meter::default();
    let job = BatchJob {
        inputs: &args.inputs,
        rules: &rows,
        encoder: &encoder,
        holdout: args.holdout,
        threads: threads(args.threads),
        consumed: meter.counter(),
    };
    let began = Instant::now();
    meter.begin("chat", total);
    let mut lengths = Lengths::default();
    let accounts = outputs.fill(&job, &meter, |conversation| lengths.add(conversation.ids.len()))?;
    let tally = encoder.tally();
    let note = TokenizerNote::of(&tokenizer, front.into_iter().collect(), eos);
    let nothing = |e: Error| match &tally.first_skipped {
        Some(first) => e.hint(format!("{} were left out; the first: {first}", grouped(tally.skipped))),
        None => e,
    };
    let written = outputs.finish(&wanted, note, Some(encoder.note()), &accounts).map_err(nothing)?;
    let mut text = said(&accounts, &tally, &template, &args);
    text += &bos_left_out(&tokenizer, &template, &args)?;
    text += &results(&written, &lengths, began.elapsed());
    print(&text)
}

fn template(args: &Args, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    match &args.template {
        Some(file) => ChatTemplate::read(file, tokenizer),
        None => ChatTemplate::of(tokenizer).map_err(|e| {
            e.hint("put the model's chat_template.jinja beside it, or name a template with --template; the Instruct model of the \
                    same family has one")
        }),
    }
}

fn special(tokenizer: &Tokenizer, option: &str, name: &str) -> Result<u32> {
    tokenizer.special(name).ok_or_else(|| {
        let fact = format!("{option} {name}: tokenizer {} has no special token of this name", tokenizer.spec());
        Error::new(Exit::Data, fact).hint("write it as the tokenizer's files do, in quotes")
    })
}

/// What was read, and everything that was guessed, left out or let pass.
fn said(accounts: &[Account], tally: &ChatTally, template: &ChatTemplate, args: &Args) -> String {
    let mut out = String::new();
    for a in accounts {
        let name = if a.name == "-" { "standard input" } else { &a.name };
        out += &format!("read {name} as {}: {} rows\n", a.format, grouped(a.documents));
    }
    let forms: Vec<String> = tally.forms.iter().map(|(form, n)| format!("{} of {form}", grouped(*n))).collect();
    let what = if tally.pairs == Some(true) { "preference pairs" } else { "conversations" };
    out += &format!("{what}: {}\n", forms.join(", "));
    let how = match template.marks() {
        true => "its {% generation %} blocks",
        false => "comparing the beginnings of each conversation (the template has no {% generation %})",
    };
    let which = match args.loss {
        Counted::All if tally.pairs == Some(true) => "every turn of the answers",
        Counted::All => "every turn of the model",
        Counted::Last => "the model's last turn",
    };
    out += &format!("template of {}: {which} counts, found by {how}\n", template.file());
    if template.tells_the_date() {
        out += "the template writes today's date: the same rows give other tokens on another day\n";
    }
    let skipped: u64 = tally.skipped + accounts.iter().map(|a| a.skipped).sum::<u64>();
    if skipped > 0 {
        let first = accounts.iter().find_map(|a| a.first_skipped.as_ref()).or(tally.first_skipped.as_ref());
        out += &format!("{} left out; the first: {}\n", grouped(skipped), first.cloned().unwrap_or_default());
    }
    if let Some(name) = &tally.first_name {
        out += &format!(
            "{} hold the name of a special token in a message, as {name}: there it is the token, as for transformers\n",
            grouped(tally.named)
        );
    }
    for (trap, n) in &tally.allowed {
        out += &format!("{} with trap {trap}, let pass by --allow\n", grouped(*n));
    }
    out
}

/// A word where the tokenizer puts something before texts and this template does not.
fn bos_left_out(tokenizer: &Tokenizer, template: &ChatTemplate, args: &Args) -> Result<String> {
    let own = tokenizer.front(Bos::Own)?;
    let written = template.spells("bos_token") || template.spells(&tokenizer.decode(&own.ids));
    Ok(match own.ids.is_empty() || args.bos.is_some() || written {
        true => String::new(),
        false => format!(
            "nothing stands before a conversation, where the tokenizer puts {} before a text: --bos puts it there\n",
            tokenizer.decode(&own.ids)
        ),
    })
}

fn results(written: &[(PathBuf, Sidecar)], lengths: &Lengths, took: Duration) -> String {
    let mut out = String::new();
    for (prefix, s) in written {
        let trained = s.mask.as_ref().map_or(0, |m| m.trained);
        out += &format!(
            "{}: {}, {} tokens ({}), {} of them count ({:.1}%)\n",
            prefix.display(),
            counted(s),
            grouped(s.tokens),
            s.dtype,
            grouped(trained),
            100.0 * trained as f64 / s.tokens.max(1) as f64
        );
    }
    let seconds = took.as_secs_f64().max(1e-3);
    out + &format!(
        "lengths: mean {:.1}, longest {} tokens; {:.0} conversations/s\n",
        lengths.tokens as f64 / lengths.count.max(1) as f64,
        grouped(lengths.longest),
        lengths.count as f64 / seconds
    )
}

/// What a file holds, by number.
fn counted(s: &Sidecar) -> String {
    match s.holds_pairs() {
        true => format!("{} preference pairs ({} conversations)", grouped(s.documents / 2), grouped(s.documents)),
        false => format!("{} conversations", grouped(s.documents)),
    }
}

#[derive(Default)]
struct Lengths {
    count: u64,
    tokens: u64,
    longest: u64,
}

impl Lengths {
    fn add(&mut self, length: usize) {
        self.count += 1;
        self.tokens += length as u64;
        self.longest = self.longest.max(length as u64);
    }
}
