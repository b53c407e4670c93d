//! Rules for one file at a time.

use crate::lexer::{Kind, Token, matching};
use crate::source::{Source, Violation};

/// Longest source file, in lines.
const LINES_MAX: usize = 800;

/// Where `unsafe` may stand: system calls of disks and devices, SIMD, a hint to the processor, and an option of the allocator. `diskbench` measures bare system calls beside ours.
const UNSAFE_PLACES: &[&str] = &[
    "blockdev/src/carry/",
    "blockdev/src/disk/",
    "blockdev/src/codec/",
    "blockdev/src/redundancy/",
    "blockdev/src/dedupe/prefetch.rs",
    "blockdev/src/frontend/ublk",
    "blockdev/src/frontend/freeze.rs",
    "blockdev/src/frontend/loopdev.rs",
    "blockdev/examples/diskbench.rs",
    "blockdev/examples/ublk_buffers.rs",
    "nas/src/server/enter.rs",
    "nas/src/server/fsid.rs",
    "tools/src/allocator.rs",
];

/// Where the operating system may be asked for time, chance and threads: everything else goes through `Env`.
const AMBIENT_PLACES: &[&str] =
    &["blockdev/src/env/", "blockdev/src/carry/shared.rs", "blockdev/src/disk/", "blockdev/src/frontend/"];

/// Paths that reach around `Env`, and what to use instead.
const AMBIENT: &[(&[&str], &str)] = &[
    (&["Instant", "now"], "Env::now"),
    (&["SystemTime", "now"], "Env::wall_clock_s"),
    (&["UNIX_EPOCH"], "Env::wall_clock_s"),
    (&["thread", "spawn"], "Env::spawn or Env::compute"),
    (&["thread", "scope"], "Env::compute"),
    (&["thread", "Builder"], "Env::spawn or Env::compute"),
    (&["thread", "sleep"], "Env::sleep"),
    (&["tokio", "spawn"], "Env::spawn"),
    (&["task", "spawn"], "Env::spawn"),
    (&["spawn_blocking"], "Env::compute"),
    (&["tokio", "time"], "Env::sleep and Env::now"),
    (&["rand"], "Env::random_u64"),
    (&["getrandom"], "Env::random_u64"),
    (&["thread_rng"], "Env::random_u64"),
    (&["RandomState"], "rustc_hash"),
    (&["HashMap", "new"], FX),
    (&["HashMap", "with_capacity"], FX),
    (&["HashMap", "from"], FX),
    (&["HashSet", "new"], FX),
    (&["HashSet", "with_capacity"], FX),
    (&["HashSet", "from"], FX),
];

const FX: &str = "the kinds of rustc_hash or a BTree: the order of this one differs from run to run";

/// Types whose last parameter, the hasher, must be named, and how many parameters they have with it.
const HASHED: &[(&str, usize)] = &[("HashMap", 3), ("HashSet", 2)];

pub fn file_length(source: &Source) -> Vec<Violation> {
    let lines = source.lines.len();
    if lines <= LINES_MAX {
        return Vec::new();
    }
    vec![source.violation("length", LINES_MAX + 1, format!("{lines} lines; at most {LINES_MAX}: split the file"))]
}

pub fn unsafe_code(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let allowed = UNSAFE_PLACES.iter().any(|place| source.path.starts_with(place));
    for (i, token) in source.tokens.iter().enumerate().filter(|(_, t)| t.is("unsafe")) {
        // `unsafe_op_in_unsafe_fn` is another word; `unsafe(no_mangle)` inside an attribute is not a block.
        let next = |text: &str| source.tokens.get(i + 1).is_some_and(|t| t.is(text));
        if next("(") {
            continue;
        }
        if !allowed {
            found.push(source.violation("unsafe", token.line, "unsafe code has no place here"));
        } else if next("{") || next("impl") {
            if !reason_above(source, token.line, "SAFETY:") {
                found.push(source.violation("unsafe", token.line, "no SAFETY comment above"));
            }
        } else if next("fn") && !reason_above(source, token.line, "# Safety") && !is_pointer_type(source, i) {
            found.push(source.violation("unsafe", token.line, "no '# Safety' section in the documentation"));
        }
    }
    found
}

/// `unsafe fn(…)` as a type has no name after `fn`.
fn is_pointer_type(source: &Source, at: usize) -> bool {
    source.tokens.get(at + 2).is_some_and(|t| t.is("("))
}

