//! Graphics cards, asked of the driver's own program. Where there is no driver nothing is asked.

use crate::doctor::facts::GpuFacts;
use crate::slurm::process::{command, output};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
/// `nvidia-smi --help-query-gpu`.
const FIELDS: &str = "index,name,memory.total,memory.free,ecc.errors.uncorrected.volatile.total,clocks_throttle_reasons.active,power.limit,power.default_limit,persistence_mode";

/// `None` without a driver; an error where it does not answer.
pub fn all() -> Option<Result<Vec<GpuFacts>, String>> {
    if !Path::new("/proc/driver/nvidia/version").exists() {
        return None;
    }
    let query = [format!("--query-gpu={FIELDS}"), "--format=csv,noheader,nounits".into()];
    Some(output(command("nvidia-smi", &query), LIMIT).map_err(|e| e.to_string()).and_then(|text| parse(&text)))
}

fn parse(text: &str) -> Result<Vec<GpuFacts>, String> {
    text.lines().filter(|l| !l.trim().is_empty()).map(card).collect()
}

/// A line of [`FIELDS`]; `[N/A]`, `[Not Supported]` where a card does not have one.
fn card(line: &str) -> Result<GpuFacts, String> {
    let words: Vec<&str> = line.split(',').map(str::trim).collect();
    let odd = || format!("nvidia-smi says {line:?}, where {FIELDS} were asked for");
    let [index, name, total, free, ecc, throttled, power, power_default, persistent] = words[..] else {
        return Err(odd());
    };
    Ok(GpuFacts {
        index: index.parse().map_err(|_| odd())?,
        name: name.to_string(),
        memory_total: total.parse().map_err(|_| odd())?,
        memory_free: free.parse().map_err(|_| odd())?,
        uncorrected: ecc.parse().ok(),
        throttled: u64::from_str_radix(throttled.trim_start_matches("0x"), 16).unwrap_or(0),
        power_limit: power.parse().ok(),
        power_default: power_default.parse().ok(),
        persistent: persistent == "Enabled",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_nvidia_smi() {
        let text = "0, NVIDIA H100 80GB HBM3, 81559, 80994, 0, 0x0000000000000008, 500.00, 700.00, Disabled\n\
                    1, Tesla T4, 15360, 15000, [N/A], 0x0000000000000000, [N/A], [N/A], Enabled\n";
        let cards = parse(text).unwrap();
        assert_eq!((cards[0].throttled, cards[0].power_limit, cards[0].persistent), (8, Some(500.0), false));
        assert_eq!((cards[1].uncorrected, cards[1].memory_free, cards[1].index), (None, 15000, 1));
        assert!(parse("No devices were found").unwrap_err().contains("No devices"));
    }
}
