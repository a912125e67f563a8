//! The tasks of a file shared out over the replicas. The first rank of the world has the queue and both files; the first rank of every
//! other replica asks it for tasks and brings answers, in small messages of its own, a question and an answer at a time. The
//! file of answers is all that outlives the processes: a start after a kill takes up whatever it does not have.

use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::progress::Meter;
use crate::serve::batch::answer::refused;
use crate::serve::batch::input::Input;
use crate::serve::batch::output::Output;
use crate::serve::batch::request::{RequestRules, Task};
use crate::serve::batch::worker::Worker;
use crate::serve::engine::{Engine, EngineTally};
use crate::serve::guide::Grammars;
use crate::world::{Mailbox, World};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pause where there is nothing to compute.
const PAUSE: Duration = Duration::from_millis(1);
/// Answers wait for no longer than this for the next question.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// What the leader of another replica says.
#[derive(Serialize, Deserialize)]
struct Ask {
    answers: Vec<String>,
    /// Tokens chosen since the last question, those proposed before, and of these those that were right.
    tokens: [u64; 3],
    wants: usize,
    /// It has no task left.
    idle: bool,
}

/// And what it is told.
#[derive(Serialize, Deserialize)]
enum Told {
    /// And whether there are more.
    Tasks(Vec<Task>, bool),
    /// There are no more, or the work is to stop: no further question.
    End,
}

/// How the work ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// Every request is answered.
    All,
    /// Stopped before the end: start again to go on.
    Stopped,
}

/// The first rank's side.
pub struct Queue<'a> {
    /// The file of requests.
    pub input: &'a Input,
    /// The file of answers, which only this rank writes.
    pub output: Output,
    /// By which a line is read as a task.
    pub rules: RequestRules<'a>,
    /// Lines that nobody has answered or is working at, in order.
    pub left: VecDeque<u64>,
    /// Replicas in the world, this rank's own included.
    pub replicas: usize,
    /// Counts requests that are answered or refused, and tokens.
    pub meter: Meter,
    /// Tokens chosen by all replicas.
    pub tokens: u64,
    /// Tokens that were proposed ([`Engine::proposing`]), and those of them that were chosen.
    pub proposed: (u64, u64),
    /// Requests refused since this process began.
    pub refused: u64,
}

impl<'a> Queue<'a> {
    /// Tasks for up to `texts` more texts, but of several replicas none gets more than half of its share of what is left, so that all
    /// end together. Lines that are none are answered at once.
    fn take(&mut self, texts: usize) -> Result<Vec<Task>> {
        let share = if self.replicas == 1 { usize::MAX } else { self.left.len().div_ceil(2 * self.replicas) };
        let (mut tasks, mut have) = (Vec::new(), 0);
        while have < texts && tasks.len() < share {
            let Some(number) = self.left.pop_front() else { break };
            let line = self.input.line(number)?;
            match self.rules.read(number, &line) {
                Ok(task) => {
                    have += task.asked.len();
                    tasks.push(task);
                }
                Err(why) => {
                    self.refused += 1;
                    self.answered(&[refused(number, &self.input.name(number)?, &why)])?;
                }
            }
        }
        Ok(tasks)
    }

    fn answered(&mut self, lines: &[String]) -> Result<()> {
        self.output.append(lines)?;
        self.meter.add(lines.len() as u64);
        Ok(())
    }

    fn chosen(&mut self, [tokens, proposed, accepted]: [u64; 3]) {
        self.tokens += tokens;
        self.proposed = (self.proposed.0 + proposed, self.proposed.1 + accepted);
        self.meter.tokens(self.tokens);
    }

    /// Runs the first replica's engine and serves the leaders of the others, until everything is answered or `stop` says so.
    pub fn run(
        &mut self, engine: Engine, tokenizer: &'a Tokenizer, mailbox: &mut Mailbox, stop: &dyn Fn() -> bool,
    ) -> Result<Finish> {
        let mut worker = Worker::new(engine, tokenizer, self.rules.grammars.clone());
        let (mut away, mut before, mut stopped) = (self.replicas - 1, EngineTally::default(), false);
        loop {
            stopped |= stop();
            while let Some((from, bytes)) = mailbox.receive()? {
                let ask: Ask = unpack(&bytes)?;
                self.answered(&ask.answers)?;
                self.chosen(ask.tokens);
                let tasks = if stopped { vec![] } else { self.take(ask.wants)? };
                let over = stopped || (tasks.is_empty() && self.left.is_empty() && ask.idle);
                away -= usize::from(over);
                mailbox.send(from, pack(&if over { Told::End } else { Told::Tasks(tasks, !self.left.is_empty()) })?)?;
            }
            if stopped && away == 0 {
                break;
            }
            if !stopped {
                let wants = worker.wants();
                self.take(wants)?.into_iter().try_for_each(|task| worker.submit(task))?;
            }
            if stopped || worker.is_idle() {
                if away == 0 && self.left.is_empty() {
                    break;
                }
                self.output.append(&[])?;
                std::thread::sleep(PAUSE);
                continue;
            }
            let answers = worker.step()?;
            self.answered(&answers)?;
            self.chosen(since(&mut before, worker.tally()));
        }
        worker.end()?;
        self.output.sync()?;
        while !mailbox.clear() {
            std::thread::sleep(PAUSE);
        }
        Ok(if stopped { Finish::Stopped } else { Finish::All })
    }
}

/// The part of the leader of another replica.
pub fn lead(engine: Engine, tokenizer: &Tokenizer, mailbox: &mut Mailbox, world: &World) -> Result<()> {
    let grammars = Arc::new(Grammars::new(tokenizer, engine.capacity().vocab));
    let mut worker = Worker::new(engine, tokenizer, grammars);
    let (mut answers, mut before, mut asked) = (Vec::new(), EngineTally::default(), false);
    // When the last question was asked, and whether the queue had nothing then.
    let (mut last, mut dry) = (Instant::now(), false);
    let gone = world.stop_flag();
    let enough = worker.wants().div_ceil(4);
    loop {
        // Without answers too: only who asks hears that the work is to stop.
        let late = last.elapsed() >= REPORT_EVERY;
        let hungry = if dry { worker.is_idle() } else { worker.wants() >= enough };
        if !asked && (late || hungry) {
            last = Instant::now();
            let ask = Ask {
                answers: std::mem::take(&mut answers),
                tokens: since(&mut before, worker.tally()),
                wants: worker.wants(),
                idle: worker.is_idle(),
            };
            mailbox.send(0, pack(&ask)?)?;
            asked = true;
        }
        if let Some((_, bytes)) = mailbox.receive()? {
            asked = false;
            match unpack(&bytes)? {
                Told::Tasks(tasks, more) => {
                    dry = !more;
                    tasks.into_iter().try_for_each(|task| worker.submit(task))?;
                }
                Told::End => break,
            }
        }
        if worker.is_idle() {
            if gone.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::new(Exit::Peer, "the world was stopped while tasks were waited for"));
            }
            std::thread::sleep(PAUSE);
            continue;
        }
        answers.extend(worker.step()?);
    }
    worker.end()
}

/// Tokens chosen, proposed and proposed rightly since `before`, which becomes `now`.
fn since(before: &mut EngineTally, now: EngineTally) -> [u64; 3] {
    let then = std::mem::replace(before, now);
    [now.chosen - then.chosen, now.proposed - then.proposed, now.accepted - then.accepted]
}

fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::new(Exit::Internal, e.to_string()))
}

fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::new(Exit::Internal, format!("a message between replicas: {e}")))
}
