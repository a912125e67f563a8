//! The MPI process world: who am I, who is on my node, how a process leaves.
//!
//! Ranks come from the communicator alone, so a process runs the same under `srun --mpi=pmix`, under `mpirun` and
//! alone. The calls that move small host messages are in `control`.

use crate::error::{Error, Exit, Result};
use crate::host;
use crate::world::comm::Comm;
use crate::world::ffi::check;
use crate::world::meters::CollectiveCounters;
use mpi::ffi;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// The processes of this run, seen from one of them.
///
/// Dropping it does not finalize MPI: a process that unwinds must not wait for its peers. Call [`World::finalize`] at
/// the end of a good run and [`leave`] otherwise.
pub struct World {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    host: String,
    /// Every rank, for control messages only.
    pub(crate) comm: Comm,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) meters: Arc<CollectiveCounters>,
}

impl World {
    /// Initialises MPI with MPI_THREAD_MULTIPLE (MPI 4.1 §11.6.2).
    ///
    /// Errors: [`Exit::World`] when MPI offers less, was already initialised, or started a world of another size than
    /// the Slurm step has tasks.
    pub fn init() -> Result<World> {
        // Read before MPI_Init, which may add variables of its own.
        let var = |k: &str| std::env::var(k).ok();
        let tasks = slurm_tasks(var);
        let mut already = 0;
        // SAFETY: MPI_Initialized may be called at any time.
        check(unsafe { ffi::MPI_Initialized(&mut already) }, "MPI_Initialized")?;
        if already != 0 {
            return Err(Error::new(Exit::Internal, "the MPI world was initialised twice in one process"));
        }
        check_launcher(&library(), in_step(var), std::env::vars_os().filter_map(|(k, _)| k.into_string().ok()))?;
        let mut provided = 0;
        // SAFETY: null argc and argv are allowed; nothing else has touched MPI.
        let code = unsafe {
            let want = ffi::RSMPI_THREAD_MULTIPLE;
            ffi::MPI_Init_thread(std::ptr::null_mut(), std::ptr::null_mut(), want, &mut provided)
        };
        check(code, "MPI_Init_thread").map_err(|e| Error { exit: Exit::World, ..e })?;
        // SAFETY: constant.
        let want = unsafe { ffi::RSMPI_THREAD_MULTIPLE };
        if provided < want {
            return Err(Error::new(
                Exit::World,
                format!("MPI offers thread level {provided}; herd needs {want}, MPI_THREAD_MULTIPLE"),
            )
            .hint("use an MPI that was built with MPI_THREAD_MULTIPLE, as Open MPI 4 and 5 and MPICH 4 and 5 are"));
        }
        let world = Comm::world()?;
        let size = world.size();
        check_tasks(size, tasks)?;
        let node = world.split_node()?;
        Ok(World {
            rank: world.rank()?,
            size,
            local_rank: node.rank()?,
            local_size: node.size(),
            host: host::node(),
            comm: world.duplicate()?,
            stop: Arc::new(AtomicBool::new(false)),
            meters: Arc::new(CollectiveCounters::new(size)),
        })
    }

