//! The known split patterns by hand: what their regular expressions match, at some hundred MB/s.
//!
//! Every character is a letter, a number, white space or something else, and every alternative of these patterns
//! speaks of runs of those: one look at the next character or two says which alternative matches. `tests` prove
//! it equal to the regular expressions.

use crate::classes::{ASCII, CLASSES, LETTER, NEWLINE, NUMBER, OTHER, SPACE};

/// What distinguishes the known patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanner {
    /// GPT-2: a space may lead letters, numbers or other characters.
    Gpt2,
    /// GPT-4: one character may lead letters, numbers come in groups, line ends close a run of white space.
    Gpt4 {
        /// At most so many digits in a word.
        digits: usize,
        /// White space at the end of a text is one word even if it holds a line end (`\s++$`).
        whole_end: bool,
    },
}

const GPT2: [&str; 3] = [
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    // tiktoken's way of writing it
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
];
/// `{digits}` stands for `{1,1}`, `{1,2}`, `{1,3}`.
const GPT4: [(&str, bool); 4] = [
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{digits}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        false,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        false,
    ),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{digits}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        false,
    ),
    // tiktoken's cl100k_base
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{digits}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        true,
    ),
];

impl Scanner {
    /// The scanner for a pattern, if it is one of the known.
    pub fn of(pattern: &str) -> Option<Self> {
        if GPT2.contains(&pattern) {
            return Some(Self::Gpt2);
        }
        GPT4.iter().find_map(|&(known, whole_end)| {
            (1..=3)
                .find(|digits| known.replace("{digits}", &format!("{{1,{digits}}}")) == pattern)
                .map(|digits| Self::Gpt4 { digits, whole_end })
        })
    }

    /// All known patterns with their scanners.
    pub fn known() -> Vec<(String, Self)> {
        let gpt4 = GPT4.iter().flat_map(|(known, _)| {
            (1..=3).map(|digits| known.replace("{digits}", &format!("{{1,{digits}}}")))
        });
        GPT2.iter()
            .map(|&known| known.to_owned())
            .chain(gpt4)
            .map(|pattern| {
                let scanner = Self::of(&pattern).expect("it is a known one");
                (pattern, scanner)
            })
            .collect()
    }

    /// Calls `word` with the start and the end of every word of `text`, in order: they cover it. O(bytes).
    #[inline(always)]
    pub fn split(self, text: &str, mut word: impl FnMut(usize, usize)) {
        let text = Text {
            bytes: text.as_bytes(),
            ascii: &ASCII,
            classes: &CLASSES,
        };
        let mut start = 0;
        while start < text.bytes.len() {
            let end = match self {
                Self::Gpt2 => text.gpt2(start),
                Self::Gpt4 { digits, whole_end } => text.gpt4(start, digits, whole_end),
            };
            word(start, end);
            start = end;
        }
    }
}

/// UTF-8 with the tables to read it.
#[derive(Clone, Copy)]
struct Text<'t> {
    bytes: &'t [u8],
    ascii: &'t [u8; 256],
    classes: &'t [u8],
}

