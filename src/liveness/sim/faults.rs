//! What the watches make of every fault, for many seeds.

use super::*;

/// Three intervals and a second, less what writing the file takes.
fn bound(interval_s: f64) -> u64 {
    (3000.0 * interval_s) as u64 + 800
}

#[test]
fn undisturbed_runs_have_no_verdict() {
    for (nodes, per_node) in [(1, 1), (1, 4), (2, 1), (3, 2), (5, 3)] {
        for interval in [0.2, 1.0, 5.0] {
            let mut sim = Sim::new(nodes, per_node, interval, 1);
            sim.run((200_000.0 * interval) as u64);
            assert_eq!(sim.verdicts, [], "{nodes} × {per_node} at {interval} s");
        }
    }
}

#[test]
fn a_silent_rank_is_named_alone_and_in_time() {
    for interval in [0.2, 1.0, 5.0] {
        for rank in 0..6 {
            for seed in 0..20 {
                let mut sim = Sim::new(3, 2, interval, seed);
                let at = 20_000 + sim.random((4000.0 * interval) as u64);
                sim.run(at);
                sim.each(&[rank], |p| p.stopped = true);
                let (took, v) = sim.outcome();
                assert_eq!((v.reason, &v.ranks[..], v.whole_node), (Reason::MissedProbes, &[rank][..], false), "{v:?}");
                assert!(took <= bound(interval), "{took} ms at {interval} s, rank {rank}");
                assert!(took as f64 > 2000.0 * interval, "{took} ms at {interval} s: too early");
                assert_eq!(sim.verdicts.len(), 1);
                sim.all_leave_within(500);
            }
        }
    }
}

#[test]
fn stopped_for_two_intervals_is_no_fault() {
    for interval in [0.2, 1.0, 5.0] {
        for rank in 0..6 {
            for seed in 0..10 {
                let mut sim = Sim::new(3, 2, interval, seed);
                let at = 20_000 + sim.random((4000.0 * interval) as u64);
                for pause in [at, 30_000, 30_000] {
                    sim.run(pause);
                    sim.each(&[rank], |p| p.stopped = true);
                    sim.run((2000.0 * interval) as u64);
                    sim.each(&[rank], |p| p.stopped = false);
                }
                sim.run(60_000);
                assert_eq!(sim.verdicts, [], "rank {rank} at {interval} s");
            }
        }
    }
}

#[test]
fn a_lost_node_is_one_verdict_with_all_its_ranks() {
    for (node, cut) in [(0, false), (1, false), (2, false), (0, true), (1, true), (2, true)] {
        for seed in 0..20 {
            let mut sim = Sim::new(4, 3, 1.0, seed);
            let at = 20_000 + sim.random(4000);
            sim.run(at);
            let ranks: Vec<usize> = (3 * node..3 * node + 3).collect();
            match cut {
                true => _ = sim.cut.insert(node),
                false => sim.each(&ranks, |p| p.dead = true),
            }
            let (took, v) = sim.outcome();
            assert_eq!((v.reason, &v.ranks, v.whole_node), (Reason::MissedProbes, &ranks, true), "{v:?}");
            assert_eq!(v.nodes, [format!("n{node}")]);
            assert!(took <= bound(1.0), "{took} ms");
            if !cut {
                assert_eq!(sim.verdicts.len(), 1);
                sim.all_leave_within(500);
            }
            // The side that was cut off leaves too.
            assert!(sim.processes.iter().all(|p| p.dead || p.left.is_some()));
        }
    }
}

#[test]
fn of_two_nodes_without_a_third_opinion_the_monitor_s_side_counts() {
    let mut sim = Sim::new(2, 2, 1.0, 3);
    sim.run(20_000);
    sim.cut.insert(1);
    let (_, v) = sim.outcome();
    assert_eq!((v.accuser, v.ranks), (0, vec![2, 3]));
}

#[test]
fn two_nodes_at_once_are_both_named_or_suspected() {
    let mut both = 0;
    for seed in 0..40 {
        let mut sim = Sim::new(5, 2, 1.0, seed);
        let at = 20_000 + sim.random(4000);
        sim.run(at);
        sim.each(&[4, 5, 8, 9], |p| p.dead = true);
        let (_, v) = sim.outcome();
        both += (v.ranks == [4, 5, 8, 9]) as u32;
        let mut all: Vec<usize> = v.ranks.iter().copied().chain(v.evidence.suspects.iter().map(|s| s.rank)).collect();
        all.sort();
        assert!(all.starts_with(&[4]) && all.iter().all(|r| [4, 5, 8, 9].contains(r)) && all.contains(&8), "{v:?}");
        sim.all_leave_within(500);
    }
    println!("{both} of 40 named both");
}

/// Three nodes, one cut off: the two that hear each other are right, whichever it is.
#[test]
fn of_three_nodes_the_one_cut_off_is_named() {
    for node in 0..3 {
        for seed in 0..20 {
            let mut sim = Sim::new(3, 2, 1.0, seed);
            let at = 20_000 + sim.random(4000);
            sim.run(at);
            sim.cut.insert(node);
            let (_, v) = sim.outcome();
            assert_eq!(v.ranks, [2 * node, 2 * node + 1], "{:?}", sim.verdicts);
        }
    }
}

