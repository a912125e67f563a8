//! Tasks of `herd eval` in a run: how likely the model finds each text, computed by the run's own ranks with the weights as they are,
//! whatever the axes. Texts share samples as conversations do; what is found of each is summed by its number.

use super::batch::Portion;
use super::measure::Measurement;
use super::state::State;
use crate::config::TaskSection;
use crate::data::chat::ChatTemplate;
use crate::data::packing::Packs;
use crate::data::sample::{Sample, SampleRow};
use crate::data::tokenizer::Bos;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};
use crate::liveness::Phase;
use crate::model::{Micro, TokenGroups, TokenSums};
use crate::parallel::pipeline::StageWork;
use crate::plan::Plan;
use crate::serve::eval::{EvalTask, HeardText, PutTask, ScoredText, TaskKind, TaskRules, TaskScore};
use crate::text::grouped;
use crate::topology::Axis;
use crate::world::{Op, World};
use std::cell::RefCell;
use std::rc::Rc;

/// The tasks of a run.
#[derive(Default)]
pub struct RunTasks {
    /// Of all tasks, in their order: the tokens of each text, and the first that counts. Known to every rank.
    texts: Vec<(Vec<i64>, usize)>,
    /// Which texts share a sample.
    packs: Packs,
    /// What the rows ask; known to rank 0.
    asked: Vec<AskedTask>,
}

/// A task, and the texts of each of its rows.
struct AskedTask {
    task: EvalTask,
    texts: Vec<Vec<ScoredText>>,
}

impl RunTasks {
    /// Reads and encodes the tasks of `validation.tasks` on rank 0, which has the `tokenizer`, and tells the others. Collective.
    ///
    /// # Errors
    /// As of [`RunTasks::look`].
    pub fn open(plan: &Plan, world: &World, tokenizer: Option<&Tokenizer>) -> Result<RunTasks> {
        if plan.config.validation.tasks.is_empty() {
            return Ok(RunTasks::default());
        }
        let asked = world.agree(tokenizer.map_or(Ok(Vec::new()), |t| asked(plan, t)))?;
        let bytes = world.broadcast_bytes(words(&asked).iter().flat_map(|w| w.to_le_bytes()).collect(), 0)?;
        let word = |b: &[u8]| u32::from_le_bytes(std::array::from_fn(|i| b[i]));
        let words: Vec<u32> = bytes.chunks_exact(4).map(word).collect();
        let tasks = world.agree(RunTasks::of(texts(&words), asked, plan))?;
        tasks.lines(plan).iter().for_each(|line| tracing::info!("{line}"));
        Ok(tasks)
    }

    /// The tasks as a start of the run would find them, a line each.
    ///
    /// # Errors
    /// [`Exit::Data`]: a file that cannot be read, a row that is none or is longer than a sample, rows that ask for texts to be
    /// written; [`Exit::Config`]: two files of one name.
    pub fn look(plan: &Plan) -> Result<Vec<String>> {
        if plan.config.validation.tasks.is_empty() {
            return Ok(Vec::new());
        }
        let asked = asked(plan, &Tokenizer::open(&plan.config.data.tokenizer)?)?;
        Ok(RunTasks::of(texts(&words(&asked)), asked, plan)?.lines(plan))
    }

    fn of(texts: Vec<(Vec<i64>, usize)>, asked: Vec<AskedTask>, plan: &Plan) -> Result<RunTasks> {
        let needs: Vec<Option<u32>> = texts.iter().map(|(ids, _)| Some(ids.len() as u32 - 1)).collect();
        let room = plan.config.data.sequence_length as u32;
        let packs = Packs::first_fit(&needs, room, plan.config.seed, true)?;
        Ok(RunTasks { texts, packs, asked })
    }

    fn lines(&self, plan: &Plan) -> Vec<String> {
        let line = |a: &AskedTask| {
            let (rows, texts) = (a.task.rows.len(), a.texts.iter().map(Vec::len).sum::<usize>());
            let unused = match a.task.unused.is_empty() {
                true => String::new(),
                false => format!("; read past: {}", a.task.unused.join(", ")),
            };
            let (rows, texts) = (grouped(rows as u64), grouped(texts as u64));
            format!("task {}: {rows} rows of kind {}, {texts} texts{unused}", a.task.name, a.task.kind.name())
        };
        let samples = match self.asked.is_empty() {
            true => None,
            false => {
                let (samples, every) = (grouped(self.packs.len() as u64), plan.config.validation.every);
                Some(format!("tasks take {samples} samples every {every} steps"))
            }
        };
        self.asked.iter().map(line).chain(samples).collect()
    }

