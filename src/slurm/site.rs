//! What this site's Slurm is: its version and its MPI plugins, asked of it once. What herd does differently from one version
//! to the next stands here, each with the version that needs it.
//!
//! | since | what differs | where herd meets it |
//! | --- | --- | --- |
//! | 24.11 | `srun` refuses `--nodes` beside `--distribution=arbitrary` | [`super::StepLine`] never says both: every version takes the list of hosts alone |
//! | 24.11 | the PMIx plugin ends a step 0.3 s after one of its nodes or tasks is lost, and the other ranks with it | what is killed after "Job step aborted" blames nobody ([`super::messages`]), or the first of it alone ([`Site::leaves_steps`]) |
//! | 24.05 | a preempted job whose script ends within its grace time is requeued by Slurm itself, and once more if it was requeued by hand before | [`Site::requeues_preempted`] |
//! | 26.05 | SLURM_STEP_ID is -5 in batch scripts | [`crate::world::is_step`] |
//! | 26.05 | Debian's package has no PMIx plugin | [`Site::plugin`] takes `pmi2` where the MPI can |

use super::process::{command, said};
use crate::error::{Error, Exit, Result};
use std::time::Duration;

/// srun answers in milliseconds, or its configuration is away.
const LIMIT: Duration = Duration::from_secs(10);

/// Slurm as this site has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// As `srun --version` says it, without the word `slurm`: 24.11.5.
    pub version: String,
    /// What `srun --mpi=list` names: none, pmi2, pmix, pmix_v4, …
    pub plugins: Vec<String>,
    /// `TreeWidth` of its configuration.
    pub tree_width: Option<usize>,
}

impl Site {
    /// Asks srun, and says what it did not answer: that costs the choice of a plugin, not the job.
    pub fn ask() -> Site {
        let asked = |program: &str, options: &[&str]| {
            said(command(program, options), LIMIT).unwrap_or_else(|e| {
                let line = [&[program][..], options].concat().join(" ");
                tracing::warn!("{line} was not answered, so what this Slurm can do is not known: {e}");
                String::new()
            })
        };
        Site {
            version: version(&asked("srun", &["--version"])),
            // 22.05 lists on stderr, later ones on stdout
            plugins: plugins(&asked("srun", &["--mpi=list"])),
            tree_width: tree_width(&asked("scontrol", &["show", "config"])),
        }
    }

    /// Whether a preempted job is put back into the queue when its script ends, with whatever code (slurmctld's
    /// `_slurm_rpc_complete_batch_script`, since 24.05). A requeue asked for by hand then leaves a mark behind, and the end of
    /// the next start, be it the end of the run, requeues the job again (seen on 24.11; the drill's preemption).
    pub fn requeues_preempted(&self) -> bool {
        self.release().is_some_and(|r| r >= (24, 5))
    }

    /// Whether Slurm leaves a step alone when one of its tasks or nodes dies (`--kill-on-bad-exit=0`). Since 24.11 its PMIx plugin ends
    /// the step.
    pub fn leaves_steps(&self) -> bool {
        self.release().is_some_and(|r| r < (24, 11))
    }

    /// `(24, 11)` of 24.11.5.
    fn release(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.split('.').map_while(|n| n.parse().ok());
        numbers.next().zip(numbers.next())
    }

    /// The value of `--mpi` by which ranks of `library` (MPI_Get_library_version) find each other here. `wanted`: what the
    /// configuration says, `auto` or a plugin by name.
    ///
    /// Errors ([`Exit::World`]): Slurm has no such plugin, or none that this MPI can use.
    pub fn plugin(&self, wanted: &str, library: &str) -> Result<String> {
        let usable = usable(library);
        if self.plugins.is_empty() {
            return Ok(if wanted == "auto" { usable[0] } else { wanted }.to_string());
        }
        let has = |name: &str| self.plugins.iter().any(|p| p == name);
        let chosen = match wanted {
            "auto" => usable.iter().find(|name| has(name)).map(|name| name.to_string()),
            name => has(name).then(|| name.to_string()),
        };
        // what a person names for an MPI that is not known here is believed
        let known = library.starts_with("Open MPI");
        let fits = |name: &String| {
            name != "none" && (!known || usable.iter().any(|u| name == u || name.starts_with(&format!("{u}_v"))))
        };
        if let Some(name) = chosen.filter(fits) {
            return Ok(name);
        }
        let library = short(library);
        let fact = format!(
            "{}herd is built with {library}, whose ranks find each other under srun by {}; Slurm {} has {} (srun --mpi=list)",
            if wanted == "auto" { String::new() } else { format!("launch.mpi is {wanted}; ") },
            usable.join(" or "),
            self.version,
            self.plugins.join(", ")
        );
        let hint = match usable.iter().any(|name| has(name)) {
            true => "take launch.mpi: auto",
            false => "build herd with an MPI that fits one of these plugins (MPICH for pmi2, Open MPI for pmix), or start the ranks with mpirun",
        };
        Err(Error::new(Exit::World, fact).hint(hint))
    }
}

/// By what an MPI library's ranks can find each other, the best first. Open MPI speaks PMIx, since 5 nothing else (its
/// documentation, "Launching with Slurm"). MPICH speaks the old PMI and, where it was built so, PMIx: then Debian and Spack
/// link libpmix, which this process shows.
fn usable(library: &str) -> &'static [&'static str] {
    if library.to_ascii_uppercase().contains("CRAY MPICH") {
        return &["cray_shasta"];
    }
    match (library.starts_with("Open MPI v4"), library.starts_with("Open MPI"), links_pmix()) {
        (true, ..) => &["pmix", "pmi2"],
        (_, true, _) => &["pmix"],
        (.., true) => &["pmix", "pmi2"],
        _ => &["pmi2"],
    }
}

