//! Slots in memory: whole or visibly not, whatever happens to the process or to the bytes.

use crate::checkpoint::tests::{meta, names, random};
use crate::checkpoint::{Group, Slice, Spec};
use crate::error::{Exit, Result};
use crate::tiers::snapshot::image::SnapshotReader;
use crate::tiers::snapshot::inventory::SnapshotEntry;
use crate::tiers::snapshot::near::LocalPartner;
use crate::tiers::snapshot::place::SnapshotDir;
use crate::tiers::snapshot::slot::{Header, Owner, Slot, PAGE};
use crate::tiers::snapshot::table::{Table, BLOCK};
use crate::tiers::snapshot::SlotRing;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const DIR: &str = "HERD_TEST_SLOTS";
const STOP_AT: &str = "HERD_TEST_SLOTS_STOP_AT";
const OWNER: Owner = Owner { run: 3, session: 5, attempt: 1, rank: 0, world: 1, layout: 9 };

/// Slices of odd sizes, one of them of several blocks.
fn table() -> Arc<Table> {
    let shapes: [(&str, Vec<usize>); 3] = [("a", vec![3, 11]), ("b", vec![5 * BLOCK / 8 + 3]), ("c", vec![1])];
    let specs = shapes.iter().flat_map(|(name, shape)| {
        Group::ALL.map(|group| Spec { group, name: name.to_string(), span: Slice::whole(shape) })
    });
    Arc::new(Table::new(specs.collect()).unwrap())
}

/// What slice `i` holds at `step`.
fn data(table: &Table, i: usize, step: u64) -> Vec<f32> {
    (0..table.specs[i].span.len).map(|j| (step * 1000 + i as u64 * 37 + j as u64 % 997) as f32).collect()
}

fn place(dir: &Path) -> SnapshotDir {
    SnapshotDir { dir: dir.into(), run: OWNER.run }
}

fn open(dir: &Path, i: usize) -> Slot {
    Slot::open(&place(dir).own(0, i), table(), 4096).unwrap()
}

fn write(slot: &mut Slot, step: u64, mut before: impl FnMut(usize)) -> Result<()> {
    let table = slot.table().clone();
    slot.write(&OWNER, &meta(step), &mut |take| {
        for i in 0..table.specs.len() {
            before(i);
            take(&[(i, &data(&table, i, step))]);
        }
        before(table.specs.len());
        Ok(())
    })
}

/// Steps in `dir` that are whole to the last byte. Content that is not its step's fails the test.
fn whole(dir: &Path) -> Vec<u64> {
    let mut steps = Vec::new();
    for found in place(dir).scan().unwrap() {
        let entry = SnapshotEntry { header: found.header, leader: 0, item: 0, partner: 0 };
        let read = || -> Result<()> {
            let mut image = SnapshotReader::open(entry, Some(&found.path), None)?;
            assert_eq!(image.meta.step, entry.header.step);
            for i in 0..image.table.specs.len() {
                let expected = data(&image.table, i, image.meta.step);
                let mut got = vec![0.0; expected.len()];
                image.elements(i, 0, &mut got)?;
                assert!(got == expected, "slice {i} of step {} holds something else", image.meta.step);
            }
            Ok(())
        };
        match read() {
            Ok(()) => steps.push(entry.header.step),
            Err(e) => assert_eq!(e.exit, Exit::Checkpoint, "{e}"),
        }
    }
    steps.sort_unstable();
    steps
}

fn child(test: &str, dir: &Path) -> Command {
    let mut c = Command::new(std::env::current_exe().unwrap());
    let name = format!("tiers::tests::{test}");
    c.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(DIR, dir);
    c.stdout(Stdio::null()).stderr(Stdio::null());
    c
}

