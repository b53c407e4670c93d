//! Which top-level module of the engine may use which: dependencies point down only.

use crate::lexer::{Kind, Token};
use crate::source::{Source, Violation};

/// Each top-level module of `blockdev`, lowest first, with what it may use besides itself.
///
/// `BASE` stands for the vocabulary at the bottom. A module that is not here is refused: give it a place.
const EDGES: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("lock", &[]),
    ("planted", &[]),
    ("units", &["error"]),
    ("report", &["error", "units"]),
    ("env", &["error", "units"]),
    ("codec", &["error", "units", "report"]),
    ("format", &["error", "units", "report", "codec"]),
    ("estimate", &["units", "report", "env", "codec"]),
    ("carry", &[BASE]),
    ("disk", &[BASE]),
    ("redundancy", &[BASE, "disk"]),
    ("log", &[BASE, "disk", "redundancy"]),
    ("segment", &[BASE, "disk", "redundancy"]),
    ("dedupe", &[BASE, "disk", "redundancy", "segment"]),
    ("map", &[BASE, "disk", "redundancy", "segment", "log"]),
    ("volume", &[BASE, "carry", "disk", "redundancy", "segment", "log", "dedupe", "map"]),
    ("pool", &[BASE, "carry", "disk", "redundancy", "segment", "log", "dedupe", "map", "volume"]),
    ("frontend", &["error", "units", "env"]),
];

const BASE: &str = "base";
const BASE_MODULES: &[&str] = &["error", "lock", "planted", "units", "report", "env", "codec", "format"];

/// The face of the engine that front ends see is declared by them and implemented here.
const FACE_USERS: &[&str] = &["volume", "pool"];
const FACE: &[&str] = &["BlockDevice", "Geometry", "Extent"];

/// Uses of another top-level module that the table does not allow, in a file of `blockdev/src`.
pub fn violations(source: &Source) -> Vec<Violation> {
    let Some(module) = module_path(&source.path) else { return Vec::new() };
    let Some(own) = module.first() else { return Vec::new() };
    let Some((_, allowed)) = EDGES.iter().find(|(name, _)| name == own) else {
        let message = format!("module '{own}' has no place in the layers: add it to EDGES in {}", file!());
        return vec![source.violation("layers", 1, message)];
    };
    references(&source.tokens, module.len())
        .into_iter()
        .filter(|r| !r.test && r.module != *own && !is_allowed(own, allowed, r))
        .map(|r| {
            let item = r.item.map(|item| format!("::{item}")).unwrap_or_default();
            source.violation("layers", r.line, format!("'{own}' must not use '{}{item}'", r.module))
        })
        .collect()
}

fn is_allowed(own: &str, allowed: &[&str], reference: &Reference) -> bool {
    let target = reference.module.as_str();
    let below = allowed.contains(&target) || allowed.contains(&BASE) && BASE_MODULES.contains(&target);
    let face = FACE_USERS.contains(&own)
        && target == "frontend"
        && reference.item.as_ref().is_some_and(|item| FACE.contains(&item.as_str()));
    below || face
}

/// `blockdev/src/log/append.rs` is `[log, append]`; the crate's root and other crates have none.
fn module_path(path: &str) -> Option<Vec<&str>> {
    let inside = path.strip_prefix("blockdev/src/")?.strip_suffix(".rs")?;
    let mut parts: Vec<&str> = inside.split('/').collect();
    if parts.last() == Some(&"mod") || parts == ["lib"] {
        parts.pop();
    }
    Some(parts)
}

/// A path from the root of the crate: its first segment, and the second if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reference {
    module: String,
    item: Option<String>,
    line: usize,
    test: bool,
}

/// All paths that start at the crate's root, by `crate::` or by enough `super::`, in a file `depth` modules deep.
fn references(tokens: &[Token], depth: usize) -> Vec<Reference> {
    let mut found = Vec::new();
    // Closing positions of the inline modules the cursor is in.
    let mut inline: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        inline.retain(|end| at < *end);
        if tokens[at].is("mod") && tokens.get(at + 2).is_some_and(|t| t.is("{")) {
            inline.push(crate::lexer::matching(tokens, at + 2));
        }
        if tokens[at].is("crate") && is_separator(tokens, at + 1) {
            paths(tokens, at + 3, &mut found);
        } else if tokens[at].is("super") {
            let mut supers = 0;
            while tokens.get(at).is_some_and(|t| t.is("super")) && is_separator(tokens, at + 1) {
                supers += 1;
                at += 3;
            }
            if supers > 0 && supers >= depth + inline.len() {
                paths(tokens, at, &mut found);
            }
            if supers > 0 {
                continue;
            }
        }
        at += 1;
    }
    found
}

fn is_separator(tokens: &[Token], at: usize) -> bool {
    tokens.get(at).is_some_and(|t| t.is(":")) && tokens.get(at + 1).is_some_and(|t| t.is(":"))
}

