//! Tokenizes documents on several threads and hands the ids on in input order.
//!
//! Batch i goes to worker i mod n over a channel of its own and comes back over another, so the collector restores the
//! order by asking the workers in turn; the channels' lengths bound the memory.

use super::source::{SourceDocuments, SourceRules};
use super::tokenizer::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::threads::lock;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// A batch is closed when its text reaches this many bytes.
const BATCH_BYTES: usize = 256 << 10;
/// Batches waiting before and behind each worker.
const QUEUE: usize = 4;

/// Which side of the hold-out a document is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// To be trained on.
    Train,
    /// Held out.
    Validation,
}

/// One tokenized document.
pub struct Encoded {
    /// Which side of the hold-out it is on.
    pub part: Part,
    /// Ids, with what stands in front of a document and the end-of-text that was asked for.
    pub ids: Vec<u32>,
    /// Which of them count, one byte each; empty where the documents are not masked.
    pub mask: Vec<u8>,
    /// Bytes of its text.
    pub text_bytes: u64,
}

/// A token at an end of each document.
pub struct Mark {
    /// Its id in the tokenizer.
    pub id: u32,
    /// Its name, where a text that has it there already, as characters, is refused.
    pub name: Option<String>,
}

/// Ids of a document and, where documents are masked, which of them count.
pub type IdsAndMask = (Vec<u32>, Vec<u8>);

/// Makes tokens of a document.
pub trait Encode: Sync {
    /// One document as a rule; none where it is left out; those of a preference pair, which stay side by side. An error ends the
    /// whole work.
    fn encode(&self, document: &str) -> Result<Vec<IdsAndMask>>;

    /// What errors call a document, if they are to say which it was.
    fn noun(&self) -> Option<&'static str> {
        None
    }
}

/// Texts as they are.
pub struct TextEncoder<'a> {
    /// Makes ids of the text itself.
    pub tokenizer: &'a Tokenizer,
    /// Put before each document, in this order.
    pub front: Vec<Mark>,
    /// Appended to each document.
    pub eos: Option<Mark>,
}

impl Encode for TextEncoder<'_> {
    fn encode(&self, text: &str) -> Result<Vec<IdsAndMask>> {
        twice(self, text)?;
        let mut ids: Vec<u32> = self.front.iter().map(|mark| mark.id).collect();
        ids.extend(self.tokenizer.encode(text)?);
        ids.extend(self.eos.iter().map(|mark| mark.id));
        Ok(vec![(ids, Vec::new())])
    }
}

/// What to do.
pub struct BatchJob<'a> {
    /// Paths of the input files, in order; `-` for standard input.
    pub inputs: &'a [String],
    /// How each input is read.
    pub rules: &'a SourceRules,
    /// Makes tokens of each document, on all threads at once.
    pub encoder: &'a dyn Encode,
    /// Share of documents for validation; 0 holds none out.
    pub holdout: f64,
    /// Threads that encode; 0 counts as 1.
    pub threads: usize,
    /// Bytes read of the inputs, as stored, so far.
    pub consumed: Arc<AtomicU64>,
}

/// What became of one input.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// As [`BatchJob::inputs`] has it.
    pub name: String,
    /// What its content was found to be, as `JSON lines in gzip`.
    pub format: String,
    /// Documents read from it, without bad and empty ones.
    pub documents: u64,
    /// Documents left out as bad.
    pub skipped: u64,
    /// What was wrong with the first document left out; `None` where none was.
    pub first_skipped: Option<String>,
    /// Rows left out because their text is empty.
    pub empty: u64,
}

struct Document {
    part: Part,
    text: String,
    /// Number of its input, and its own in it, from 1.
    place: (usize, u64),
}

type Batch = Vec<Document>;