/// What a rank of the same node takes out of a slot is the slot, byte for byte; whatever byte has changed since is named.
#[test]
fn a_copy_within_the_node_is_whole_or_says_what_is_wrong() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut slots = [open(dir.path(), 0), open(dir.path(), 1)];
    write(&mut slots[0], 6, |_| ()).unwrap();
    write(&mut slots[1], 7, |_| ()).unwrap();
    let near = LocalPartner::open(&place(dir.path()), 0, 2).unwrap();
    let good = slots[1].bytes().to_vec();
    let header = &good[..size_of::<Header>()];
    let mut to = vec![0; good.len()];
    assert_eq!(near.copy(header, &mut to), None);
    assert!(to[PAGE..] == good[PAGE..]);

    let parts = Header::parse(header, good.len() as u64).unwrap();
    let path = place(dir.path()).own(0, 1);
    for (at, why) in [
        (8, "no slot of its rank has its header"),
        (parts.meta.at, "another checksum than its header says"),
        (parts.sums.at, "another checksum than its header says"),
        (parts.data.at, "block 0 has another checksum"),
        (parts.data.at + *table().at.last().unwrap() as u64, "has another checksum"),
    ] {
        let mut bad = good.clone();
        bad[at as usize] ^= 4;
        std::os::unix::fs::FileExt::write_all_at(&fs::OpenOptions::new().write(true).open(&path).unwrap(), &bad, 0)
            .unwrap();
        let said = near.copy(header, &mut to);
        assert!(said.as_ref().is_some_and(|s| s.contains(why)), "byte {at}: {said:?}");
    }
    assert_eq!(near.copy(&[0; size_of::<Header>()], &mut to), Some("its header is damaged".into()));
}

/// The process is killed right before each slice of a snapshot in turn, and before its header.
#[test]
fn killed_at_every_slice_of_a_snapshot() {
    if let Some(dir) = std::env::var_os(DIR) {
        let at: usize = std::env::var(STOP_AT).unwrap().parse().unwrap();
        let mut slot = open(Path::new(&dir), 1);
        // SAFETY: ends this process.
        let die = |i| if i == at { unsafe { libc::raise(libc::SIGKILL) } } else { 0 };
        write(&mut slot, 3, |i| {
            die(i);
        })
        .unwrap();
        return;
    }
    let slices = table().specs.len();
    for at in 0..=slices + 1 {
        let dir = tempfile::tempdir().unwrap();
        write(&mut open(dir.path(), 0), 2, |_| ()).unwrap();
        write(&mut open(dir.path(), 1), 1, |_| ()).unwrap();
        let status =
            child("killed_at_every_slice_of_a_snapshot", dir.path()).env(STOP_AT, at.to_string()).status().unwrap();
        assert_eq!(status.success(), at > slices);
        assert_eq!(whole(dir.path()), if at > slices { vec![2, 3] } else { vec![2] }, "killed before slice {at}");
    }
}

/// A process that does nothing but write snapshots is killed at moments that have nothing to do with them.
#[test]
fn killed_at_any_moment() {
    const NAME: &str = "killed_at_any_moment";
    if let Some(dir) = std::env::var_os(DIR) {
        let dir = Path::new(&dir);
        let mut slots = [open(dir, 0), open(dir, 1)];
        for step in 1.. {
            write(&mut slots[step as usize % 2], step, |_| ()).unwrap();
            fs::write(dir.join("done"), step.to_string()).unwrap();
        }
    }
    let mut seed = 11;
    let mut newer = 0;
    for _ in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let mut child = child(NAME, dir.path()).spawn().unwrap();
        let began = Instant::now();
        while !dir.path().join("done").exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "the child never wrote a snapshot");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(random(&mut seed, 20_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        // The note may have been cut short between its creation and its content.
        let done: u64 = fs::read_to_string(dir.path().join("done")).unwrap().parse().unwrap_or(0);
        let steps = whole(dir.path());
        assert!(steps.last().is_some_and(|&s| s >= done), "step {done} was done, whole are {steps:?}");
        newer += (steps.len() == 1) as usize;
    }
    eprintln!("{newer} of 12 kills fell into a snapshot");
}