    /// Rank in the world, `0..size`.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks in the world.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Rank among those of this node: picks the device and the cores.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Ranks on this node.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// This node's name: Slurm's where it started the process, else the host's.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Setting it ends every wait of this world and its wires, on this rank, with [`Exit::Peer`].
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        self.stop.clone()
    }

    /// What this world and its wires are doing. A duplicate has meters of its own.
    pub fn meters(&self) -> Arc<CollectiveCounters> {
        self.meters.clone()
    }

    /// The same ranks with a message space of their own, for use by another thread. Collective.
    pub fn duplicate(&self) -> Result<World> {
        // MPI_Comm_dup cannot be left, so go there together.
        self.barrier()?;
        let meters = Arc::new(CollectiveCounters::new(self.size));
        let (host, stop) = (self.host.clone(), self.stop.clone());
        Ok(World { host, comm: self.comm.duplicate()?, stop, meters, ..*self })
    }

    /// Ends MPI after a good run. Collective; drop the wires first.
    ///
    /// Waits for all ranks first, in a way that the stop flag ends with [`Exit::Peer`]. If the flag is set later, while
    /// MPI_Finalize itself blocks (which must run on this thread, MPI 4.1 §11.2.2), this process ends with that code.
    pub fn finalize(self) -> Result<()> {
        self.barrier()?;
        let done = Arc::new(AtomicBool::new(false));
        let (over, stop) = (done.clone(), self.stop.clone());
        let watch = move || {
            while !over.load(Ordering::Relaxed) {
                if stop.load(Ordering::Relaxed) {
                    // SAFETY: ends the process.
                    unsafe { libc::_exit(Exit::Peer.code()) }
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        // Without the thread it is as before: a peer that dies just now holds this rank until the launcher acts.
        let _ = std::thread::Builder::new().name("herd-finalize".into()).spawn(watch);
        // SAFETY: called once, since it consumes the world; no operation is under way on a world without wires.
        let ended = check(unsafe { ffi::MPI_Finalize() }, "MPI_Finalize");
        done.store(true, Ordering::Relaxed);
        ended
    }
}

/// Ends this process with `code` and takes the other ranks with it; never returns, never waits for a peer.
///
/// For every end but a good one: nothing is finalized, no destructor runs. In a world of several ranks the launcher is
/// told by MPI_Abort, so that no rank is left waiting for this one.
pub fn leave(code: i32) -> ! {
    // MPI_Abort talks to the launcher, and the flush below takes a lock: neither may hold the process.
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(5));
        // SAFETY: ends the process.
        unsafe { libc::_exit(code) }
    });
    let _ = std::io::stdout().flush();
    let (mut initialised, mut finalized, mut size) = (0, 0, 0);
    // SAFETY: the first two may be called at any time; the rest only between them.
    unsafe {
        ffi::MPI_Initialized(&mut initialised);
        ffi::MPI_Finalized(&mut finalized);
        if initialised != 0 && finalized == 0 {
            ffi::MPI_Comm_size(ffi::RSMPI_COMM_WORLD, &mut size);
            if size > 1 {
                ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
            }
        }
        libc::_exit(code)
    }
}

/// Number of tasks of the Slurm step that started this process, if one did.
///
/// A launcher that stands between (`mpirun`, `mpiexec.hydra`) leaves Slurm's variables of its own step behind, so its
/// count wins. srun(1): SLURM_NTASKS, SLURM_PROCID, SLURM_STEP_ID.
fn slurm_tasks(var: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let between = ["OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "HYDI_CONTROL_FD"];
    if between.iter().any(|k| var(k).is_some()) {
        return None;
    }
    var("SLURM_STEP_ID").or_else(|| var("SLURM_PROCID"))?;
    var("SLURM_NTASKS")?.parse().ok()
}

/// Whether this is the number of a step that `srun` made. From 0xfffffff0 up, or below 0, numbers stand for something else: the
/// batch script is -5 or 4294967291 (slurm.h, SLURM_BATCH_SCRIPT). Slurm 26.05 sets that as SLURM_STEP_ID in batch scripts,
/// where older ones set nothing.
pub fn is_step(id: i64) -> bool {
    (0..0xffff_fff0).contains(&id)
}

fn in_step(var: impl Fn(&str) -> Option<String>) -> bool {
    var("SLURM_STEP_ID").and_then(|id| id.trim().parse().ok()).is_some_and(is_step)
}

/// Where no launcher started this process, it is the whole world: Open MPI then needs no connections, and is told not to listen for
/// any (by default it does, on all interfaces). To be called before [`World::init`], while the process has one thread.
pub fn listen_for_nobody_when_alone() {
    let mut names = std::env::vars_os().filter_map(|(k, _)| k.into_string().ok());
    let launched = names.any(|name| MANAGERS.iter().any(|p| name.starts_with(p)) || name == "OMPI_MCA_btl");
    if !launched {
        std::env::set_var("OMPI_MCA_btl", "self");
    }
}

/// How the variables begin by which ranks find each other.
const MANAGERS: [&str; 3] = ["PMIX_", "PMI_", "OMPI_COMM_WORLD_"];

/// Refuses a task of a Slurm step to which `srun` gave no process manager, before MPI_Init does worse: Open MPI 4 ends
/// the process with a page of text, Open MPI 5 may start a world of one (open-mpi/ompi#13523). Other MPIs may find
/// Slurm without one. `step`: this is a task of a step; `names`: all environment variables.
fn check_launcher(library: &str, step: bool, mut names: impl Iterator<Item = String>) -> Result<()> {
    let manager = names.any(|name| MANAGERS.iter().any(|p| name.starts_with(p)));
    if library.starts_with("Open MPI") && step && !manager {
        return Err(Error::new(
            Exit::World,
            "this process is a task of a Slurm step, but srun gave it no process manager to find the other ranks by",
        )
        .hint("start the ranks with `srun --mpi=pmix`; `srun --mpi=list` shows what this site has"));
    }
    Ok(())
}

/// The MPI library's name and version (MPI 4.1 §9.1.1: may be called before MPI_Init).
pub fn library() -> String {
    let mut text = vec![0u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the buffer has the size that MPI asks for.
    unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast(), &mut length) };
    String::from_utf8_lossy(text.split(|&b| b == 0).next().unwrap_or_default()).into_owned()
}