/// Runs `job`, giving each document to `sink` in input order. Returns what became of each input. The first error, from an
/// input, the tokenizer or the sink, ends everything.
pub fn run(job: &BatchJob, mut sink: impl FnMut(Encoded) -> Result<()>) -> Result<Vec<Account>> {
    let accounts = Mutex::new(Vec::new());
    std::thread::scope(|scope| -> Result<()> {
        let workers = job.threads.max(1);
        let (mut inlets, mut outlets) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (to_worker, batches) = sync_channel::<Result<Batch>>(QUEUE);
            let (to_sink, encoded) = sync_channel::<Result<Vec<Encoded>>>(QUEUE);
            inlets.push(to_worker);
            outlets.push(encoded);
            scope.spawn(move || work(job, batches, to_sink));
        }
        let kept = &accounts;
        scope.spawn(move || read(job, &inlets, kept));
        // When this returns, early or not, the outlets close; workers and reader notice and end.
        let outlets = outlets;
        let mut turn = 0;
        while let Ok(batch) = outlets[turn].recv() {
            batch?.into_iter().try_for_each(&mut sink)?;
            turn = (turn + 1) % workers;
        }
        Ok(())
    })?;
    Ok(accounts.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn work(job: &BatchJob, batches: Receiver<Result<Batch>>, to_sink: SyncSender<Result<Vec<Encoded>>>) {
    let encode = |Document { part, text, place: (input, number) }: Document| {
        let made = job.encoder.encode(&text).map_err(|e| match job.encoder.noun() {
            Some(noun) => e.context(format!("{}, {noun} {number}", job.inputs[input])),
            None => e,
        });
        // The first document of a text stands for its bytes.
        let bytes = |i: usize| if i == 0 { text.len() as u64 } else { 0 };
        let named = |(i, (ids, mask))| Encoded { part, ids, mask, text_bytes: bytes(i) };
        made.map(|all| all.into_iter().enumerate().map(named).collect::<Vec<_>>())
    };
    for batch in batches {
        let done = batch.and_then(|b| b.into_iter().map(encode).collect::<Result<Vec<_>>>());
        let done = done.map(|all| all.into_iter().flatten().collect());
        if to_sink.send(done).is_err() {
            return;
        }
    }
}

/// Refuses a text that has at its end what is to be put there.
fn twice(job: &TextEncoder, text: &str) -> Result<()> {
    let begins = |name: &&String| text.trim_start().starts_with(name.as_str());
    let ends = |name: &&String| text.trim_end().ends_with(name.as_str());
    let first = job.front.iter().filter_map(|m| m.name.as_ref()).find(begins);
    let last = || job.eos.iter().filter_map(|m| m.name.as_ref()).find(ends);
    let first = first.map(|name| ("begins", "put nothing there with --no-bos", name));
    match first.or_else(|| last().map(|name| ("ends", "leave --eos out", name))) {
        None => Ok(()),
        Some((verb, instead, name)) => {
            let start: String = text.chars().take(40).collect();
            Err(Error::new(Exit::Data, format!("a document {verb} with {name} already: {start:?}…"))
                .hint(format!("take it out of the texts, where it counts as characters, or {instead}")))
        }
    }
}

/// Reads the inputs into batches, dealt to the workers in turn.
fn read(job: &BatchJob, inlets: &[SyncSender<Result<Batch>>], accounts: &Mutex<Vec<Account>>) {
    let mut deal = Deal { inlets, turn: 0, batch: Vec::new(), bytes: 0 };
    // The first document waits until a second one shows that it is not alone.
    let mut first: Option<Document> = None;
    let mut count = 0u64;
    for (input, name) in job.inputs.iter().enumerate() {
        let mut number = 0;
        let mut documents = match SourceDocuments::open(name, job.rules, job.consumed.clone()) {
            Ok(d) => d,
            Err(e) => return deal.fail(e),
        };
        for document in &mut documents {
            let document = match document {
                Ok(d) => d,
                Err(e) => return deal.fail(e),
            };
            (count, number) = (count + 1, number + 1);
            let document = Document { part: part_of(&document, job.holdout), text: document, place: (input, number) };
            if count == 1 && job.holdout > 0.0 {
                first = Some(document);
                continue;
            }
            if !first.take().into_iter().chain([document]).all(|d| deal.add(d)) {
                return;
            }
        }
        let SourceDocuments { format, documents, skipped, first_skipped, empty, .. } = documents;
        let account = Account { name: name.clone(), format, documents, skipped, first_skipped, empty };
        lock(accounts).push(account);
    }
    if let Some(only) = first {
        let pieces = match job.encoder.noun() {
            // What is no plain text is not cut.
            Some(_) => vec![only],
            None => {
                let (head, end) = only.text.split_at(tail(&only.text, job.holdout));
                let piece = |part, text: &str| Document { part, text: text.into(), place: only.place };
                vec![piece(Part::Train, head), piece(Part::Validation, end)]
            }
        };
        if !pieces.into_iter().all(|d| deal.add(d)) {
            return;
        }
    }
    deal.flush();
}

struct Deal<'a> {
    inlets: &'a [SyncSender<Result<Batch>>],
    turn: usize,
    batch: Batch,
    bytes: usize,
}

impl Deal<'_> {
    /// False when nobody listens any more.
    fn add(&mut self, document: Document) -> bool {
        if document.text.is_empty() {
            return true;
        }
        self.bytes += document.text.len();
        self.batch.push(document);
        self.bytes < BATCH_BYTES || self.flush()
    }

    fn flush(&mut self) -> bool {
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        batch.is_empty() || self.send(Ok(batch))
    }

    /// Sends what came before the error, then the error.
    fn fail(&mut self, e: Error) {
        if self.flush() {
            self.send(Err(e));
        }
    }

    fn send(&mut self, batch: Result<Batch>) -> bool {
        let sent = self.inlets[self.turn].send(batch).is_ok();
        self.turn = (self.turn + 1) % self.inlets.len();
        sent
    }
}

/// Which side a document is on, by a hash of its text: independent of the order of the input and of other documents, and
/// the same for exact copies, so that no copy of a held-out document is trained on.
pub fn part_of(text: &str, holdout: f64) -> Part {
    let unit = (xxh3_64(text.as_bytes()) >> 11) as f64 / (1u64 << 53) as f64;
    match unit < holdout {
        true => Part::Validation,
        false => Part::Train,
    }
}

/// Where the held-out tail of a single document begins: the first line start at or after its share, else the character.
fn tail(text: &str, holdout: f64) -> usize {
    let share = (text.len() as f64 * (1.0 - holdout)) as usize;
    let at = (share..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len());
    match text[at..].find('\n') {
        Some(n) if at + n + 1 < text.len() => at + n + 1,
        _ => at,
    }
}

/// Refuses a share that holds out nothing or everything.
pub fn check_holdout(holdout: f64) -> Result<()> {
    match (0.0..1.0).contains(&holdout) {
        true => Ok(()),
        false => Err(Error::new(Exit::Usage, format!("--holdout {holdout} is not a share"))
            .hint("0 holds nothing out; 0.05 holds out 5%")),
    }
}