fn links_pmix() -> bool {
    std::fs::read_to_string("/proc/self/maps").is_ok_and(|maps| maps.contains("/libpmix.so"))
}

/// `Open MPI v5.0.7`, `MPICH Version: 5.0.2`: the first words of what a library says of itself.
pub fn short(library: &str) -> String {
    let line = library.lines().next().unwrap_or_default();
    line.split(',').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `24.11.5` of `slurm 24.11.5`, `slurm-wlm 22.05.8`.
fn version(said: &str) -> String {
    said.split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or("of unknown version")
        .to_string()
}

/// The number in `TreeWidth               = 50`.
fn tree_width(config: &str) -> Option<usize> {
    let mut keys = config.lines().filter_map(|l| l.split_once('='));
    keys.find(|(key, _)| key.trim() == "TreeWidth")?.1.trim().parse().ok()
}

/// The names in what `srun --mpi=list` prints: one a line, and the versions of pmix after a colon.
fn plugins(list: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in list.lines().map(|l| l.trim().trim_start_matches("srun:").trim()) {
        let names = match line.split_once("available:") {
            Some((_, versions)) => versions,
            None if line.contains(' ') => continue,
            None => line,
        };
        for name in names.split([',', ' ']).filter(|n| !n.is_empty()) {
            if !found.iter().any(|f| f == name) {
                found.push(name.to_string());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Slurm 22.05, 24.11 and 26.05 print them.
    const OLD: &str = "MPI plugin types are...\n\tcray_shasta\n\tnone\n\tpmi2\n\tpmix\nspecific pmix plugin versions available: pmix_v4\n";
    const NEW: &str = "MPI plugin types are...\n\tcray_shasta\n\tnone\n\tpmi2\n";

    fn site(list: &str) -> Site {
        Site { version: "24.11.5".into(), plugins: plugins(list), ..Default::default() }
    }

    #[test]
    fn releases() {
        let requeues = |version: &str| Site { version: version.into(), ..Default::default() }.requeues_preempted();
        assert!(requeues("24.05.0") && requeues("24.11.5") && requeues("26.05"));
        let leaves = |version: &str| Site { version: version.into(), ..Default::default() }.leaves_steps();
        assert!(leaves("22.05.8") && leaves("24.05.4") && !leaves("24.11.5") && !leaves("of unknown version"));
        assert!(!requeues("23.11.10") && !requeues("22.05.8") && !requeues("of unknown version"));
    }

    #[test]
    fn the_list_of_plugins() {
        assert_eq!(plugins(OLD), ["cray_shasta", "none", "pmi2", "pmix", "pmix_v4"]);
        assert_eq!(plugins(NEW), ["cray_shasta", "none", "pmi2"]);
        assert!(plugins("").is_empty());
        let config = "SlurmctldPort           = 6817\nTreeWidth               = 16\nUnkillableStepTimeout   = 60 sec\n";
        assert_eq!((tree_width(config), tree_width("")), (Some(16), None));
    }

    #[test]
    fn each_mpi_takes_the_plugin_that_it_can_use() {
        let (open4, open5, mpich) =
            ("Open MPI v4.1.4, package: x", "Open MPI v5.0.7", "MPICH Version:      5.0.2\nMPICH");
        let chosen = |list, wanted, library| site(list).plugin(wanted, library);
        assert_eq!(chosen(OLD, "auto", open4).unwrap(), "pmix");
        assert_eq!(chosen(OLD, "auto", open5).unwrap(), "pmix");
        assert_eq!(chosen(OLD, "pmix_v4", open5).unwrap(), "pmix_v4");
        assert_eq!(chosen(NEW, "auto", open4).unwrap(), "pmi2");
        assert_eq!(chosen(NEW, "auto", mpich).unwrap(), "pmi2");
        assert_eq!(chosen(OLD, "auto", "MPI VERSION    : CRAY MPICH version 8.1.29").unwrap(), "cray_shasta");
        assert_eq!(
            (chosen("", "auto", open5).unwrap(), chosen("", "pmi2", open5).unwrap()),
            ("pmix".into(), "pmi2".into())
        );
        assert_eq!((version("slurm-wlm 22.05.8\n"), version("slurm 24.11.5")), ("22.05.8".into(), "24.11.5".into()));
        assert_eq!(version(""), "of unknown version");
        assert_eq!(chosen(OLD, "pmi2", "Intel(R) MPI Library 2021.13").unwrap(), "pmi2");
        for (list, wanted, library, words) in [
            (NEW, "auto", open5, "built with Open MPI v5.0.7, whose ranks find each other under srun by pmix; Slurm 24.11.5 has cray_shasta, none, pmi2"),
            (NEW, "pmix", open5, "launch.mpi is pmix; "),
            (OLD, "pmi2", open5, "launch.mpi is pmi2; "),
            (OLD, "none", open4, "launch.mpi is none; "),
            ("none", "auto", mpich, "built with MPICH Version: 5.0.2, whose ranks find each other under srun by "),
        ] {
            let e = chosen(list, wanted, library).unwrap_err();
            assert!(e.exit == Exit::World && e.to_string().contains(words), "{e}");
        }
        let e = chosen(OLD, "pmi2", open5).unwrap_err();
        assert!(e.to_string().contains("launch.mpi: auto"), "{e}");
    }
}