fn check_tasks(size: usize, tasks: Option<usize>) -> Result<()> {
    match tasks {
        Some(n) if n != size => Err(Error::new(
            Exit::World,
            format!("the Slurm step has {n} tasks (SLURM_NTASKS={n}) but this MPI world has {size} of them"),
        )
        .hint(format!(
            "start the ranks with `srun --mpi=pmix -n {n}`: without --mpi=pmix each task becomes a world of its own"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |k| pairs.iter().find(|(name, _)| *name == k).map(|(_, v)| v.to_string())
    }

    #[test]
    fn slurm_counts_only_when_it_started_the_process() {
        assert_eq!(slurm_tasks(env(&[("SLURM_NTASKS", "3"), ("SLURM_PROCID", "0")])), Some(3));
        assert_eq!(slurm_tasks(env(&[("SLURM_NTASKS", "3"), ("SLURM_STEP_ID", "1")])), Some(3));
        assert_eq!(slurm_tasks(env(&[("SLURM_NTASKS", "3")])), None);
        let under_mpirun = env(&[("SLURM_NTASKS", "3"), ("SLURM_PROCID", "0"), ("OMPI_COMM_WORLD_SIZE", "2")]);
        assert_eq!(slurm_tasks(under_mpirun), None);
    }

    #[test]
    fn a_step_without_a_process_manager_is_refused_for_open_mpi() {
        let names = |list: &'static [&'static str]| list.iter().map(|s| s.to_string());
        let e = check_launcher("Open MPI v4.1.4", true, names(&["PATH", "SLURM_STEP_ID"])).unwrap_err();
        assert_eq!(e.exit, Exit::World);
        assert!(e.to_string().contains("--mpi=pmix"), "{e}");
        assert!(check_launcher("MPICH Version: 5.0", true, names(&["SLURM_STEP_ID"])).is_ok());
        for (step, fine) in [(true, &["PMIX_RANK"][..]), (true, &["PMI_FD"]), (false, &["SLURM_JOB_ID"])] {
            assert!(check_launcher("Open MPI v4.1.4", step, names(fine)).is_ok());
        }
        for (id, step) in [("0", true), ("17", true), ("-5", false), ("4294967291", false), ("x", false)] {
            assert_eq!(in_step(|k| (k == "SLURM_STEP_ID").then(|| id.to_string())), step, "{id}");
        }
        assert!(!in_step(|_| None));
        assert!(!library().is_empty());
    }

    #[test]
    fn a_world_of_another_size_is_named_with_both_numbers() {
        let e = check_tasks(1, Some(3)).unwrap_err();
        assert_eq!(e.exit, Exit::World);
        let text = e.to_string();
        assert!(text.contains("3 tasks") && text.contains("world has 1") && text.contains("--mpi=pmix"), "{text}");
        assert!(check_tasks(3, Some(3)).is_ok() && check_tasks(2, None).is_ok());
    }
}
