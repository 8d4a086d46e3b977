//! Tells code from comments and literals, a line at a time.

/// A line of a Rust file, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// Code; comments and the insides of literals are blanks.
    pub(super) code: String,
    /// Text of the comments.
    pub(super) comment: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    /// Depth: block comments nest.
    BlockComment(u32),
    Text,
    /// Number of `#` that close it.
    RawText(usize),
}

/// Splits `content` into lines. Malformed Rust gives some result: the compiler is the one to complain.
pub(super) fn lines(content: &str) -> Vec<Line> {
    let chars: Vec<char> = content.chars().collect();
    let mut out = vec![Line::default()];
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c == '\n' {
            if state == State::LineComment {
                state = State::Code;
            }
            out.push(Line::default());
            at += 1;
            continue;
        }
        let (next, length) = step(state, &chars, at);
        let line = out.last_mut().expect("there is always a line");
        for c in &chars[at..at + length] {
            let in_comment = |s| matches!(s, State::LineComment | State::BlockComment(_));
            if in_comment(state) || in_comment(next) {
                line.comment.push(*c);
                line.code.push(' ');
            } else if state == State::Code {
                line.code.push(*c);
            } else {
                line.code.push(' ');
            }
        }
        state = next;
        at += length;
    }
    out
}

/// What the characters at `at` (not a newline) do: the state behind them, and how many they are.
fn step(state: State, chars: &[char], at: usize) -> (State, usize) {
    let is = |offset: usize, c: char| chars.get(at + offset) == Some(&c);
    // Escapes do not run over the end of a line: a newline is always seen by the caller.
    let pair = if chars.get(at + 1).is_some_and(|c| *c != '\n') { 2 } else { 1 };
    match state {
        State::Code if is(0, '/') && is(1, '/') => (State::LineComment, 2),
        State::Code if is(0, '/') && is(1, '*') => (State::BlockComment(1), 2),
        State::Code if is(0, '"') => (State::Text, 1),
        State::Code if is(0, 'r') && !follows_word(chars, at) => {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if is(1 + hashes, '"') { (State::RawText(hashes), 2 + hashes) } else { (State::Code, 1) }
        }
        State::Code if is(0, '\'') => (State::Code, char_literal(chars, at)),
        State::Code => (State::Code, 1),
        State::LineComment => (State::LineComment, 1),
        State::BlockComment(depth) if is(0, '/') && is(1, '*') => (State::BlockComment(depth + 1), 2),
        State::BlockComment(1) if is(0, '*') && is(1, '/') => (State::Code, 2),
        State::BlockComment(depth) if is(0, '*') && is(1, '/') => (State::BlockComment(depth - 1), 2),
        State::BlockComment(depth) => (State::BlockComment(depth), 1),
        State::Text if is(0, '\\') => (State::Text, pair),
        State::Text if is(0, '"') => (State::Code, 1),
        State::Text => (State::Text, 1),
        State::RawText(hashes) if is(0, '"') && (1..=hashes).all(|n| is(n, '#')) => (State::Code, 1 + hashes),
        State::RawText(hashes) => (State::RawText(hashes), 1),
    }
}

/// Whether an identifier goes on at `at`; the prefixes of byte and C strings are none.
fn follows_word(chars: &[char], at: usize) -> bool {
    let word = |c: &char| c.is_alphanumeric() || *c == '_';
    match at.checked_sub(1).map(|before| &chars[before]) {
        Some('b' | 'c') => at >= 2 && word(&chars[at - 2]),
        Some(c) => word(c),
        None => false,
    }
}

/// Length of a character literal, or 1 for the quote of a lifetime.
fn char_literal(chars: &[char], at: usize) -> usize {
    match chars.get(at + 1) {
        Some('\\') => {
            // The escaped character may itself be a quote.
            let close = chars[at + 1..].iter().skip(2).take(10).position(|c| *c == '\'');
            close.map_or(1, |n| n + 4)
        }
        Some('\n') | None => 1,
        Some(_) if chars.get(at + 2) == Some(&'\'') => 3,
        Some(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(content: &str) -> Vec<String> {
        lines(content)
            .into_iter()
            .map(|line| line.code.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn comments_are_not_code() {
        assert_eq!(code("a // todo!()\nb /* x /* y */ z */ c\n/* d\ne */ f"), ["a", "b c", "", "f"]);
        assert_eq!(lines("a // SAFETY: x")[0].comment, "// SAFETY: x");
    }

    #[test]
    fn literals_are_not_code() {
        assert_eq!(code(r#"f("todo!() \" // x") g"#), ["f(\" ) g"]);
        assert_eq!(code("r#\"a \" // b\"# c"), ["r#\" c"]);
        assert_eq!(code("br\"\\\" + bar\"x\""), ["br\" + bar\""]);
        assert_eq!(code("'\"' a '\\'' b '\\u{1F}' c \"x\""), ["'\"' a '\\'' b '\\u{1F}' c \""]);
        assert_eq!(code("\"one\ntwo\" three"), ["\"", "three"]);
    }

    #[test]
    fn lifetimes_do_not_open_literals() {
        assert_eq!(code("fn f<'a>(x: &'a str) {} // c"), ["fn f<'a>(x: &'a str) {}"]);
    }

    #[test]
    fn line_numbers_hold() {
        let text = "a\n\"b\\\nc\"\nd\n";
        assert_eq!(lines(text).len(), text.matches('\n').count() + 1);
    }
}