/// Nobody who judges is left: every node decides for itself.
#[test]
fn monitor_and_deputy_lost_together() {
    for seed in 0..20 {
        let mut sim = Sim::new(4, 2, 1.0, seed);
        let at = 20_000 + sim.random(4000);
        sim.run(at);
        sim.each(&[0, 1, 2, 3], |p| p.dead = true);
        let (took, v) = sim.outcome();
        assert_eq!(v.ranks, [0, 1, 2, 3], "{v:?}");
        assert!(took <= bound(1.0) + 2000, "{took}");
        sim.all_leave_within(1500);
    }
}

#[test]
fn a_process_that_ended_is_told_at_once() {
    for (dead, witness) in [(1, 0), (3, 2), (2, 3), (0, 1)] {
        let mut sim = Sim::new(3, 2, 5.0, 1);
        sim.run(21_000);
        sim.each(&[dead], |p| p.dead = true);
        let now = Duration::from_millis(sim.now + sim.processes[witness].offset);
        let actions = sim.processes[witness].watch.as_mut().unwrap().died(now, dead);
        actions.into_iter().for_each(|a| sim.act(witness, a));
        let (took, v) = sim.outcome();
        assert_eq!((v.reason, v.ranks), (Reason::Signal, vec![dead]));
        assert!(took <= 400, "{took} ms");
        sim.all_leave_within(500);
    }
}

/// Everything stands still for a minute (a suspended host, a debugger): on waking nobody accuses anybody.
#[test]
fn a_process_that_slept_accuses_nobody() {
    for seed in 0..20 {
        let mut sim = Sim::new(3, 2, 1.0, seed);
        sim.run(20_000);
        let all: Vec<usize> = (0..6).collect();
        sim.each(&all, |p| p.stopped = true);
        sim.run(60_000);
        for r in all {
            sim.each(&[r], |p| p.stopped = false);
            let gap = sim.random(400);
            sim.run(gap);
        }
        sim.run(60_000);
        assert_eq!(sim.verdicts, []);
    }
}

#[test]
fn a_late_start_is_no_fault_and_a_missing_one_is() {
    let mut sim = Sim::new(3, 2, 1.0, 5);
    sim.processes[3].starts = 20_000;
    sim.processes[4].starts = 25_000;
    sim.run(60_000);
    assert_eq!(sim.verdicts, []);
    let mut sim = Sim::new(3, 2, 1.0, 5);
    sim.processes[3].starts = u64::MAX;
    sim.run(60_000);
    assert_eq!(sim.verdicts[0].1.ranks, [3]);
}

/// The monitor's cost for 2,048 nodes with 8 ranks each, by the code that runs: what it hears and answers in a round.
#[test]
fn a_monitor_of_2048_nodes_has_little_to_do() {
    use std::time::Instant;
    let (nodes, per_node) = (2048, 8);
    let config = LivenessSection::default();
    let mut watch = Watch::new(grid(0, nodes, per_node), ProbeTiming::new(&config), Duration::ZERO);
    let report = |node: usize, round: u64| {
        let probe = |i: usize| Probe {
            rank: (node * per_node + i) as u32,
            step: round,
            own_us: 900_000 + (node * 7919 % 1000) as u32,
            ..Default::default()
        };
        Message::Report((0..per_node).map(probe).collect()).encode(2)
    };
    let (mut busy, mut heard, mut bytes) = (Duration::ZERO, 0, 0);
    let rounds = 20;
    for round in 0..rounds {
        let inbox: Vec<Vec<u8>> = (1..nodes).map(|n| report(n, round)).collect();
        let start = Duration::from_secs(5 * round);
        let began = Instant::now();
        for (i, raw) in inbox.iter().enumerate() {
            let now = start + Duration::from_millis(2 * i as u64);
            let message = Message::decode(2, raw).unwrap();
            for action in watch.hear(now, (i + 1) * per_node, message) {
                let WatchAction::Send { message, .. } = action else { panic!("{action:?}") };
                bytes += message.encode(2).len() + raw.len();
                heard += 1;
            }
        }
        for poll in 0..100 {
            let now = start + Duration::from_millis(50 * poll);
            let own = (0..per_node).map(|r| (r, Probe { rank: r as u32, step: round, ..Default::default() }));
            own.skip(1).for_each(|(r, p)| _ = watch.hear(now, r, Message::Probe(p)));
            let actions = watch.tick(now, Probe { step: round, ..Default::default() });
            assert!(actions.is_empty(), "{actions:?}");
        }
        busy += began.elapsed();
    }
    assert_eq!(heard, rounds as usize * (nodes - 1));
    let share = busy.as_secs_f64() / (rounds as f64 * config.interval_s);
    println!(
        "2,048 nodes × 8 ranks at 5 s: monitor busy {:.2} ms a round, {:.3}% of a core, {:.0} kB/s of messages",
        1e3 * busy.as_secs_f64() / rounds as f64,
        100.0 * share,
        bytes as f64 / (rounds as f64 * config.interval_s) / 1e3
    );
    assert!(share < 0.05, "{share}");
}