/// The paths at `at`: one, or a group in braces.
fn paths(tokens: &[Token], at: usize, found: &mut Vec<Reference>) {
    let Some(first) = tokens.get(at) else { return };
    if first.is("{") {
        members(tokens, at).into_iter().for_each(|member| paths(tokens, member, found));
        return;
    }
    let Some(module) = first.word() else { return };
    let reference = |item| Reference { module: module.to_owned(), item, line: first.line, test: first.test };
    if !is_separator(tokens, at + 1) {
        found.push(reference(None));
        return;
    }
    let second = at + 3;
    let items = match tokens.get(second).map(|t| &t.kind) {
        Some(Kind::Mark('{')) => members(tokens, second),
        _ => vec![second],
    };
    for item in items {
        let item = match tokens.get(item).map(|t| &t.kind) {
            Some(Kind::Word(word)) if word != "self" => Some(word.clone()),
            _ => None,
        };
        found.push(reference(item));
    }
}

/// Where the members of the group opened at `open` start.
fn members(tokens: &[Token], open: usize) -> Vec<usize> {
    let close = crate::lexer::matching(tokens, open);
    let mut starts = Vec::new();
    let mut at = open + 1;
    let mut expected = true;
    while at < close {
        if expected {
            starts.push(at);
            expected = false;
        }
        match tokens[at].kind {
            Kind::Mark('{') => at = crate::lexer::matching(tokens, at),
            Kind::Mark(',') => expected = true,
            _ => {}
        }
        at += 1;
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        violations(&Source::new(path, text)).into_iter().map(|v| format!("{}: {}", v.line, v.message)).collect()
    }

    #[test]
    fn table_points_down_only() {
        for (i, (name, allowed)) in EDGES.iter().enumerate() {
            for target in allowed.iter().filter(|t| **t != BASE) {
                let below = EDGES[..i].iter().any(|(lower, _)| lower == target);
                assert!(below, "'{name}' uses '{target}', which is not below it");
            }
        }
    }

    #[test]
    fn upward_use_is_caught_in_every_spelling() {
        let caught = ["2: 'log' must not use 'volume::Volume'"];
        assert_eq!(found("blockdev/src/log/append.rs", "\nuse crate::volume::Volume;"), caught);
        assert_eq!(found("blockdev/src/log/append.rs", "\nfn f(v: &crate::volume::Volume) {}"), caught);
        assert_eq!(found("blockdev/src/log/append.rs", "\nuse crate::{error::Result, volume::{Volume}};"), caught);
        assert_eq!(found("blockdev/src/log/append.rs", "\nuse super::super::volume::Volume;"), caught);
        assert_eq!(found("blockdev/src/log/mod.rs", "\nuse super::volume::Volume;"), caught);
        assert_eq!(found("blockdev/src/log/mod.rs", "mod inner {\nuse super::super::volume::Volume; }"), caught);
        assert_eq!(found("blockdev/src/error.rs", "use crate::units;"), ["1: 'error' must not use 'units'"]);
    }

    #[test]
    fn downward_use_own_module_and_tests_are_fine() {
        let text = "use crate::{disk::Disk, error::{Error, Result}, log::Record, units::*};\nuse super::record::X;\n\
                    // crate::volume in a comment\nconst A: &str = \"crate::pool::Pool\";\n\
                    #[cfg(test)] mod tests { use crate::pool::Pool; }";
        assert_eq!(found("blockdev/src/log/append.rs", text), [""; 0]);
        assert_eq!(found("blockdev/src/log/tests.rs", "use crate::pool::Pool;"), [""; 0]);
        assert_eq!(found("blockdev/src/lib.rs", "pub mod log; use crate::pool::Pool;"), [""; 0]);
        assert_eq!(found("tools/src/main.rs", "use crate::anything::At;"), [""; 0]);
    }

    #[test]
    fn front_ends_do_not_see_the_engine_and_the_engine_sees_only_their_trait() {
        let text = "use crate::pool::Pool;\nuse crate::disk::Disk;\nuse crate::env::Env;\nuse super::BlockDevice;";
        let caught = ["1: 'frontend' must not use 'pool::Pool'", "2: 'frontend' must not use 'disk::Disk'"];
        assert_eq!(found("blockdev/src/frontend/nbd.rs", text), caught);
        assert_eq!(found("blockdev/src/volume/device.rs", "use crate::frontend::{BlockDevice, Extent};"), [""; 0]);
        let caught = ["1: 'volume' must not use 'frontend::nbd'"];
        assert_eq!(found("blockdev/src/volume/device.rs", "use crate::frontend::{BlockDevice, nbd::Server};"), caught);
        assert_eq!(found("blockdev/src/map/mod.rs", "use crate::frontend::BlockDevice;").len(), 1);
    }

    #[test]
    fn unknown_module_is_refused() {
        let caught = found("blockdev/src/helpers.rs", "");
        assert!(caught.len() == 1 && caught[0].contains("no place in the layers"), "{caught:?}");
    }
}