/// Whether `mark` stands in a comment on the line, or in the comments and attributes right above the statement that
/// holds it (a statement may have begun up to four lines before).
fn reason_above(source: &Source, line: usize, mark: &str) -> bool {
    let text = |n: usize| source.lines.get(n - 1).map_or("", |l| l.trim());
    let in_comment = |n: usize| text(n).find("//").is_some_and(|start| text(n)[start..].contains(mark));
    let is_aside = |n: usize| text(n).starts_with("//") || text(n).starts_with("#[") || text(n).is_empty();
    if in_comment(line) {
        return true;
    }
    let mut at = line - 1;
    let begun = line.saturating_sub(4).max(1);
    while at >= begun && !is_aside(at) && !text(at).ends_with([';', '}']) {
        at -= 1;
    }
    while at >= 1 && is_aside(at) {
        if in_comment(at) {
            return true;
        }
        at -= 1;
    }
    false
}

pub fn unfinished(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for pair in source.tokens.windows(2).filter(|w| w[1].is("!")) {
        if let Some(word @ ("todo" | "unimplemented" | "dbg")) = pair[0].word() {
            found.push(source.violation("unfinished", pair[0].line, format!("{word}! must not stay")));
        }
    }
    for comment in &source.comments {
        let words: Vec<&str> = comment.text.split(|c: char| !c.is_alphanumeric()).collect();
        if let Some(word) = ["FIXME", "TODO", "XXX"].into_iter().find(|word| words.contains(word)) {
            found.push(source.violation("unfinished", comment.line, format!("{word}: do it, or write an issue")));
        }
    }
    found
}

