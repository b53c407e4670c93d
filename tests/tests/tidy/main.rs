//! Style as a test: layers, file length, unsafe code, unfinished work, ambient time and chance, documents that hold together.
//!
//! Every rule has a test beside it with a sample that it must catch.

mod docs;
mod layers;
mod lexer;
mod rules;
mod source;

use ashlar_tests::binary::workspace;
use source::{Source, Violation};

/// Files that may break a rule for now: rule, path, reason. The list shrinks; an entry no longer needed is an error.
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

/// Applies a rule to every source file of the workspace.
#[track_caller]
fn check(name: &str, rule: fn(&Source) -> Vec<Violation>) {
    let sources = source::all(workspace());
    assert!(sources.len() > 10, "only {} source files found", sources.len());
    let found: Vec<Violation> = sources.iter().flat_map(rule).collect();
    let (unneeded, left) = without_exceptions(name, found, EXCEPTIONS);
    assert!(left.is_empty(), "\n{}", left.iter().map(|v| format!("{v}\n")).collect::<String>());
    assert!(unneeded.is_empty(), "exceptions no longer needed: {unneeded:?}");
}

/// Exceptions to the rule that excuse nothing, and the violations that no exception excuses.
fn without_exceptions<'a>(
    rule: &str,
    found: Vec<Violation>,
    exceptions: &[(&str, &'a str, &str)],
) -> (Vec<&'a str>, Vec<Violation>) {
    let mine = |path: &str| exceptions.iter().any(|(r, p, _)| *r == rule && *p == path);
    let unneeded = exceptions
        .iter()
        .filter(|(r, p, _)| *r == rule && !found.iter().any(|v| v.path == *p))
        .map(|(_, path, _)| *path)
        .collect();
    (unneeded, found.into_iter().filter(|v| !mine(&v.path)).collect())
}

#[test]
fn files_are_short() {
    check("length", rules::file_length);
}

#[test]
fn layers_point_down() {
    check("layers", layers::violations);
}

#[test]
fn unsafe_code_is_where_it_may_be_and_says_why() {
    check("unsafe", rules::unsafe_code);
}

#[test]
fn nothing_is_unfinished() {
    check("unfinished", rules::unfinished);
}

#[test]
fn the_engine_asks_only_its_environment() {
    check("ambient", rules::ambient);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let documents = docs::documents(workspace());
    assert!(documents.len() > 5, "only {} documents found", documents.len());
    let read = |path: &std::path::PathBuf| std::fs::read_to_string(path).expect("a readable document");
    let broken: Vec<String> = documents.iter().flat_map(|path| docs::broken_links(path, &read(path))).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn design_notes_are_linked_from_the_map() {
    let architecture = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let mut notes = Vec::new();
    source::files(&workspace().join("docs/design"), "md", &mut notes);
    let names: Vec<String> =
        notes.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect();
    let missing = docs::unlinked_designs(&architecture, &names);
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn table_of_features_is_whole() {
    let table = std::fs::read_to_string(workspace().join("docs/features.md")).expect("docs/features.md");
    let problems = docs::feature_problems(&table);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn exceptions_excuse_only_what_they_name_and_must_be_needed() {
    let violation = |path: &str| Source::new(path, "").violation("length", 1, "too long");
    let exceptions = [("length", "a.rs", "r"), ("length", "gone.rs", "r"), ("unsafe", "b.rs", "r")];
    let (unneeded, left) = without_exceptions("length", vec![violation("a.rs"), violation("b.rs")], &exceptions);
    assert_eq!(unneeded, ["gone.rs"]);
    assert_eq!(left, [violation("b.rs")]);
}