impl Text<'_> {
    /// The class of the character at `at` and where the next begins; class 0 at the end of the text.
    #[inline(always)]
    fn class(self, at: usize) -> (u8, usize) {
        match self.bytes.get(at) {
            None => (0, at),
            Some(&byte) if byte < 0x80 => (self.ascii[byte as usize], at + 1),
            Some(&byte) => self.wide_class(byte, at),
        }
    }

    fn wide_class(self, first: u8, at: usize) -> (u8, usize) {
        let low = |offset: usize| usize::from(self.bytes[at + offset] & 0x3F);
        let first = usize::from(first);
        let (code_point, len) = if first < 0xE0 {
            ((first & 0x1F) << 6 | low(1), 2)
        } else if first < 0xF0 {
            ((first & 0x0F) << 12 | low(1) << 6 | low(2), 3)
        } else {
            (
                (first & 0x07) << 18 | low(1) << 12 | low(2) << 6 | low(3),
                4,
            )
        };
        (self.classes[code_point], at + len)
    }

    /// Where the run of characters whose class is in `classes` ends.
    #[inline(always)]
    fn run(self, classes: u8, mut at: usize) -> usize {
        loop {
            while let Some(&byte) = self.bytes.get(at) {
                if self.ascii[byte as usize] & classes == 0 {
                    break;
                }
                at += 1;
            }
            if self.bytes.get(at).is_none_or(|&byte| byte < 0x80) {
                return at;
            }
            let (class, next) = self.wide_class(self.bytes[at], at);
            if class & classes == 0 {
                return at;
            }
            at = next;
        }
    }

    /// Where the run of letters ends: eight ASCII characters at a time, without a branch for each.
    #[inline(always)]
    fn letters(self, mut at: usize) -> usize {
        while let Some(window) = self.bytes.get(at..at + 8) {
            let num_letters =
                leading_letters(u64::from_le_bytes(window.try_into().expect("8 bytes")));
            at += num_letters;
            if num_letters < 8 {
                break;
            }
        }
        match self.bytes.get(at) {
            Some(&byte) if byte < 0x80 && self.ascii[byte as usize] != LETTER => at,
            _ => self.run(LETTER, at),
        }
    }

    /// The end of a word of ASCII letters, behind what may lead them, if it is one and shorter than 16 bytes:
    /// most words are, and this finds their ends without a branch that depends on their length.
    #[inline(always)]
    fn ascii_word(self, start: usize, least: &[u8; 256]) -> Option<usize> {
        let window = self.bytes.get(start..start + 17)?;
        let (num_letters, stops_at_ascii) =
            ascii_letters(window[1..].try_into().expect("16 bytes"));
        let is_word = num_letters >= u32::from(least[window[0] as usize]) && stops_at_ascii;
        is_word.then_some(start + 1 + num_letters as usize)
    }

    #[inline(always)]
    fn gpt4(self, start: usize, digits: usize, whole_end: bool) -> usize {
        if let Some(end) = self.ascii_word(start, &GPT4_LEAST) {
            return end;
        }
        let (class, next) = self.class(start);
        if class == LETTER {
            return self.letters(next);
        }
        if class == NUMBER {
            return self.numbers(next, digits - 1);
        }
        let (after, after_end) = self.class(next);
        if after == LETTER && class & NEWLINE == 0 {
            if self.bytes[start] == b'\'' {
                if let Some(end) = self.contraction(next, true) {
                    return end;
                }
            }
            return self.letters(after_end);
        }
        if class == OTHER {
            return self.run(NEWLINE, self.run(OTHER, next));
        }
        if after == OTHER && self.bytes[start] == b' ' {
            return self.run(NEWLINE, self.run(OTHER, after_end));
        }
        let end = self.run(SPACE, next);
        if whole_end && end == self.bytes.len() {
            return end;
        }
        let is_newline = |byte: &u8| matches!(byte, b'\r' | b'\n');
        match self.bytes[start..end].iter().rposition(is_newline) {
            Some(last) => start + last + 1,
            None => self.spaces(start, next, end),
        }
    }

    #[inline(always)]
    fn gpt2(self, start: usize) -> usize {
        if let Some(end) = self.ascii_word(start, &GPT2_LEAST) {
            return end;
        }
        let (class, next) = self.class(start);
        if self.bytes[start] == b'\'' {
            if let Some(end) = self.contraction(next, false) {
                return end;
            }
        }
        if class & SPACE == 0 {
            return self.run(class, next);
        }
        let (after, after_end) = self.class(next);
        if self.bytes[start] == b' ' && after == LETTER {
            return self.letters(after_end);
        }
        if self.bytes[start] == b' ' && after & (NUMBER | OTHER) != 0 {
            return self.run(after, after_end);
        }
        self.spaces(start, next, self.run(SPACE, next))
    }

    /// `\s+(?!\S)|\s+` on the run from `start`, whose first character ends at `next`, to `end`: all of it at the
    /// end of the text, else all but the last character, which is left to lead the next word.
    #[inline(always)]
    fn spaces(self, start: usize, next: usize, end: usize) -> usize {
        if end == self.bytes.len() || end == next {
            return end;
        }
        let mut last = end - 1;
        while self.bytes[last] & 0xC0 == 0x80 {
            last -= 1;
        }
        debug_assert!(last > start);
        last
    }

    #[inline(always)]
    fn numbers(self, mut at: usize, most: usize) -> usize {
        for _ in 0..most {
            let (class, next) = self.class(at);
            if class != NUMBER {
                break;
            }
            at = next;
        }
        at
    }

    /// Where `[sdmt]|ll|ve|re` ends if it begins at `at`. Without regard to case, ſ (U+017F) is an s.
    fn contraction(self, at: usize, any_case: bool) -> Option<usize> {
        let case = if any_case { 0x20 } else { 0 };
        let first = self.bytes.get(at)? | case;
        let second = self.bytes.get(at + 1).map(|byte| byte | case);
        match (first, second) {
            (b's' | b'd' | b'm' | b't', _) => Some(at + 1),
            (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) => Some(at + 2),
            _ if any_case && self.bytes[at..].starts_with("ſ".as_bytes()) => Some(at + 2),
            _ => None,
        }
    }
}

