//! `herd serve`: a model over HTTP, on as many ranks as it takes.

use super::engine::{positive, EngineArgs};
use super::progress::shown_by;
use super::{logging, outcome};
use crate::durable::write_atomic;
use crate::error::{Error, Exit, Result};
use crate::kernels::memory;
use crate::progress::Meter;
use crate::serve::batch::request::Defaults;
use crate::serve::http::address::{self, Door};
use crate::serve::http::desk::Desk;
use crate::serve::http::front::{FrontDesk, NotResumed};
use crate::serve::http::gate::Gate;
use crate::serve::http::journal::SharedJournal;
use crate::serve::http::server::RunningServer;
use crate::serve::start::Holding;
use crate::serve::{Engine, Sampling};
use crate::train::StopFlag;
use crate::world::{listen_for_nobody_when_alone, World};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const AFTER: &str = "\
Examples:
  herd serve --model Llama-3.2-1B-Instruct runs/served
  curl --unix-socket runs/served/serve.sock http://herd/v1/models
  srun --mpi=pmix -N 2 --ntasks-per-node 4 herd serve --model Llama-3.1-70B --tensor 8 --listen 127.0.0.1:0 runs/served

It speaks OpenAI's API: /v1/completions, /v1/chat/completions, /v1/models; and /tokenize, /detokenize, /tokenizer_info, /health,
/metrics. By default it listens on a Unix socket that only its owner can open; --listen takes a loopback address instead, and
clients send the token in RUN/serve.token. RUN/serve.address says where it is. SIGTERM and SIGUSR1 end it with exit code 75: what was
accepted is finished for --drain-seconds; requests with an Idempotency-Key that are not done then wait in RUN for the next start.";

/// Serve a model over HTTP.
#[derive(clap::Args)]
#[command(after_help = AFTER)]
pub struct Args {
    /// Directory for the socket or token, the address and the journal; made where it is missing.
    #[arg(value_name = "RUN")]
    run: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
    /// The Unix socket. Default: RUN/serve.sock.
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    socket: Option<PathBuf>,
    /// Listen on this address and port (0: a free one) instead of a Unix socket, with a token. Loopback only, unless
    /// --open-to-network is given.
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Let --listen take an address that other hosts can reach. Nothing is encrypted, the token neither.
    #[arg(long, requires = "listen")]
    open_to_network: bool,
    /// Texts that may wait besides those that are being made; beyond it requests get 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_waiting: usize,
    /// Seconds that requests under way have when the server is asked to stop.
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain_seconds: u64,
    /// For requests that do not say.
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f64,
    /// For requests that do not say. Default: 16 for completions, up to the longest text for conversations.
    #[arg(long, value_name = "N", value_parser = positive)]
    max_tokens: Option<usize>,
}

pub fn run(args: Args) -> Result<()> {
    memory::install();
    listen_for_nobody_when_alone();
    let world = World::init()?;
    match serve(&args, &world) {
        Ok(()) => {
            // together: the first rank to leave with a code that is not 0 makes srun end the others
            world.barrier()?;
            world.finalize()?;
            std::process::exit(Exit::Requeue.code())
        }
        Err(e) => outcome::end(world, e),
    }
}

fn serve(args: &Args, world: &World) -> Result<()> {
    let (first, engine) = (world.rank() == 0, &args.engine);
    logging::init(first, None)?;
    let stop =
        world.agree(StopFlag::install().map_err(|e| Error::new(Exit::Internal, format!("signal handlers: {e}"))))?;
    let compute = engine.compute(world)?;
    let meter = Meter::default();
    let (mut opened, mut replica) = (None, None);
    let mut door = None;
    let mut load = || -> Result<Holding<'static>> {
        // A door that cannot be had is told before gigabytes are read.
        door = world.agree(first.then(|| open_door(args)).transpose())?;
        opened = world.agree(first.then(|| engine.open(&meter)).transpose())?;
        let (holding, made) = engine.hold(world, opened.as_ref(), compute, &meter)?;
        replica = Some(made);
        Ok(holding)
    };
    let holding = match first {
        true => shown_by(&meter, &mut load)?,
        false => load()?,
    };
    let missing = || Error::new(Exit::Internal, "the model was not loaded");
    let replica = replica.ok_or_else(missing)?;
    match (opened, door) {
        (Some(opened), Some(door)) => {
            let made_by = engine.made_by(&opened, holding.kind).to_string();
            let made = engine.engine(&holding, replica);
            answer(args, opened, door, (made, made_by), &stop)
        }
        _ => replica.follow(),
    }
}

