//! Text to work on.

use suite_runner::lcg;

/// `len` bytes of words in lines. Frequent words are frequent, as in text that people write.
pub(crate) fn text(len: usize) -> Vec<u8> {
    const WORDS: [&str; 32] = [
        "the",
        "of",
        "and",
        "to",
        "page",
        "in",
        "is",
        "that",
        "table",
        "it",
        "was",
        "for",
        "on",
        "are",
        "guest",
        "with",
        "as",
        "his",
        "they",
        "at",
        "be",
        "this",
        "from",
        "have",
        "or",
        "one",
        "had",
        "by",
        "processor",
        "translation",
        "interrupt",
        "device",
    ];
    let mut state = 17;
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        let value = lcg(&mut state);
        // The smaller of two even draws: the first words come most.
        let word = ((value >> 59) & 31).min((value >> 54) & 31);
        out.extend(WORDS[word as usize].as_bytes());
        out.push(if (value >> 40) & 15 == 0 { b'\n' } else { b' ' });
    }
    out.truncate(len);
    out
}
