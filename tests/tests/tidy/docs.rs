//! Rules for the documents.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::source::files;

/// Rows of the table of features, by the letter of their section and how many there are.
const FEATURES: &[(char, usize)] = &[('B', 16), ('F', 5), ('R', 7), ('C', 7), ('M', 5)];

/// What the state of a feature may be.
const STATES: &[&str] = &["works", "partly", "not yet"];

/// Links to files of the tree, in markdown.
pub fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        for part in line.split("](").skip(1) {
            let Some((target, _)) = part.split_once(')') else { continue };
            let target = target.split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                found.push(target.to_owned());
            }
        }
    }
    found
}

/// Links of the document at `path` that lead nowhere.
pub fn broken_links(path: &Path, text: &str) -> Vec<String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    links(text)
        .into_iter()
        .filter(|target| !folder.join(target).exists())
        .map(|target| format!("{}: the link to '{target}' leads nowhere", path.display()))
        .collect()
}

/// Design notes that the architecture document does not link.
pub fn unlinked_designs(architecture: &str, designs: &[String]) -> Vec<String> {
    let linked = links(architecture);
    let missing = designs.iter().filter(|name| !linked.contains(&format!("docs/design/{name}")));
    missing.map(|name| format!("ARCHITECTURE.md does not link docs/design/{name}")).collect()
}

/// What is wrong with the table of features: rows that lack or are there twice, states that are not states,
/// working features without a proof.
pub fn feature_problems(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').map(str::trim).collect();
        let Some(id) = cells.first().filter(|id| is_feature_id(id)) else { continue };
        *seen.entry((*id).to_owned()).or_default() += 1;
        let [.., state, proof] = cells[..] else { continue };
        if !STATES.contains(&state) {
            problems.push(format!("{id}: the state '{state}' is none of {STATES:?}"));
        } else if state != "not yet" && proof.trim_matches(['–', '-', ' ']).is_empty() {
            problems.push(format!("{id}: '{state}' without a proof"));
        }
    }
    for (section, count) in FEATURES {
        for id in (1..=*count).map(|n| format!("{section}{n}")) {
            match seen.remove(&id) {
                Some(1) => {}
                Some(times) => problems.push(format!("{id} is there {times} times")),
                None => problems.push(format!("{id} is missing")),
            }
        }
    }
    problems.extend(seen.into_keys().map(|id| format!("{id} is not a known feature")));
    problems
}

fn is_feature_id(cell: &str) -> bool {
    let mut chars = cell.chars();
    let letter = chars.next().is_some_and(|c| FEATURES.iter().any(|(section, _)| *section == c));
    letter && !chars.as_str().is_empty() && chars.all(|c| c.is_ascii_digit())
}

/// The project's documents.
pub fn documents(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    files(root, "md", &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_outside_code() {
        let text = "[a](x.md) [b](y.md#part) [c](https://z/) [d](#here)\n```\n[e](no.md)\n```\n";
        assert_eq!(links(text), ["x.md", "y.md"]);
    }

    #[test]
    fn broken_link_is_caught() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("there.md"), "").unwrap();
        let found = broken_links(&dir.path().join("a.md"), "[x](there.md) [y](gone.md)");
        assert!(found.len() == 1 && found[0].contains("gone.md"), "{found:?}");
    }

    #[test]
    fn unlinked_design_is_caught() {
        let designs = ["log.md", "map.md"].map(str::to_owned);
        let found = unlinked_designs("see [log](docs/design/log.md), map.md", &designs);
        assert_eq!(found, ["ARCHITECTURE.md does not link docs/design/map.md"]);
    }

    #[test]
    fn problems_of_the_table_are_caught() {
        let row = |id: &str, state: &str, proof: &str| format!("| {id} | text | PS | {state} | {proof} |\n");
        let mut table = String::new();
        for (section, count) in FEATURES {
            (1..=*count).for_each(|n| table += &row(&format!("{section}{n}"), "not yet", "–"));
        }
        assert_eq!(feature_problems(&table), [""; 0]);
        let b2 = row("B2", "not yet", "–");
        assert_eq!(feature_problems(&table.replace(&b2, "")), ["B2 is missing"]);
        assert_eq!(feature_problems(&(table.clone() + &b2)), ["B2 is there 2 times"]);
        assert_eq!(feature_problems(&table.replace(&b2, &row("B2", "works", "–"))), ["B2: 'works' without a proof"]);
        assert!(feature_problems(&table.replace(&b2, &row("B2", "soon", "x")))[0].contains("'soon'"));
        assert_eq!(feature_problems(&(table + &row("B99", "not yet", "–"))), ["B99 is not a known feature"]);
    }
}
