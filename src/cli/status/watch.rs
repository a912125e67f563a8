//! `herd status --watch`: the same on a terminal again and again, with the loss as a line of blocks; without a terminal, a plain
//! line whenever something is new.

use super::{human, span, step, Args};
use crate::error::Result;
use crate::launch::follow::RunFollower;
use crate::launch::status::{RunState, RunStatus};
use crate::report::decimate::Decimator;
use jiff::Timestamp;
use std::io::IsTerminal;
use std::time::Duration;

/// Columns of the line of blocks, at most.
const WIDEST: usize = 100;

struct Watched {
    follower: RunFollower,
    loss: Decimator,
}

impl Watched {
    fn open(args: &Args) -> Result<Watched> {
        Ok(Watched { follower: RunFollower::open(&args.run)?, loss: Decimator::new(&["loss"], 2 * WIDEST) })
    }

    fn look(&mut self, args: &Args) -> Result<RunStatus> {
        if self.follower.is_stale() {
            *self = Watched::open(args)?;
        }
        let loss = &mut self.loss;
        self.follower.look(Timestamp::now(), &mut |p| loss.add(p.step, &[p.loss]))
    }
}

/// Shows a run until it has ended.
pub fn watch(args: &Args) -> Result<()> {
    let mut watched = Watched::open(args)?;
    let terminal = std::io::stdout().is_terminal();
    let mut said = String::new();
    loop {
        let s = watched.look(args)?;
        match terminal {
            true => super::super::print(&screen(args, &s, &watched))?,
            false => {
                let line = line(&s);
                if line != said {
                    super::super::print(&format!("{} {line}\n", Timestamp::now().strftime("%F %T")))?;
                    said = line;
                }
            }
        }
        if matches!(s.state, RunState::Finished | RunState::Stopped) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(args.every));
    }
}

/// The whole screen, drawn over the last one; what is longer than the terminal is cut, and said.
fn screen(args: &Args, s: &RunStatus, watched: &Watched) -> String {
    let (columns, rows) = size().unwrap_or((80, 24));
    let means = watched.loss.means("loss");
    let mut text = human(args, s);
    if let Some(blocks) = blocks(&means, columns.saturating_sub(12).clamp(8, WIDEST)) {
        let (least, most) = ends(&means);
        let line = format!("loss      {blocks}\n          {most:.4} at the top, {least:.4} at the bottom\n");
        // below the line of the step
        let at = text.match_indices('\n').nth(2).map_or(text.len(), |(i, _)| i + 1);
        text.insert_str(at, &line);
    }
    for note in watched.follower.notes() {
        text += &format!("note      {note}\n");
    }
    let mut lines: Vec<String> = text.lines().map(|l| l.chars().take(columns).collect()).collect();
    if lines.len() >= rows && rows > 2 {
        let more = lines.len() - (rows - 2);
        lines.truncate(rows - 2);
        lines.push(format!("and {more} lines: herd status shows all"));
    }
    format!("\x1b[H{}\x1b[J", lines.iter().map(|l| format!("{l}\x1b[K\n")).collect::<String>())
}

/// One line for a log.
fn line(s: &RunStatus) -> String {
    let state = format!("{:?}", s.state).to_lowercase();
    let faults = if s.faults.is_empty() { String::new() } else { format!(", {} faults", s.faults.len()) };
    let left = s.step_s.filter(|_| s.state == RunState::Running).map(|t| t * s.steps.saturating_sub(s.step) as f64);
    let left = left.map_or(String::new(), |t| format!(", {} to go", span(t)));
    // without what changes by the clock alone
    let still = RunStatus { since_last_step_s: None, step_s: None, ..s.clone() };
    format!("{state}: step {}{left}{faults}", step(&still))
}

fn ends(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), x| (lo.min(*x), hi.max(*x)))
}

/// Values as blocks of eight heights, `width` of them at most: neighbours are averaged.
fn blocks(values: &[f64], width: usize) -> Option<String> {
    if values.is_empty() {
        return None;
    }
    let n = values.len().min(width);
    let mean = |i: usize| {
        let part = &values[i * values.len() / n..(i + 1) * values.len() / n];
        part.iter().sum::<f64>() / part.len() as f64
    };
    let means: Vec<f64> = (0..n).map(mean).collect();
    let (least, most) = ends(&means);
    let height = |x: f64| match most - least {
        d if d > 0.0 => (((x - least) / d) * 7.0).round() as usize,
        _ => 0,
    };
    Some(means.iter().map(|x| ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][height(*x).min(7)]).collect())
}

/// Columns and rows of the terminal.
fn size() -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize and nothing else.
    let asked = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    (asked == 0 && size.ws_col > 0).then_some((size.ws_col as usize, size.ws_row as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_go_from_the_least_to_the_most() {
        assert_eq!(blocks(&[8.0, 4.5, 1.0], 80).unwrap(), "█▅▁");
        assert_eq!(blocks(&[2.0; 5], 3).unwrap(), "▁▁▁");
        assert_eq!(blocks(&(0..1000).map(f64::from).collect::<Vec<_>>(), 8).unwrap(), "▁▂▃▄▅▆▇█");
        assert_eq!(blocks(&[], 8), None);
    }

    #[test]
    fn a_plain_line_says_what_a_log_needs() {
        let s = RunStatus {
            state: RunState::Running,
            step: 5,
            steps: 10,
            loss: Some(2.0),
            tokens_per_s: Some(100.0),
            step_s: Some(3.0),
            ..Default::default()
        };
        assert_eq!(line(&s), "running: step 5 of 10 (50.0%), loss 2.0000, 100 tokens/s, 15.0 s to go");
    }
}
