//! What a restore, or a flush, does next: a pure function of what is known of memory, disk and object store.
//!
//! The newest step that is whole anywhere wins; at one step memory is nearer than disk. Every rank knows the same and so chooses
//! the same. The I/O that the choice asks for is in `restore` and `flush`; the simulator asks here too.

use crate::checkpoint::Meta;
use crate::tiers::snapshot::inventory::Set;

/// The newest checkpoint on disk, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewestOnDisk {
    /// Nobody has looked.
    Unopened,
    /// There is none.
    Nothing,
    /// It opens. `compared`: and its bytes are those that were written.
    Opened {
        /// Steps finished.
        step: u64,
        /// Start of the run that wrote it, a random number; 0 unknown.
        session: u64,
        /// Whether its bytes were compared with their checksums, and are whole.
        compared: bool,
    },
}

impl NewestOnDisk {
    /// What was found on disk: `opened` describes the newest checkpoint that opens, `None` when none does.
    pub fn of(opened: Option<&Meta>, compared: bool) -> NewestOnDisk {
        opened.map_or(NewestOnDisk::Nothing, |m| NewestOnDisk::Opened { step: m.step, session: m.session, compared })
    }
}

/// All that is known at one moment.
#[derive(Clone, Copy, Debug)]
pub struct RestoreView<'a> {
    /// What [`Inventory::sets`](crate::tiers::snapshot::inventory::Inventory::sets) says: newest first.
    pub sets: &'a [Set],
    /// Steps that have a directory on disk, whole or not.
    pub directories: &'a [u64],
    /// What is known of the newest checkpoint among them.
    pub disk: NewestOnDisk,
    /// There is an object store, and it has not been asked since it may have become of use.
    pub may_fetch: bool,
}

/// What to do next. `set` is a place in [`RestoreView::sets`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreAction {
    /// Look for the newest checkpoint on disk that opens.
    Open,
    /// Ask the object store for a step that is newer.
    Fetch {
        /// The newest step that can be read from memory or disk; `None` when there is none.
        newer_than: Option<u64>,
    },
    /// Compare the bytes of the checkpoint on disk before they fill in for memory.
    Compare,
    /// Leave a set out: a part is missing, and the disk does not have it. `is_loss`: nothing on disk is as new.
    Drop {
        /// The set to leave out.
        set: usize,
        /// Whether its step is newer than all that opens on disk.
        is_loss: bool,
    },
    /// Read the set; `with_disk`: its missing parts from the checkpoint on disk.
    Memory {
        /// The set to read.
        set: usize,
        /// Whether the checkpoint on disk is of the same step and start, and may fill in.
        with_disk: bool,
    },
    /// Read the checkpoint on disk.
    Disk,
    /// There is nothing to go on from.
    Nothing,
}

impl<'a> RestoreView<'a> {
    /// Memory alone counts.
    pub fn of_memory(sets: &'a [Set]) -> RestoreView<'a> {
        RestoreView { sets, directories: &[], disk: NewestOnDisk::Nothing, may_fetch: false }
    }

    /// What to do next. The same view gives the same action.
    pub fn next(&self) -> RestoreAction {
        let set = self.first();
        let of = |i: usize| &self.sets[i];
        let is_enough = |i: usize| of(i).is_whole() && self.directories.iter().all(|&d| d <= of(i).step);
        let (on_disk, compared) = match self.disk {
            NewestOnDisk::Unopened if !set.is_some_and(is_enough) => return RestoreAction::Open,
            NewestOnDisk::Opened { step, session, compared } => (Some((step, session)), compared),
            NewestOnDisk::Unopened | NewestOnDisk::Nothing => (None, false),
        };
        let step_on_disk = on_disk.map(|(step, _)| step);
        // where it is of the very step and start, the disk fills in what a set lacks
        let fills = |i: usize| on_disk == Some((of(i).step, of(i).session));
        if let Some(set) = set.filter(|&i| !of(i).is_whole() && !fills(i)) {
            return RestoreAction::Drop { set, is_loss: step_on_disk.is_none_or(|d| d < of(set).step) };
        }
        let set = set.filter(|&i| step_on_disk.is_none_or(|d| d <= of(i).step));
        match set {
            _ if self.may_fetch => RestoreAction::Fetch { newer_than: set.map(|i| of(i).step).max(step_on_disk) },
            Some(i) if fills(i) && !compared => RestoreAction::Compare,
            Some(i) => RestoreAction::Memory { set: i, with_disk: fills(i) },
            None if on_disk.is_some() => RestoreAction::Disk,
            None => RestoreAction::Nothing,
        }
    }

    /// The newest set that is whole, in memory or with what is on disk.
    fn first(&self) -> Option<usize> {
        let good = |s: &Set| s.is_whole() || self.directories.contains(&s.step);
        #[cfg(test)]
        if crate::host::planted() == Some(crate::host::Planted::OlderCopy) {
            return self.sets.iter().rposition(good);
        }
        self.sets.iter().position(good)
    }
}

#[cfg(test)]
mod tests {
    use super::NewestOnDisk::{Nothing, Opened, Unopened};
    use super::*;
    use crate::tiers::snapshot::inventory::SnapshotEntry;
    use crate::tiers::snapshot::slot::Header;
    use RestoreAction as Do;

    /// The sets of two ranks: `9` is whole, `9-` lacks a part; all of start 1, but `9'` of start 2.
    fn sets(list: &str) -> Vec<Set> {
        let of = |word: &str| {
            let step = word.trim_end_matches(['-', '\'']).parse().unwrap();
            let session = 1 + u64::from(word.ends_with('\''));
            let entry = SnapshotEntry { header: Header::default(), leader: 0, item: 0, partner: 0 };
            let second = if word.contains('-') { vec![] } else { vec![entry] };
            Set { step, attempt: 1, session, layout: 0, copies: vec![vec![entry], second] }
        };
        list.split_whitespace().map(of).collect()
    }

