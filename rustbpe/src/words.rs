//! Texts to words: cutting by a pattern, and counting how often each word occurs.

use fancy_regex::Regex;
use rayon::prelude::*;
use rustc_hash::FxHashMap;

/// How often each word occurs; the words are those that the pattern cuts out of the texts added.
pub struct WordCounts {
    pattern: Regex,
    counts: FxHashMap<Box<str>, u64>,
}

impl WordCounts {
    /// No words yet. `Err` says what is wrong with the pattern.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let pattern = Regex::new(pattern).map_err(|error| {
            format!("the pattern {pattern:?} is not a valid regular expression: {error}")
        })?;
        Ok(Self {
            pattern,
            counts: FxHashMap::default(),
        })
    }

    /// Counts the words of `texts`, on all threads of the rayon pool; linear in the bytes.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T]) -> Result<(), String> {
        let pattern = &self.pattern;
        let share = texts
            .len()
            .div_ceil(4 * rayon::current_num_threads())
            .max(1);
        let parts: Vec<FxHashMap<&str, u64>> = texts
            .par_chunks(share)
            .map(|texts| count(pattern, texts))
            .collect::<Result<_, _>>()?;
        for part in parts {
            for (word, count) in part {
                match self.counts.get_mut(word) {
                    Some(total) => *total += count,
                    None => {
                        self.counts.insert(word.into(), count);
                    }
                }
            }
        }
        Ok(())
    }

    /// Every word once, with its count, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.counts.iter().map(|(word, &count)| (&**word, count))
    }
}

fn count<'t, T: AsRef<str>>(
    pattern: &Regex,
    texts: &'t [T],
) -> Result<FxHashMap<&'t str, u64>, String> {
    let mut counts = FxHashMap::default();
    for text in texts {
        for word in pattern.find_iter(text.as_ref()) {
            let word = word.map_err(|error| format!("the pattern gave up on a text: {error}"))?;
            *counts.entry(word.as_str()).or_insert(0) += 1;
        }
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(pattern: &str, texts: &[&str]) -> Vec<(String, u64)> {
        let mut words = WordCounts::new(pattern).unwrap();
        words.add(texts).unwrap();
        let mut counts: Vec<_> = words.iter().map(|(word, n)| (word.into(), n)).collect();
        counts.sort();
        counts
    }

    #[test]
    fn words_are_counted_over_all_texts() {
        let counts = counted(r"\w+", &["a b a", "", "b c"]);
        assert_eq!(counts, [("a".into(), 2), ("b".into(), 2), ("c".into(), 1)]);
    }

    #[test]
    fn lookahead_leaves_the_last_space_to_the_next_word() {
        let counts = counted(r" ?\w+|\s+(?!\S)|\s+", &["a   b"]);
        assert_eq!(
            counts,
            [("  ".into(), 1), (" b".into(), 1), ("a".into(), 1)]
        );
    }

    #[test]
    fn an_invalid_pattern_is_refused_by_name() {
        let error = WordCounts::new("(a").err().unwrap();
        assert!(error.contains("\"(a\" is not a valid regular expression"));
    }
}
