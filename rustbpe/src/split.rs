//! A pattern to the words it cuts out of a text.

use std::fmt;

use fancy_regex::Regex;

use crate::scanner::Scanner;

/// Cuts texts into words: by hand for the known patterns, else by the regex crate.
#[derive(Clone, Debug)]
pub enum Splitter {
    /// A known pattern.
    Scanner(Scanner),
    /// Any other.
    Regex(Box<Regex>),
}

/// Why a pattern cuts nothing: it is invalid, or gave up on a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError(pub String);

impl fmt::Display for PatternError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for PatternError {}

impl Splitter {
    /// `Err` says what is wrong with the pattern, and where.
    pub fn new(pattern: &str) -> Result<Self, PatternError> {
        match Scanner::of(pattern) {
            Some(scanner) => Ok(Self::Scanner(scanner)),
            None => Self::regex(pattern),
        }
    }

    /// The regex crate even for a known pattern: the scanner's oracle.
    pub fn regex(pattern: &str) -> Result<Self, PatternError> {
        match Regex::new(pattern) {
            Ok(regex) => Ok(Self::Regex(Box::new(regex))),
            Err(error) => Err(PatternError(format!(
                "the pattern {pattern:?} is not a valid regular expression: {}; correct it there",
                error
                    .to_string()
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
            ))),
        }
    }

    /// Calls `word` with the start and the end of every word that is not empty, in order.
    ///
    /// Text between two matches of the pattern belongs to no word. Linear with the scanner; with a regex what
    /// the pattern takes, and `Err` where its backtracking passes all bounds.
    #[inline]
    pub fn split(
        &self,
        text: &str,
        mut word: impl FnMut(usize, usize),
    ) -> Result<(), PatternError> {
        match self {
            Self::Scanner(scanner) => scanner.split(text, word),
            Self::Regex(regex) => {
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| {
                        PatternError(format!(
                            "the pattern {:?} gave up on a text of {} bytes: {error}; choose one that \
                             backtracks less",
                            regex.as_str(),
                            text.len()
                        ))
                    })?;
                    if found.start() < found.end() {
                        word(found.start(), found.end());
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// Every known pattern as scanner and as regex.
    static KNOWN: LazyLock<Vec<(String, Splitter, Splitter)>> = LazyLock::new(|| {
        let both = |(pattern, scanner): (String, Scanner)| {
            let regex = Splitter::regex(&pattern).unwrap();
            (pattern, Splitter::Scanner(scanner), regex)
        };
        Scanner::known().into_iter().map(both).collect()
    });

    fn words<'t>(splitter: &Splitter, text: &'t str) -> Vec<&'t str> {
        let mut words = Vec::new();
        let add = |start: usize, end: usize| words.push(&text[start..end]);
        splitter.split(text, add).unwrap();
        words
    }

    fn assert_equal(text: &str) {
        for (pattern, scanner, regex) in &*KNOWN {
            assert_eq!(
                words(scanner, text),
                words(regex, text),
                "{pattern} {text:?}"
            );
        }
    }

    /// Two characters of each class and kind, and what the patterns name.
    const KINDS: [&str; 25] = [
        "a", "Z", "é", "我", "ʰ", "1", "٣", "Ⅷ", " ", "\t", "\n", "\r", "\u{85}", "\u{a0}",
        "\u{3000}", "\u{2028}", "'", "s", "L", "ſ", "K", "-", "🙂", "\u{301}", "\0",
    ];

    #[test]
    fn scanners_equal_their_regexes_on_all_rows_of_three_kinds() {
        for number in 0..KINDS.len().pow(3) {
            let kinds = [number, number / KINDS.len(), number / KINDS.len().pow(2)];
            assert_equal(&kinds.map(|kind| KINDS[kind % KINDS.len()]).concat());
        }
    }

    #[test]
    fn scanners_equal_their_regexes_beside_every_character() {
        for block in 0..0x110000 / 0x400 {
            let characters = (block * 0x400..(block + 1) * 0x400).filter_map(char::from_u32);
            let text: String = characters
                .map(|c| format!("{c}a{c}{c} {c}1'{c}\n"))
                .collect();
            // the first of GPT-2's, of GPT-4's, and of those with `whole_end`
            for (pattern, scanner, regex) in [&KNOWN[0], &KNOWN[4], &KNOWN[KNOWN.len() - 2]] {
                assert_eq!(words(scanner, &text), words(regex, &text), "{pattern}");
            }
        }
    }

    #[test]
    fn every_known_pattern_has_a_scanner() {
        for (pattern, _, _) in &*KNOWN {
            assert!(
                matches!(Splitter::new(pattern), Ok(Splitter::Scanner(_))),
                "{pattern}"
            );
        }
    }

    proptest! {
        #[test]
        fn scanners_equal_their_regexes_on_drawn_texts(
            text in "\\PC{0,20}|[ \n\r\t\u{a0}\u{3000}'slveLVEmtdrſ1٣é我.!-]{0,40}",
            any in any::<String>(),
        ) {
            assert_equal(&text);
            assert_equal(&any);
        }
    }

    #[test]
    fn other_patterns_go_through_the_regex_crate() {
        let splitter = Splitter::new(r"\w+").unwrap();
        assert!(matches!(splitter, Splitter::Regex(_)));
        assert_eq!(words(&splitter, "a b, c"), ["a", "b", "c"]);
    }

    #[test]
    fn empty_matches_are_no_words() {
        assert_eq!(words(&Splitter::new("b*").unwrap(), "abba"), ["bb"]);
    }

    #[test]
    fn an_invalid_pattern_is_refused_with_its_place() {
        let error = Splitter::new("ab(c").err().unwrap().to_string();
        assert!(
            error.contains(
                r#""ab(c" is not a valid regular expression: Parsing error at position 4"#
            ),
            "{error}"
        );
    }
}
