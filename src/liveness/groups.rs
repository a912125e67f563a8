//! Who shares a wire, indexed once: the group of a rank, its members, the member at a place. The judges ask by the thousand.

use crate::world::WireMembers;
use std::collections::BTreeMap;

/// The groups of one wire.
#[derive(Clone, Debug, PartialEq)]
pub struct WireGroups {
    /// Axis of the wire, or `group`.
    pub name: String,
    /// Group of each world rank.
    of: Vec<u32>,
    /// Of each group: rank on the wire and world rank of its members, by the former.
    groups: Vec<Vec<(u32, u32)>>,
}

impl WireGroups {
    pub fn new(members: &WireMembers) -> WireGroups {
        let mut number = BTreeMap::new();
        let mut groups: Vec<Vec<(u32, u32)>> = Vec::new();
        let mut of = Vec::with_capacity(members.places.len());
        for (rank, &(group, place)) in members.places.iter().enumerate() {
            let group = *number.entry(group).or_insert(groups.len());
            if group == groups.len() {
                groups.push(Vec::new());
            }
            groups[group].push((place as u32, rank as u32));
            of.push(group as u32);
        }
        groups.iter_mut().for_each(|g| g.sort_unstable());
        WireGroups { name: members.name.clone(), of, groups }
    }

    /// Number of the group that a world rank is in.
    pub fn group(&self, rank: usize) -> Option<usize> {
        self.of.get(rank).map(|&g| g as usize)
    }

    /// World ranks of a group, by their ranks on the wire.
    pub fn members(&self, group: usize) -> impl Iterator<Item = usize> + Clone + '_ {
        self.groups[group].iter().map(|&(_, rank)| rank as usize)
    }

    /// World rank of the member of a group with this rank on the wire.
    pub fn at(&self, group: usize, place: usize) -> Option<usize> {
        let members = &self.groups[group];
        let found = members.binary_search_by_key(&place, |&(p, _)| p as usize).ok()?;
        Some(members[found].1 as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_places() {
        // Even and odd ranks, numbered from behind.
        let places = (0..6).map(|r| (7 + r as u64 % 2, 2 - r / 2)).collect();
        let g = WireGroups::new(&WireMembers { name: "data".into(), places });
        assert_eq!([0, 1, 5, 6].map(|r| g.group(r)), [Some(0), Some(1), Some(1), None]);
        assert_eq!(g.members(0).collect::<Vec<_>>(), [4, 2, 0]);
        assert_eq!([0, 2, 3].map(|p| g.at(1, p)), [Some(5), Some(1), None]);
    }
}