pub fn ambient(source: &Source) -> Vec<Violation> {
    let exempt = AMBIENT_PLACES.iter().any(|folder| source.path.starts_with(folder));
    if !source.path.starts_with("blockdev/src/") || exempt {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (i, token) in source.tokens.iter().enumerate().filter(|(_, t)| !t.test) {
        for (path, instead) in AMBIENT.iter().filter(|(path, _)| starts_with(&source.tokens[i..], path)) {
            found.push(source.violation("ambient", token.line, format!("{}: use {instead}", path.join("::"))));
        }
        for (name, parameters) in HASHED.iter().filter(|(name, _)| token.is(name)) {
            if generic_parameters(&source.tokens[i + 1..]).is_some_and(|given| given < *parameters) {
                found.push(source.violation("ambient", token.line, format!("{name} without a hasher: use {FX}")));
            }
        }
    }
    found
}

/// Whether the tokens begin with the words of `path`, separated by `::`.
fn starts_with(tokens: &[Token], path: &[&str]) -> bool {
    path.iter().enumerate().all(|(i, word)| {
        let at = i * 3;
        tokens.get(at).is_some_and(|t| t.is(word)) && (i == 0 || tokens[at - 1].is(":") && tokens[at - 2].is(":"))
    })
}

/// How many parameters stand between the angle brackets that the tokens begin with (`::` may come before); none without them.
fn generic_parameters(tokens: &[Token]) -> Option<usize> {
    let mut at = if tokens.first().is_some_and(|t| t.is(":")) { 2 } else { 0 };
    if !tokens.get(at).is_some_and(|t| t.is("<")) {
        return None;
    }
    let (mut angles, mut commas, mut trailing) = (0, 0, false);
    while let Some(token) = tokens.get(at) {
        let arrow = token.is(">") && at > 0 && tokens[at - 1].is("-");
        match token.kind {
            Kind::Mark('<') => angles += 1,
            Kind::Mark('>') if !arrow => angles -= 1,
            Kind::Mark('(' | '[' | '{') => at = matching(tokens, at),
            _ => {}
        }
        if angles == 0 {
            return Some(commas + usize::from(!trailing));
        }
        trailing = angles == 1 && token.is(",");
        commas += usize::from(trailing);
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(found: &[Violation]) -> Vec<usize> {
        found.iter().map(|v| v.line).collect()
    }

    #[test]
    fn long_file_is_caught() {
        assert!(file_length(&Source::new("a.rs", &"x\n".repeat(LINES_MAX))).is_empty());
        assert_eq!(file_length(&Source::new("a.rs", &"x\n".repeat(LINES_MAX + 1))).len(), 1);
    }

    #[test]
    fn unsafe_in_the_wrong_place_is_caught() {
        let text = "// SAFETY: reason\nlet x = unsafe { f() };";
        assert_eq!(lines(&unsafe_code(&Source::new("blockdev/src/log/mod.rs", text))), [2]);
        assert_eq!(lines(&unsafe_code(&Source::new("tools/src/main.rs", text))), [2]);
        assert!(unsafe_code(&Source::new("blockdev/src/disk/uring.rs", text)).is_empty());
        let text = "const A: &str = \"unsafe { }\"; // unsafe\n#[unsafe(no_mangle)] fn f() {}";
        assert!(unsafe_code(&Source::new("blockdev/src/log/mod.rs", text)).is_empty());
    }

    #[test]
    fn unsafe_without_a_reason_is_caught() {
        let check = |text: &str| lines(&unsafe_code(&Source::new("blockdev/src/disk/uring.rs", text)));
        assert_eq!(check("let x = unsafe { f() };"), [1]);
        assert_eq!(check("// SAFETY: of another\nlet a = unsafe { f() };\nlet x = unsafe { f() };"), [3]);
        assert_eq!(check("unsafe impl Send for X {}"), [1]);
        assert_eq!(check("/// Does.\npub unsafe fn f() {}"), [2]);
        assert_eq!(check("/// Does.\n/// # Safety\n/// Must.\n#[inline]\npub unsafe fn f() {}"), [0; 0]);
        assert_eq!(check("// SAFETY: reason\n// goes on\nlet x =\n    unsafe { f() };"), [0; 0]);
        assert_eq!(check("let f: unsafe fn(u8) = g;"), [0; 0]);
    }

    #[test]
    fn unfinished_work_is_caught() {
        let check = |text: &str| lines(&unfinished(&Source::new("tools/src/main.rs", text)));
        assert_eq!(check("fn a() { todo!() }\nfn b() { unimplemented!(\"x\") }\nfn c() { dbg!(1); }"), [1, 2, 3]);
        assert_eq!(check("// FIXME: later\n/* TODO */\n/// XXX: hm\nfn f() {}"), [1, 2, 3]);
        assert_eq!(check("// a todo list\nconst A: &str = \"FIXME todo!\"; fn todo() {}"), [0; 0]);
    }

    #[test]
    fn ambient_clock_chance_and_threads_are_caught() {
        let check = |path: &str, text: &str| lines(&ambient(&Source::new(path, text)));
        let text = "fn f() { let a = std::time::Instant::now();\nlet b = SystemTime::now();\nstd::thread::spawn(g);\n\
                    tokio::time::sleep(d);\nlet c: HashMap<u8, u8>;\nrand::random::<u8>();\ntokio::task::spawn_blocking(h); }";
        assert_eq!(check("blockdev/src/log/append.rs", text), [1, 2, 3, 4, 5, 6, 7]);
        for allowed in ["blockdev/src/env/real.rs", "blockdev/src/disk/uring.rs", "blockdev/src/frontend/nbd.rs"] {
            assert_eq!(check(allowed, text), [0; 0]);
        }
        assert_eq!(check("tools/src/main.rs", text), [0; 0]);
        let text = "use std::time::Duration; use rustc_hash::FxHashMap; // Instant::now\n\
                    fn f(env: &dyn Env) { env.now(); env.spawn(x); let rand = 1; }\n\
                    #[cfg(test)] mod tests { fn g() { Instant::now(); } }";
        assert_eq!(check("blockdev/src/log/append.rs", text), [2], "a variable called rand is taken for the crate");
        assert_eq!(check("blockdev/src/log/append.rs", &text.replace("let rand = 1;", "")), [0; 0]);
    }

    #[test]
    fn maps_and_sets_without_a_hasher_of_their_own_are_caught() {
        let check = |text: &str| lines(&ambient(&Source::new("blockdev/src/log/append.rs", text)));
        assert_eq!(check("struct A { a: HashMap<u8, Vec<(u8, u8)>>,\nb: HashSet<[u8; 4]> }"), [1, 2]);
        assert_eq!(
            check("let a = HashMap::new();\nlet b = HashSet::from([1]);\nlet c = HashSet::<u8>::default();"),
            [1, 2, 3]
        );
        assert_eq!(check("let a: HashMap<fn(u8, u8) -> u8, u8,> = b;"), [1]);
        let good = "use std::collections::{HashMap, HashSet};\ntype A = HashMap<u8, (Bytes, Arc<u8>), FxBuildHasher>;\n\
                    let b: HashSet<Vec<u8>, rustc_hash::FxBuildHasher> = HashSet::default();";
        assert_eq!(check(good), [0; 0]);
    }
}