/// How many letters have to follow a character for both to be a word of letters; 255 where they never are (and
/// an apostrophe may begin a contraction).
const GPT4_LEAST: [u8; 256] = least_letters(true);
const GPT2_LEAST: [u8; 256] = least_letters(false);

const fn least_letters(any_lead: bool) -> [u8; 256] {
    let mut least = [255; 256];
    let mut byte = 0;
    while byte < 0x80 {
        let first = byte as u8;
        least[byte] = match first {
            _ if first.is_ascii_alphabetic() => 0,
            b' ' => 1,
            b'\r' | b'\n' | b'\'' | b'0'..=b'9' => 255,
            _ if any_lead => 1,
            _ => 255,
        };
        byte += 1;
    }
    least
}

/// How many of 16 bytes are ASCII letters before the first that is none, and whether that one is there and ASCII.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ascii_letters(bytes: &[u8; 16]) -> (u32, bool) {
    use std::arch::x86_64::{
        _mm_cmplt_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
        _mm_sub_epi8,
    };
    // SAFETY: 16 bytes are read, which are there; every x86-64 has these instructions (SSE2).
    let (letters, wide) = unsafe {
        let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
        let small = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
        // a to z become the 26 lowest of the signed numbers
        let moved = _mm_sub_epi8(small, _mm_set1_epi8(b'a'.wrapping_add(0x80) as i8));
        let letters = _mm_cmplt_epi8(moved, _mm_set1_epi8(-128 + 26));
        (_mm_movemask_epi8(letters), _mm_movemask_epi8(bytes))
    };
    let num_letters = letters.trailing_ones();
    (num_letters, (wide | 1 << 16) >> num_letters & 1 == 0)
}

/// How many of 16 bytes are ASCII letters before the first that is none, and whether that one is there and ASCII.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn ascii_letters(bytes: &[u8; 16]) -> (u32, bool) {
    let half = |at: usize| {
        leading_letters(u64::from_le_bytes(
            bytes[at..at + 8].try_into().expect("8 bytes"),
        ))
    };
    let (first, second) = (half(0), half(8));
    let num_letters = first + if first == 8 { second } else { 0 };
    let stops_at_ascii = num_letters < 16 && bytes[num_letters % 16] < 0x80;
    (num_letters as u32, stops_at_ascii)
}

/// How many of eight bytes, from the lowest, are ASCII letters before the first that is none.
#[inline(always)]
fn leading_letters(bytes: u64) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = (bytes | (0x20 * EACH)) & (0x7F * EACH); // small letters, the highest bit of each byte free
    let from_a = low + (0x80 - u64::from(b'a')) * EACH; // sets it from a on
    let past_z = low + (0x7F - u64::from(b'z')) * EACH; // sets it after z
    let others = !(from_a & !past_z & !bytes) & (0x80 * EACH);
    (others.trailing_zeros() / 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_letters_are_found_among_all_bytes_at_all_places() {
        for place in 0..8 {
            for byte in 0..=255_u8 {
                let mut bytes = *b"aZzAmMbY";
                bytes[place] = byte;
                let expected = if byte.is_ascii_alphabetic() { 8 } else { place };
                let found = leading_letters(u64::from_le_bytes(bytes));
                assert_eq!(found, expected, "{bytes:?}");
            }
        }
    }

    #[test]
    fn ascii_letters_are_counted_among_all_bytes_at_all_places() {
        for place in 0..16 {
            for byte in 0..=255_u8 {
                let mut bytes = *b"aZzAmMbYkKxXqQtT";
                bytes[place] = byte;
                let expected = match byte.is_ascii_alphabetic() {
                    true => (16, false),
                    false => (place as u32, byte.is_ascii()),
                };
                assert_eq!(ascii_letters(&bytes), expected, "{bytes:?}");
            }
        }
    }
}
