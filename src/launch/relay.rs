//! What the ranks and srun print, on its way to the job's log. MPI and the libraries under it print while the ranks find each
//! other, each rank the same: UCX with "failed to get boot id" on hosts without one, and others. Until the ranks have met, such
//! a line goes into the log once, and the rest are counted.

use crate::text::whole_lines;
use std::collections::HashMap;
use std::io::Write;

/// Lines on their way.
#[derive(Default)]
pub struct Relay {
    /// The beginning of a line whose end has not come.
    part: Vec<u8>,
    /// Lines of libraries, without their numbers, and how often each came after the first time.
    seen: HashMap<String, u64>,
    met: bool,
}

impl Relay {
    /// Writes what is new to `log` and gives the whole lines back. A log that cannot be written changes nothing.
    pub fn pass(&mut self, bytes: &[u8], log: &mut impl Write) -> Vec<String> {
        self.part.extend_from_slice(bytes);
        let whole = whole_lines(&mut self.part);
        let lines: Vec<String> = String::from_utf8_lossy(&whole).lines().map(str::to_string).collect();
        match self.met {
            true => drop(log.write_all(&whole)),
            false => lines.iter().filter(|line| self.is_new(line)).for_each(|line| drop(writeln!(log, "{line}"))),
        }
        lines
    }

    /// The ranks have met, or the step has ended: from here on everything is passed on. Says how much was left out.
    pub fn met(&mut self, log: &mut impl Write) {
        if std::mem::replace(&mut self.met, true) {
            return;
        }
        let again: u64 = self.seen.values().sum();
        if again > 0 {
            let kinds = self.seen.values().filter(|n| **n > 0).count();
            let _ = writeln!(
                log,
                "herd: {again} more lines of {kinds} kinds that are in the log above came from other ranks' libraries"
            );
        }
        self.seen.clear();
    }

    /// What is left of a line that nobody will end.
    pub fn finish(&mut self, log: &mut impl Write) {
        self.met(log);
        let _ = log.write_all(&std::mem::take(&mut self.part));
    }

    fn is_new(&mut self, line: &str) -> bool {
        if is_ours(line) {
            return true;
        }
        let shape: String = line.chars().map(|c| if c.is_ascii_hexdigit() { '0' } else { c }).collect();
        let before = self.seen.get_mut(&shape);
        match before {
            Some(again) => *again += 1,
            None => {
                self.seen.insert(shape, 0);
                return true;
            }
        }
        false
    }
}

/// Lines of herd, srun and slurmstepd, each of which tells something of its own.
fn is_ours(line: &str) -> bool {
    let stamp = line.len() > 8
        && line.as_bytes()[..8].iter().enumerate().all(|(i, b)| match i {
            2 | 5 => *b == b':',
            _ => b.is_ascii_digit(),
        });
    stamp || line.contains("herd: ") || line.starts_with("srun") || line.starts_with("slurmstepd")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(relay: &mut Relay, text: &str) -> (String, usize) {
        let mut log = Vec::new();
        let lines = relay.pass(text.as_bytes(), &mut log).len();
        (String::from_utf8(log).unwrap(), lines)
    }

    const UCX: [&str; 2] = [
        "[1732816374.101234] [herd1:48   :0]  sys.c:1021 UCX  ERROR failed to get boot id\n",
        "[1732816374.211235] [herd2:51   :0]  sys.c:1021 UCX  ERROR failed to get boot id\n",
    ];

    #[test]
    fn what_every_rank_s_libraries_print_is_printed_once_and_counted() {
        let mut relay = Relay::default();
        assert_eq!(passed(&mut relay, UCX[0]), (UCX[0].to_string(), 1));
        assert_eq!(passed(&mut relay, UCX[1]), (String::new(), 1), "told to those who read, not printed");
        let ours = "12:00:01  INFO step\n12:00:02  INFO step\nsrun: error: n1: task 0: Killed\nsrun: error: n2: task 1: Killed\n";
        assert_eq!(passed(&mut relay, ours).0, ours);
        let mut log = Vec::new();
        relay.met(&mut log);
        relay.met(&mut log);
        assert_eq!(String::from_utf8(log).unwrap().matches("1 more lines of 1 kinds").count(), 1);
        assert_eq!(passed(&mut relay, UCX[1]).0, UCX[1], "later it is news");
    }

    #[test]
    fn lines_come_whole_and_the_last_part_is_not_lost() {
        let mut relay = Relay::default();
        assert_eq!(passed(&mut relay, "a li"), (String::new(), 0));
        assert_eq!(passed(&mut relay, "ne\nand"), ("a line\n".into(), 1));
        let mut log = Vec::new();
        relay.finish(&mut log);
        assert_eq!(log, b"and");
    }
}
