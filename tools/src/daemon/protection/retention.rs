//! Which snapshots a rule keeps no longer.

use std::collections::BTreeMap;

use blockdev::report::SnapshotInfo;

/// Snapshots beyond the newest that their rule keeps of each volume, oldest first: identity and rule. `keep` gives how many that are, if the rule says
/// so. What is attached stays, and what is secure until it expires.
pub fn surplus(snapshots: &[SnapshotInfo], keep: impl Fn(u32) -> Option<u32>, now_s: u64) -> Vec<(u32, u32)> {
    let mut by_rule: BTreeMap<(&str, u32), Vec<&SnapshotInfo>> = BTreeMap::new();
    for s in snapshots.iter().filter(|s| s.rule_id != 0) {
        by_rule.entry((&s.volume, s.rule_id)).or_default().push(s);
    }
    let mut out: Vec<&SnapshotInfo> = Vec::new();
    for ((_, rule), mut all) in by_rule {
        let Some(keep) = keep(rule) else { continue };
        all.sort_by_key(|s| s.id);
        let surplus = all.len().saturating_sub(keep as usize);
        let held = |s: &SnapshotInfo| s.attached.is_some() || (s.secure && s.expires_s.is_none_or(|e| e > now_s));
        out.extend(all[..surplus].iter().copied().filter(|s| !held(s)));
    }
    out.sort_by_key(|s| s.id);
    out.into_iter().map(|s| (s.id, s.rule_id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: u32, volume: &str, rule_id: u32) -> SnapshotInfo {
        SnapshotInfo {
            name: format!("{volume}@{id}"),
            volume: volume.into(),
            id,
            size: 0,
            mapped: 0,
            attached: None,
            created_s: 0,
            clones: Vec::new(),
            held: None,
            expires_s: None,
            secure: false,
            quiesced: false,
            rule_id,
            group_id: 0,
        }
    }

    #[test]
    fn the_newest_of_each_rule_and_volume_stay() {
        let all: Vec<SnapshotInfo> = (1..=6)
            .map(|id| snapshot(id, "a", 1))
            .chain((7..=9).map(|id| snapshot(id, "b", 1)))
            .chain([snapshot(10, "a", 2), snapshot(11, "a", 0), snapshot(12, "a", 0), snapshot(13, "a", 3)])
            .collect();
        let keep = |rule| match rule {
            1 => Some(2),
            2 => Some(1),
            // A rule that is gone, or that says for how long.
            _ => None,
        };
        assert_eq!(surplus(&all, keep, 0), [(1, 1), (2, 1), (3, 1), (4, 1), (7, 1)]);
        assert!(surplus(&all[4..9], |_| Some(3), 0).is_empty());
    }

    #[test]
    fn what_is_held_stays_and_counts() {
        let mut all: Vec<SnapshotInfo> = (1..=4).map(|id| snapshot(id, "a", 1)).collect();
        all[0].attached = Some("nbd".into());
        (all[1].secure, all[1].expires_s) = (true, Some(100));
        assert_eq!(surplus(&all, |_| Some(1), 99), [(3, 1)]);
        assert_eq!(surplus(&all, |_| Some(1), 100), [(2, 1), (3, 1)]);
    }
}
