//! Which wire carries the tensors of a run: decided once, from what every rank sees of its device.

use crate::error::{Error, Exit, Result};
use crate::threads::lock;
use crate::wire::nccl;
use crate::wire::route::Route;
use crate::world::World;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Mutex;
use tch::Device;

/// What moves tensors between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// MPI, tensors on the host.
    Host(Route),
    /// NCCL, tensors on this CUDA device, which no other rank uses.
    Nccl(Device),
    /// MPI with copies to and from the host, tensors on this device, which other ranks may use.
    Staged(Device, Route),
}

/// Names the wire of CUDA tensors: `nccl` or `staged`; unset, herd chooses.
const VARIABLE: &str = "HERD_WIRE";

/// What one rank says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Facts {
    host: String,
    /// Tells CUDA devices of a host apart, whatever each process calls them (PCI bus id); `None` for the CPU.
    device: Option<String>,
    /// NCCL's version code, or why there is none.
    nccl: std::result::Result<i32, String>,
    wanted: Option<String>,
}

/// What all ranks use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Host,
    Nccl,
    Staged,
}

/// This process's choice: it has one device and one MPI world.
static CHOSEN: Mutex<Backend> = Mutex::new(Backend::Host(Route::Fastest));

/// What moves the tensors of wires made from now on: MPI on the host until [`use_device`].
pub fn chosen() -> Backend {
    *lock(&CHOSEN)
}

/// Chooses how wires made from now on carry tensors of `device`, this rank's: MPI for the CPU, NCCL where every rank
/// has a CUDA device of its own, MPI with staging where ranks share one. Collective.
///
/// Errors, the same on every rank: [`Exit::Device`] when NCCL is needed and not found, in different versions, or
/// ranks are on different kinds of device.
pub fn use_device(world: &World, device: Device) -> Result<Backend> {
    let mine = Facts {
        host: world.host().to_string(),
        device: match device {
            Device::Cuda(i) => Some(nccl::bus_id(i).unwrap_or_else(|e| format!("{i} (no PCI bus id: {})", e.fact))),
            _ => None,
        },
        nccl: match device {
            Device::Cuda(_) => nccl::version().map_err(|e| e.fact),
            _ => Err("not asked for".into()),
        },
        wanted: std::env::var(VARIABLE).ok(),
    };
    let packed = serde_json::to_vec(&mine).map_err(|e| Error::new(Exit::Internal, e.to_string()))?;
    let all = world.gather_bytes(&packed, 0)?.unwrap_or_default();
    let kind = world.from_first(|| {
        let all: std::result::Result<Vec<Facts>, _> = all.iter().map(|b| serde_json::from_slice(b)).collect();
        let all = all.map_err(|e| Error::new(Exit::Internal, format!("facts about devices: {e}")))?;
        let kind = choose(&all)?;
        if let (Kind::Staged, Some(words)) = (kind, shared(&all)) {
            tracing::warn!(
                "{words}: tensors go through host memory, which is slow; give every rank a device of its own"
            );
        }
        Ok(kind)
    })?;
    let backend = match kind {
        Kind::Host => Backend::Host(Route::Fastest),
        Kind::Nccl => Backend::Nccl(device),
        Kind::Staged => Backend::Staged(device, Route::Fastest),
    };
    *lock(&CHOSEN) = backend;
    Ok(backend)
}

