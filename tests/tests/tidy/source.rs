//! Source files and what is found wrong with them.

use std::path::Path;

use crate::lexer::{Comment, Token, lex};

/// A Rust source file.
pub struct Source {
    /// From the root of the tree, with slashes.
    pub path: String,
    pub lines: Vec<String>,
    /// Tokens; those of a file that holds only tests are all marked as such.
    pub tokens: Vec<Token>,
    pub comments: Vec<Comment>,
}

/// One thing to put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: &'static str,
    pub path: String,
    pub line: usize,
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {} [{}]", self.path, self.line, self.message, self.rule)
    }
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let (mut tokens, comments) = lex(text);
        if is_test_file(path) {
            tokens.iter_mut().for_each(|t| t.test = true);
        }
        Self { path: path.to_owned(), lines: text.lines().map(str::to_owned).collect(), tokens, comments }
    }

    pub fn violation(&self, rule: &'static str, line: usize, message: impl Into<String>) -> Violation {
        Violation { rule, path: self.path.clone(), line, message: message.into() }
    }

    /// Paths a `#[cfg(test)] mod name;` in this file may refer to.
    pub fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.strip_suffix(".rs") {
            Some(stem) if !stem.ends_with("/mod") && !stem.ends_with("/lib") && !stem.ends_with("/main") => stem,
            _ => self.path.rsplit_once('/').map_or("", |(folder, _)| folder),
        };
        let triples = self.tokens.windows(3).filter(|w| w[0].test && w[0].is("mod") && w[2].is(";"));
        triples
            .filter_map(|w| w[1].word())
            .flat_map(|name| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")])
            .collect()
    }
}

/// Whether a file is test code as a whole, by its name.
fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with("tests/") || path.contains("/tests/") || name == "tests.rs" || name.ends_with("_tests.rs")
}

/// All Rust sources of the workspace's crates, in the order of their paths.
pub fn all(root: &Path) -> Vec<Source> {
    let mut paths = Vec::new();
    for folder in ["blockdev", "nas", "replication", "tools", "tests"] {
        files(&root.join(folder), "rs", &mut paths);
    }
    let relative = |path: &Path| path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8").to_owned();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut sources: Vec<Source> = paths.iter().map(|path| Source::new(&relative(path), &read(path))).collect();
    let test_modules: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in sources.iter_mut().filter(|s| test_modules.contains(&s.path)) {
        source.tokens.iter_mut().for_each(|t| t.test = true);
    }
    sources
}

/// Files below `folder` with the extension, sorted; build output and hidden folders left out.
pub fn files(folder: &Path, extension: &str, found: &mut Vec<std::path::PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

#[test]
fn test_files_are_told_from_product_files() {
    for path in ["tests/src/lab.rs", "blockdev/src/log/tests.rs", "blockdev/src/log/tests/replay.rs", "a/b_tests.rs"] {
        assert!(is_test_file(path), "{path}");
    }
    for path in ["blockdev/src/log/mod.rs", "blockdev/src/latests.rs", "tools/src/main.rs"] {
        assert!(!is_test_file(path), "{path}");
    }
}

#[test]
fn modules_declared_for_tests_are_named() {
    let text = "mod a;\n#[cfg(test)]\nmod model;";
    assert_eq!(Source::new("x/src/log/mod.rs", text).test_modules(), ["x/src/log/model.rs", "x/src/log/model/mod.rs"]);
    assert_eq!(Source::new("x/src/log.rs", text).test_modules(), ["x/src/log/model.rs", "x/src/log/model/mod.rs"]);
}
