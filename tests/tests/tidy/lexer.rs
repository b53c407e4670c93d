//! Just enough of Rust's lexical structure to tell code from comments and strings, and product code from test code.

/// A token worth looking at; literals are kept as one opaque token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Word(String),
    Mark(char),
    Literal,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub kind: Kind,
    /// Line, from 1.
    pub line: usize,
    /// Whether it belongs to an item under `#[cfg(test)]` or `#[test]`.
    pub test: bool,
}

impl Token {
    pub fn word(&self) -> Option<&str> {
        match &self.kind {
            Kind::Word(word) => Some(word),
            _ => None,
        }
    }

    pub fn is(&self, text: &str) -> bool {
        match &self.kind {
            Kind::Word(word) => word == text,
            Kind::Mark(mark) => text.chars().eq([*mark]),
            Kind::Literal => false,
        }
    }
}

/// A comment of any kind, its markers included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    pub text: String,
    /// Its first line, from 1.
    pub line: usize,
}

/// Tokens and comments of a source text.
pub fn lex(source: &str) -> (Vec<Token>, Vec<Comment>) {
    let mut lexer = Lexer { chars: source.chars().collect(), at: 0, line: 1, tokens: Vec::new(), comments: Vec::new() };
    lexer.run();
    let Lexer { mut tokens, comments, .. } = lexer;
    mark_tests(&mut tokens);
    (tokens, comments)
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
    comments: Vec<Comment>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn push(&mut self, kind: Kind, line: usize) {
        self.tokens.push(Token { kind, line, test: false });
    }

    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            let line = self.line;
            match c {
                '/' if self.peek(1) == Some('/') => self.comment(line, Self::line_comment),
                '/' if self.peek(1) == Some('*') => self.comment(line, Self::block_comment),
                '"' => self.string(line),
                '\'' => self.quote(line),
                _ if c.is_alphabetic() || c == '_' => self.word(line),
                _ if c.is_ascii_digit() => self.number(line),
                _ => {
                    self.next();
                    if !c.is_whitespace() {
                        self.push(Kind::Mark(c), line);
                    }
                }
            }
        }
    }

    fn comment(&mut self, line: usize, skip: fn(&mut Self)) {
        let start = self.at;
        skip(self);
        self.comments.push(Comment { text: self.chars[start..self.at].iter().collect(), line });
    }

    fn line_comment(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.next();
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => (depth += 1, self.next(), self.next()),
                (Some('*'), Some('/')) => (depth -= 1, self.next(), self.next()),
                (None, _) => return,
                _ => ((), self.next(), None),
            };
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self, line: usize) {
        self.next();
        while let Some(c) = self.next() {
            match c {
                '\\' => {
                    self.next();
                }
                '"' => break,
                _ => {}
            }
        }
        self.push(Kind::Literal, line);
    }

    /// The cursor is on the first `#` or `"` after `r`.
    fn raw_string(&mut self, line: usize) {
        let mut hashes = 0;
        while self.peek(0) == Some('#') {
            hashes += 1;
            self.next();
        }
        self.next();
        while let Some(c) = self.next() {
            if c == '"' && (0..hashes).all(|i| self.peek(i) == Some('#')) {
                self.at += hashes;
                break;
            }
        }
        self.push(Kind::Literal, line);
    }

    /// A character literal or a lifetime.
    fn quote(&mut self, line: usize) {
        self.next();
        if self.peek(0) == Some('\\') {
            self.next();
            self.next();
            while self.next().is_some_and(|c| c != '\'') {}
            self.push(Kind::Literal, line);
        } else if self.peek(1) == Some('\'') {
            self.next();
            self.next();
            self.push(Kind::Literal, line);
        } else {
            while self.peek(0).is_some_and(|c| c.is_alphanumeric() || c == '_') {
                self.next();
            }
        }
    }

    fn number(&mut self, line: usize) {
        while self.peek(0).is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.next();
        }
        self.push(Kind::Literal, line);
    }

    fn word(&mut self, line: usize) {
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.next();
        }
        let word: String = self.chars[start..self.at].iter().collect();
        match (word.as_str(), self.peek(0)) {
            ("r" | "br" | "cr", Some('"')) => self.raw_string(line),
            ("r" | "br" | "cr", Some('#')) if matches!(self.peek(1), Some('#' | '"')) => self.raw_string(line),
            ("r", Some('#')) => {
                self.next();
                self.word(line);
            }
            ("b" | "c", Some('"')) => self.string(line),
            ("b", Some('\'')) => self.quote(line),
            _ => self.push(Kind::Word(word), line),
        }
    }
}

