//! `herd batch`: a file of requests answered, over as many ranks as are given.

mod opened;

use super::engine::EngineArgs;
use super::progress::shown_by;
use super::tell::tokenizer_of_leaders;
use super::{logging, outcome};
use crate::convert::weights;
use crate::error::{Error, Exit, Result};
use crate::kernels::memory;
use crate::progress::Meter;
use crate::serve::batch::share::{lead, Finish};
use crate::train::StopFlag;
use crate::world::{Mailbox, World};
use opened::{Opened, Others};
use std::path::PathBuf;
use tch::{Device, Kind};

const AFTER: &str = "\
Examples:
  herd batch --model Llama-3.2-1B-Instruct questions.jsonl answers.jsonl
  srun --mpi=pmix -N 4 --ntasks-per-node 8 herd batch --model Llama-3.1-70B --tensor 8 in.jsonl out.jsonl

A line of IN is a request as OpenAI's batches have it (custom_id, method, url, body), or the body alone: {\"prompt\": …} or
{\"messages\": …}, with an id. OUT gets a line for each as it is finished. Killed at any point and started again with the same
command it goes on: what is in OUT is not made again, and the same bytes come out as without the kill, in another order.
Ranks beyond --tensor × --pipeline make further replicas of the model, which share the requests.";

/// Answer a file of requests.
#[derive(clap::Args)]
#[command(after_help = AFTER)]
pub struct Args {
    /// Requests, a JSON object a line.
    #[arg(value_name = "IN.jsonl")]
    input: PathBuf,
    /// Answers, a JSON object a line; a note of what it was made of is put beside it (OUT.jsonl.herd.json).
    #[arg(value_name = "OUT.jsonl")]
    output: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    /// For requests that do not say.
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f64,
    /// For requests that do not say. Default: 16 for completions, up to the longest text for conversations.
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// For requests that do not say: mixed with their custom_id.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub fn run(args: Args) -> Result<()> {
    memory::install();
    let world = World::init()?;
    match batch(&args, &world) {
        Ok(Finish::All) => world.finalize(),
        Ok(Finish::Stopped) => {
            // together: the first rank to leave with a code that is not 0 makes srun end the others
            world.barrier()?;
            world.finalize()?;
            std::process::exit(Exit::Requeue.code())
        }
        Err(e) => outcome::end(world, e),
    }
}

fn batch(args: &Args, world: &World) -> Result<Finish> {
    logging::init(world.rank() == 0, None)?;
    let stop =
        world.agree(StopFlag::install().map_err(|e| Error::new(Exit::Internal, format!("signal handlers: {e}"))))?;
    let options = args.engine.compute(world)?;
    let meter = Meter::default();
    let shown = |work: &mut dyn FnMut() -> Result<Finish>| match world.rank() {
        0 => shown_by(&meter, work),
        _ => work(),
    };
    shown(&mut || work(args, world, options, &meter, &stop))
}

fn work(args: &Args, world: &World, options: (Kind, Device), meter: &Meter, stop: &StopFlag) -> Result<Finish> {
    let first = world.rank() == 0;
    let opened = world.agree(first.then(|| Opened::new(args, meter)).transpose())?;
    let engine = &args.engine;
    let (told, topology) = engine.tell(world, opened.as_ref().map(|o| &o.model))?;
    let each = engine.each();
    let leads = world.rank().is_multiple_of(each);
    let in_first = !first && world.rank() < each;
    let weights = world.agree(in_first.then(|| weights::open(&engine.model)).transpose())?;
    let holding = engine.holding(world, &told, topology, options)?;
    let begun = world.agree(opened.as_ref().map(|o| o.begin(args, &holding)).transpose())?;
    let tokenizer = tokenizer_of_leaders(world, leads, opened.as_ref().map(|o| &o.model.tokenizer))?;
    let weights = opened.as_ref().map(|o| &o.model.weights).or(weights.as_ref());
    let mut mailbox = Mailbox::open(world)?;
    let replica = holding.replica(weights, world, meter)?;
    let made = |replica| engine.engine(&holding, replica);
    let mut finish = Finish::All;
    match (&opened, begun, tokenizer) {
        (Some(opened), Some(begun), _) => {
            let others = Others { mailbox: &mut mailbox, leaders: world.size() / each - 1 };
            finish = opened.answer(args, begun, made(replica), others, meter, stop)?;
        }
        (_, _, Some(tokenizer)) => lead(made(replica), &tokenizer, &mut mailbox, world)?,
        _ => replica.follow()?,
    }
    // How it ended, the first rank knows.
    let word = world.broadcast_bytes(vec![u8::from(finish == Finish::Stopped)], 0)?;
    Ok(if word == [1] { Finish::Stopped } else { Finish::All })
}