/// The door, and the token where it needs one.
fn open_door(args: &Args) -> Result<(Door, Option<String>)> {
    Sampling { temperature: args.temperature, ..Sampling::greedy() }.check()?;
    std::fs::create_dir_all(&args.run).map_err(crate::durable::refused(&args.run, "create"))?;
    match args.listen {
        Some(listen) => {
            let door = Door::tcp(listen, args.open_to_network)?;
            Ok((door, Some(address::token(&args.run.join(address::TOKEN))?)))
        }
        None => {
            let path = args.socket.clone().unwrap_or_else(|| args.run.join(address::SOCKET));
            Ok((Door::unix(&path)?, None))
        }
    }
}

/// The first rank: serves until it is asked to stop.
fn answer(
    args: &Args, opened: super::engine::OpenedModel, (door, token): (Door, Option<String>),
    (engine, made_by): (Engine, String), stop: &StopFlag,
) -> Result<()> {
    let (journal, unfinished, says) = SharedJournal::open(&args.run)?;
    says.iter().for_each(|line| tracing::warn!("{line}"));
    let tokenizer: &'static crate::data::Tokenizer = Box::leak(Box::new(opened.tokenizer));
    let defaults = Defaults { temperature: args.temperature, max_tokens: args.max_tokens, seed: 0 };
    let rules = args.engine.rules(&opened.weights, tokenizer, opened.longest, defaults)?;
    if let Err(e) = &rules.chat {
        tracing::info!("no conversations: {e}");
    }
    let gate = Gate::new(args.engine.max_sequences + args.max_waiting);
    let (orders, ordered) = std::sync::mpsc::channel();
    let front = Arc::new(FrontDesk::new(rules, made_by, orders, gate.clone(), journal.clone(), token));
    if !unfinished.is_empty() {
        tracing::info!("{} requests of an earlier server go on", unfinished.len());
    }
    for u in unfinished {
        let key = u.key.clone();
        match front.resume(u) {
            Ok(()) => {}
            Err(NotResumed::Refused(why)) => {
                tracing::warn!("request {key} of an earlier server is refused now: {why}");
                journal.done(&key);
            }
            Err(NotResumed::Journal(why)) => {
                tracing::warn!("request {key} of an earlier server waits for the next start: {why}");
            }
        }
    }
    let name = door.name();
    let place = args.run.join(address::ADDRESS);
    write_atomic(&place, format!("{name}\n").as_bytes())?;
    if args.open_to_network {
        tracing::warn!("{name} can be reached from other hosts; nothing is encrypted, the token neither");
    }
    let lock = match args.listen {
        Some(_) => format!("token in {}", args.run.join(address::TOKEN).display()),
        None => "its mode 0600 is the lock".into(),
    };
    let server = RunningServer::start(door, front.clone())?;
    tracing::info!("serving {} at {name} ({lock})", front.rules.models[0]);
    let asked = || stop.raised() || server.is_over();
    let desk = Desk::new(engine, tokenizer, front.rules.grammars.clone(), journal);
    let drained = desk.run(ordered, &gate, &front.figures, &asked, Duration::from_secs(args.drain_seconds))?;
    let ended_itself = server.is_over();
    let served = server.end();
    let _ = std::fs::remove_file(&place);
    served?;
    if ended_itself {
        return Err(Error::new(Exit::Internal, "the server's thread ended"));
    }
    match drained.unfinished {
        0 => tracing::info!("stopped; every accepted request is answered"),
        n => tracing::warn!(
            "stopped; {n} accepted requests are not answered, {} of them wait in {} for the next start",
            drained.kept,
            args.run.display()
        ),
    }
    Ok(())
}