fn choose(all: &[Facts]) -> Result<Kind> {
    let fail = |fact: String, hint: &str| Err(Error::new(Exit::Device, fact).hint(hint));
    let on_cpu = all.iter().filter(|f| f.device.is_none()).count();
    if on_cpu == all.len() {
        return Ok(Kind::Host);
    }
    if on_cpu > 0 {
        let fact = format!("{on_cpu} of {} ranks are on the CPU, the others on CUDA devices", all.len());
        return fail(fact, "ask Slurm for the same GPUs on every node, or set train.device=cpu");
    }
    let wanted = all[0].wanted.as_deref();
    if let Some(odd) = all.iter().position(|f| f.wanted.as_deref() != wanted) {
        let fact = format!("{VARIABLE} is {:?} on rank 0 and {:?} on rank {odd}", all[0].wanted, all[odd].wanted);
        return fail(fact, "export it in the batch script, before srun");
    }
    match (wanted, shared(all)) {
        (Some("staged"), _) => return Ok(Kind::Staged),
        (None, Some(_)) => return Ok(Kind::Staged),
        (Some("nccl"), Some(words)) => {
            return fail(format!("{VARIABLE}=nccl, but {words}, which NCCL refuses"), "unset it, or use more devices")
        }
        (Some("nccl") | None, None) => {}
        (Some(other), _) => return fail(format!("{VARIABLE}={other}"), "use nccl or staged, or unset it"),
    }
    // One rank starts no collective.
    if all.len() == 1 {
        return Ok(Kind::Staged);
    }
    if let Some((rank, why)) = all.iter().enumerate().find_map(|(r, f)| Some((r, f.nccl.as_ref().err()?))) {
        return fail(
            format!("rank {rank} ({}) has no NCCL that herd can use: {why}", all[rank].host),
            "load NCCL 2.14 or newer (libnccl.so.2 beside libtorch or in LD_LIBRARY_PATH), or set HERD_WIRE=staged",
        );
    }
    if let Some(odd) = all.iter().position(|f| f.nccl != all[0].nccl) {
        let code = |r: usize| all[r].nccl.as_ref().copied().unwrap_or(0);
        return fail(
            format!("NCCL is {} on rank 0 and {} on rank {odd} ({})", code(0), code(odd), all[odd].host),
            "load the same libtorch and NCCL modules on every node",
        );
    }
    Ok(Kind::Nccl)
}

/// Words for ranks that are on one device, if any are.
fn shared(all: &[Facts]) -> Option<String> {
    let mut seen = BTreeMap::new();
    for (rank, f) in all.iter().enumerate() {
        let device = f.device.as_ref()?;
        if let Some(other) = seen.insert((&f.host, device), rank) {
            return Some(format!("ranks {other} and {rank} share device {device} of {}", f.host));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(host: &str, device: &str) -> Facts {
        Facts { host: host.into(), device: Some(device.into()), nccl: Ok(22809), wanted: None }
    }

    fn cpu() -> Facts {
        Facts { host: "a".into(), device: None, nccl: Err("not asked for".into()), wanted: None }
    }

    #[test]
    fn the_carrier_follows_from_devices() {
        assert_eq!(choose(&[cpu(), cpu()]).unwrap(), Kind::Host);
        assert_eq!(choose(&[on("a", "01"), on("a", "02"), on("b", "01")]).unwrap(), Kind::Nccl);
        assert_eq!(choose(&[on("a", "01"), on("a", "02"), on("a", "02")]).unwrap(), Kind::Staged);
        assert_eq!(choose(&[Facts { nccl: Err("none".into()), ..on("a", "01") }]).unwrap(), Kind::Staged);
    }

    #[test]
    fn what_cannot_work_is_said_with_its_numbers() {
        let says = |all: &[Facts], words: &[&str]| {
            let e = choose(all).unwrap_err();
            assert!(e.exit == Exit::Device && e.hint.is_some(), "{e}");
            words.iter().for_each(|w| assert!(e.to_string().contains(w), "{e}"));
        };
        says(&[cpu(), on("a", "01")], &["1 of 2 ranks"]);
        let missing = Facts { nccl: Err("libnccl.so.2: not found".into()), ..on("b", "01") };
        says(&[on("a", "01"), missing], &["rank 1 (b)", "libnccl.so.2: not found", "HERD_WIRE=staged"]);
        says(&[on("a", "01"), Facts { nccl: Ok(21805), ..on("b", "01") }], &["22809", "21805", "rank 1"]);
        let want = |w: &str, f: Facts| Facts { wanted: Some(w.into()), ..f };
        says(&[want("nccl", on("a", "01")), want("nccl", on("a", "01"))], &["ranks 0 and 1 share device 01 of a"]);
        says(&[want("smoke", on("a", "01")), want("smoke", on("a", "02"))], &["HERD_WIRE=smoke"]);
        says(&[want("nccl", on("a", "01")), on("a", "02")], &["rank 1"]);
        let staged = [want("staged", on("a", "01")), want("staged", on("a", "02"))];
        assert_eq!(choose(&staged).unwrap(), Kind::Staged);
    }
}