/// Marks items under `#[test]`, `#[cfg(test)]` and `#[cfg(all(test, …))]`, attributes included.
fn mark_tests(tokens: &mut [Token]) {
    let mut at = 0;
    while at < tokens.len() {
        if !(tokens[at].is("#") && tokens.get(at + 1).is_some_and(|t| t.is("["))) {
            at += 1;
            continue;
        }
        let close = matching(tokens, at + 1);
        if is_test_attribute(tokens.get(at + 2..close).unwrap_or_default()) {
            let end = item_end(tokens, close + 1);
            tokens[at..end].iter_mut().for_each(|t| t.test = true);
            at = end;
        } else {
            at = close + 1;
        }
    }
}

fn is_test_attribute(inside: &[Token]) -> bool {
    let words: Vec<&str> = inside.iter().filter_map(Token::word).collect();
    matches!(words[..], ["test"] | ["cfg", "test"]) || words.starts_with(&["cfg", "all", "test"])
}

/// Index of the bracket that closes the one at `open`, or of the last token.
pub fn matching(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.kind {
            Kind::Mark('(' | '[' | '{') => depth += 1,
            Kind::Mark(')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    tokens.len().saturating_sub(1)
}

/// Index after the item that starts at `at`: after its first braces outside other brackets, or its semicolon.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].kind {
            Kind::Mark('{') => return matching(tokens, at) + 1,
            Kind::Mark(';') => return at + 1,
            Kind::Mark('(' | '[') => at = matching(tokens, at) + 1,
            _ => at += 1,
        }
    }
    at
}

#[test]
fn comments_and_strings_are_not_code() {
    let source = "let a = \"x // y \\\" z\"; // one\n/* two /* nested */ end */ let b = r#\"raw \" w\"#; let c = 'q'; let d: &'life u8 = b'\\'';";
    let (tokens, comments) = lex(source);
    let words: Vec<&str> = tokens.iter().filter_map(Token::word).collect();
    assert_eq!(words, ["let", "a", "let", "b", "let", "c", "let", "d", "u8"]);
    assert_eq!(comments.iter().map(|c| c.line).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(comments[1].text, "/* two /* nested */ end */");
    assert_eq!(tokens.iter().filter(|t| t.kind == Kind::Literal).count(), 4);
}

#[test]
fn test_items_are_marked_and_others_not() {
    let source = "fn a() {}\n#[cfg(test)]\n#[allow(dead_code)]\nmod tests { fn b() { if x { y(); } } }\nfn c() {}\n#[test]\nfn d() -> [u8; 2] { e() }\n#[cfg(test)]\nmod f;\n#[cfg(not(test))]\nfn g() {}";
    let (tokens, _) = lex(source);
    let marked = |word: &str| tokens.iter().find(|t| t.is(word)).unwrap().test;
    assert!(!marked("a") && !marked("c") && !marked("g"));
    assert!(marked("tests") && marked("b") && marked("y") && marked("d") && marked("e") && marked("f"));
}

#[test]
fn unfinished_input_ends() {
    for source in ["\"open", "/* open", "r#\"open", "'", "'\\", "#[cfg(test)]", "#[", "b'", "fn x("] {
        lex(source);
    }
}