    /// What comes of the tasks with the weights in `state`; on the ranks but the first, nothing. Collective.
    pub fn score(&self, m: &Measurement, state: &mut State) -> Result<Vec<TaskScore>> {
        if self.texts.is_empty() {
            return Ok(Vec::new());
        }
        let Measurement { plan, world, model, pipeline, progress } = *m;
        progress.at(Phase::Validate);
        let portion = Portion::of(plan, self.packs.len() as u64);
        let found = Rc::new(RefCell::new(vec![TokenSums::default(); self.texts.len()]));
        let room = plan.config.data.sequence_length;
        let mut load = |pass| {
            let micro = portion.batch(pass, |i| Ok(self.sample(i, room)), None)?.micro(model);
            let groups = TokenGroups { of: portion.places(pass, |i| self.numbers(i, room)), sums: found.clone() };
            Ok(Micro { groups: Some(groups), ..micro })
        };
        let sequences = |pass| portion.sequences(pass);
        let work = StageWork { model, units: &mut state.units, load: &mut load, sequences: &sequences, progress };
        pipeline.evaluate(work, portion.passes)?;
        // Tensor ranks know the same, stages before the last nothing.
        let tells = plan.topology.coord(Axis::Tensor) == 0;
        let own = |s: &TokenSums| if tells { s.words() } else { TokenSums::default().words() };
        let mine: Vec<f64> = found.borrow().iter().flat_map(own).collect();
        let all = world.all_reduce_f64(&mine, Op::Sum)?;
        let mut sums = all.chunks_exact(3).map(|w| TokenSums::of_words([w[0], w[1], w[2]]));
        Ok(self.asked.iter().map(|asked| asked.score(&mut sums)).collect())
    }

    /// Texts of sample `i` in a row.
    fn sample(&self, i: u64, room: usize) -> Sample {
        let mut row = SampleRow::new(room);
        for (ids, from) in self.documents(i).map(|t| &self.texts[t]) {
            row.push(ids, |at| at >= *from);
        }
        row.finish()
    }

    /// Of each place of sample `i` the number of its text; behind the last, where nothing counts, 0.
    fn numbers(&self, i: u64, room: usize) -> Vec<i64> {
        let mut all: Vec<i64> =
            self.documents(i).flat_map(|t| std::iter::repeat_n(t as i64, self.texts[t].0.len() - 1)).collect();
        all.resize(room, 0);
        all
    }

    fn documents(&self, i: u64) -> impl Iterator<Item = usize> + '_ {
        self.packs.documents(i as usize).iter().map(|&t| t as usize)
    }
}

impl AskedTask {
    /// With what was found of its texts, the next ones of `sums`.
    fn score(&self, sums: &mut impl Iterator<Item = TokenSums>) -> TaskScore {
        let mut score = TaskScore::new(&self.task);
        for ((_, row), texts) in self.task.rows.iter().zip(&self.texts) {
            let heard: Vec<HeardText> = texts
                .iter()
                .zip(sums.by_ref())
                .map(|(text, s)| HeardText {
                    logprob: -s.loss,
                    tokens: s.tokens as usize,
                    greedy: s.right == s.tokens,
                    text: String::new(),
                    size: text.size,
                })
                .collect();
            score.add(row, &heard);
        }
        score
    }
}

/// The tasks with the tokens of all their texts.
fn asked(plan: &Plan, tokenizer: &Tokenizer) -> Result<Vec<AskedTask>> {
    let front = tokenizer.front(Bos::Own)?.ids;
    let mut all: Vec<AskedTask> = Vec::new();
    for TaskSection { path, limit, chat } in &plan.config.validation.tasks {
        let task = EvalTask::open(path, limit.unwrap_or(usize::MAX))?;
        if task.kind == TaskKind::Generate {
            let fact = format!(
                "{}: rows of kind generation ask for texts to be written, which a run does not do",
                path.display()
            );
            return Err(Error::new(Exit::Data, fact).hint("`herd eval` does, on a checkpoint of the run"));
        }
        if all.iter().any(|a| a.task.name == task.name) {
            let fact = format!("validation.tasks: two files are named {}, by which results are told apart", task.name);
            return Err(Error::new(Exit::Config, fact).hint("give one of them another name"));
        }
        let chat = chat.then(|| ChatTemplate::of(tokenizer)).transpose()?;
        let rules = TaskRules {
            tokenizer,
            front: front.clone(),
            chat: chat.as_ref(),
            delimiter: " ".into(),
            max_tokens: 0,
            stops: Vec::new(),
            ends: Vec::new(),
            vocab: plan.model.vocab_size,
            longest: plan.config.data.sequence_length + 1,
        };
        let hint = "raise data.sequence_length, or leave those rows out";
        let texts =
            PutTask::new(&task, &rules).map_err(|e| if e.exit == Exit::Data { e.hint(hint) } else { e })?.scored();
        all.push(AskedTask { task, texts });
    }
    Ok(all)
}

/// Of each text its length, the place of the first token that counts, and its tokens.
fn words(asked: &[AskedTask]) -> Vec<u32> {
    let of = |t: &ScoredText| [&[t.ids.len() as u32, t.from as u32], &t.ids[..]].concat();
    asked.iter().flat_map(|a| a.texts.iter().flatten()).flat_map(of).collect()
}

fn texts(words: &[u32]) -> Vec<(Vec<i64>, usize)> {
    let mut all = Vec::new();
    let mut rest = words;
    while let [length, from, more @ ..] = rest {
        let (ids, after) = more.split_at((*length as usize).min(more.len()));
        all.push((ids.iter().map(|&id| id as i64).collect(), *from as usize));
        rest = after;
    }
    all
}