#[test]
fn damage_anywhere_is_seen_and_the_other_slot_stays() {
    let dir = tempfile::tempdir().unwrap();
    write(&mut open(dir.path(), 0), 1, |_| ()).unwrap();
    write(&mut open(dir.path(), 1), 2, |_| ()).unwrap();
    assert_eq!(whole(dir.path()), [1, 2]);
    let path = place(dir.path()).own(0, 1);
    let bytes = fs::read(&path).unwrap();
    let h = Header::parse(&bytes, bytes.len() as u64).unwrap();
    let mut places: Vec<usize> = (0..std::mem::size_of::<Header>()).step_by(4).collect();
    for part in [h.meta, h.table, h.sums, h.data] {
        let r = part.range();
        places.extend([r.start, r.start + r.len() / 3, r.end - 1 - (part == h.data) as usize * 63]);
    }
    for at in places {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        assert_eq!(whole(dir.path()), [1], "byte {at}");
    }
    for len in [0, 1, 100, 4096, bytes.len() / 2, bytes.len() - 64] {
        fs::write(&path, &bytes[..len]).unwrap();
        assert_eq!(whole(dir.path()), [1], "cut to {len} bytes");
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(whole(dir.path()), [1]);
}

#[test]
fn a_slot_in_use_or_safe_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut shelf = SlotRing::new((0..3).map(|i| open(dir.path(), i)).collect(), Some(0), OWNER);
    let save = |shelf: &mut SlotRing, i: usize, step: u64| {
        let t = table();
        shelf.write(i, &meta(step), &mut |take| {
            (0..t.specs.len()).for_each(|n| take(&[(n, &data(&t, n, step))]));
            Ok(())
        })
    };
    assert_eq!(shelf.free(), Some(1));
    save(&mut shelf, 1, 1).unwrap();
    let copying = shelf.get(1);
    assert_eq!(shelf.free(), Some(2));
    assert_eq!(save(&mut shelf, 1, 2).unwrap_err().exit, Exit::Internal);
    let saving = shelf.get(2);
    assert_eq!(shelf.free(), None);
    drop(copying);
    shelf.set_safe(1);
    assert_eq!(shelf.free(), Some(0));
    drop(saving);
    assert!(shelf.is_ours());
}

/// A process that was stopped, with a slot open, and wakes later writes to its own memory, not to its successor's.
#[test]
fn a_slot_that_somebody_holds_is_replaced_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let mut old = open(dir.path(), 0);
    write(&mut old, 1, |_| ()).unwrap();
    // The lock belongs to the open file, so the same process serves as another one.
    let mut new = open(dir.path(), 0);
    write(&mut new, 7, |_| ()).unwrap();
    write(&mut old, 2, |_| ()).unwrap();
    assert_eq!(whole(dir.path()), [2, 7]);
    place(dir.path()).clean(&|_| false).unwrap();
    assert_eq!(whole(dir.path()), [2, 7], "what is held is not removed");
    drop((old, new));
    place(dir.path()).clean(&|_| false).unwrap();
    assert!(names(dir.path()).is_empty());
}

#[test]
fn what_nobody_holds_is_taken_over_with_its_content() {
    let dir = tempfile::tempdir().unwrap();
    write(&mut open(dir.path(), 0), 4, |_| ()).unwrap();
    let again = open(dir.path(), 0);
    assert_eq!(whole(dir.path()), [4]);
    assert!(Header::parse(again.bytes(), again.bytes().len() as u64).is_some_and(|h| h.step == 4));
}

/// Every byte of data is in one block of its slice, and blocks of different slices do not meet.
#[test]
fn blocks_share_out_the_data() {
    let t = table();
    let (mut end, mut blocks) = (0, 0);
    for i in 0..t.specs.len() {
        let mut at = t.at[i];
        assert!(at >= end && at - end < 64);
        for (n, range) in t.blocks_of(i) {
            assert_eq!((n, range.start), (blocks, at));
            assert!(range.len() <= BLOCK && !range.is_empty());
            (at, blocks) = (range.end, blocks + 1);
        }
        assert_eq!(at, t.at[i] + 4 * t.specs[i].span.len);
        end = at;
    }
    assert_eq!(blocks, t.blocks);
    assert_eq!(*Table::parse(t.bytes.clone()).unwrap().specs, *t.specs);
    assert!(Table::parse(b"[{\"group\":\"param\"}]".to_vec()).is_err());
}