    /// A checkpoint of start 1.
    fn at(step: u64, compared: bool) -> NewestOnDisk {
        Opened { step, session: 1, compared }
    }

    #[test]
    fn each_view_has_its_action() {
        let memory = |set, with_disk| Do::Memory { set, with_disk };
        let drop = |set, is_loss| Do::Drop { set, is_loss };
        for (list, directories, disk, action) in [
            // nothing, and one tier alone
            ("", &[][..], Unopened, Do::Open),
            ("", &[], Nothing, Do::Nothing),
            ("", &[5], Unopened, Do::Open),
            ("", &[5], at(5, false), Do::Disk),
            ("", &[5], at(5, true), Do::Disk),
            ("7", &[], Unopened, memory(0, false)),
            ("7 6", &[], Nothing, memory(0, false)),
            // the newest whole step in memory; nobody looks for what nobody can hold
            ("7- 6", &[], Unopened, memory(1, false)),
            ("7-", &[], Unopened, Do::Open),
            ("7-", &[], Nothing, Do::Nothing),
            // a disk that is not newer is not opened for a set that is whole
            ("7", &[5], Unopened, memory(0, false)),
            ("7", &[7], Unopened, memory(0, false)),
            ("7", &[5, 8], Unopened, Do::Open),
            ("7", &[8], at(8, false), Do::Disk),
            // a newer directory that does not open
            ("7", &[8], Nothing, memory(0, false)),
            ("7", &[5, 8], at(5, false), memory(0, false)),
            // at one step memory is nearer; it is compared only if it may fill in
            ("7", &[7], at(7, false), Do::Compare),
            ("7", &[7], at(7, true), memory(0, true)),
            ("7'", &[7], at(7, false), memory(0, false)),
            // the disk fills in what memory lacks, of one step and start
            ("7-", &[7], Unopened, Do::Open),
            ("7-", &[7], at(7, false), Do::Compare),
            ("7-", &[7], at(7, true), memory(0, true)),
            ("7-'", &[7], at(7, true), drop(0, false)),
            // a directory of that step, and what opens is older, newer or nothing
            ("7-", &[7, 5], at(5, false), drop(0, true)),
            ("7-", &[7, 8], at(8, false), drop(0, false)),
            ("7- 6", &[7], Nothing, drop(0, true)),
            ("8- 7- 6", &[7], at(7, true), memory(1, true)),
        ] {
            let sets = sets(list);
            let view = RestoreView { sets: &sets, directories, disk, may_fetch: false };
            assert_eq!(view.next(), action, "memory {list:?}, directories {directories:?}, {disk:?}");
        }
    }

    #[test]
    fn the_store_is_asked_for_what_is_newer_than_the_best_that_is_near() {
        let fetch = |newer_than| Do::Fetch { newer_than };
        for (list, directories, disk, action) in [
            ("", &[][..], Unopened, Do::Open),
            ("", &[], Nothing, fetch(None)),
            ("", &[5], at(5, false), fetch(Some(5))),
            ("7", &[5], Unopened, fetch(Some(7))),
            ("7", &[8], at(8, false), fetch(Some(8))),
            ("7-", &[7], at(7, false), fetch(Some(7))),
            // what cannot be used is dropped first
            ("7-", &[7], at(5, false), Do::Drop { set: 0, is_loss: true }),
        ] {
            let sets = sets(list);
            let view = RestoreView { sets: &sets, directories, disk, may_fetch: true };
            assert_eq!(view.next(), action, "memory {list:?}, directories {directories:?}, {disk:?}");
        }
    }

    /// What a flush asks: whatever is on disk, the newest whole set.
    #[test]
    fn of_memory_alone_the_newest_whole_set() {
        for (list, action) in [
            ("", Do::Nothing),
            ("7-", Do::Nothing),
            ("8- 7 6", Do::Memory { set: 1, with_disk: false }),
            ("7 7'", Do::Memory { set: 0, with_disk: false }),
        ] {
            assert_eq!(RestoreView::of_memory(&sets(list)).next(), action, "{list:?}");
        }
    }

    /// Whatever is known, the actions come to an end when each does what it says, and no set is read that lacks a part.
    #[test]
    fn every_search_ends() {
        const WORDS: [&str; 5] = ["8", "8-", "7", "7-", "7-'"];
        for case in 0..1 << 9u32 {
            let is = |bit: usize| case >> bit & 1 == 1;
            let list: Vec<&str> = (0..5).filter(|&i| is(i)).map(|i| WORDS[i]).collect();
            let mut sets = sets(&list.join(" "));
            let mut directories: Vec<u64> = [(5, 8), (6, 7)].into_iter().filter(|d| is(d.0)).map(|d| d.1).collect();
            let (mut may_fetch, newest_is_damaged, mut disk) = (is(7), is(8), Unopened);
            for count in 0.. {
                assert!(count < 20, "case {case:b}");
                match (RestoreView { sets: &sets, directories: &directories, disk, may_fetch }).next() {
                    Do::Open => disk = directories.first().map_or(Nothing, |&step| at(step, false)),
                    Do::Fetch { .. } => may_fetch = false,
                    Do::Compare if newest_is_damaged => {
                        directories.remove(0);
                        disk = Unopened;
                    }
                    Do::Compare => disk = at(directories[0], true),
                    Do::Drop { set, .. } => drop(sets.remove(set)),
                    Do::Memory { set, with_disk } => {
                        assert!(sets[set].is_whole() || with_disk && disk == at(sets[set].step, true), "case {case:b}");
                        break;
                    }
                    Do::Disk | Do::Nothing => break,
                }
            }
        }
    }
}
