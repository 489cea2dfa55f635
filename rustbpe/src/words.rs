//! Texts to words: how often each word occurs, counted on all threads.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustc_hash::FxHashMap;

use crate::split::{PatternError, Splitter};
use crate::table::{Block, Table, word_of};

/// A thread takes texts of about so many bytes at a time.
const SHARE_BYTES: usize = 1 << 18;

/// How often each word occurs; the words are those that the pattern cuts out of the texts added.
pub struct WordCounts {
    splitter: Splitter,
    /// One for each thread; a word may stand in several.
    parts: Vec<Part>,
}

#[derive(Default)]
struct Part {
    short: Table<u64>,
    long: FxHashMap<Box<[u8]>, u64>,
    num_words: u64,
}

impl WordCounts {
    /// No words yet; counted on so many threads.
    pub fn new(splitter: Splitter, threads: usize) -> Self {
        let parts = (0..threads.max(1)).map(|_| Part::default()).collect();
        Self { splitter, parts }
    }

    /// Counts the words of `texts`; linear in the bytes.
    pub fn add(&mut self, texts: &[&str]) -> Result<(), PatternError> {
        let next = AtomicUsize::new(0);
        let shares = shares(texts);
        let (splitter, next, shares) = (&self.splitter, &next, &shares);
        let work = move |part: &mut Part| {
            while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
                for text in *share {
                    part.add(splitter, text)?;
                }
            }
            Ok(())
        };
        let (first, others) = self.parts.split_first_mut().expect("a part");
        thread::scope(|scope| {
            let others: Vec<_> = others
                .iter_mut()
                .take(shares.len().saturating_sub(1))
                .map(|part| scope.spawn(move || work(part)))
                .collect();
            let mut result = work(first);
            for other in others {
                result = result.and(other.join().expect("counting does not panic"));
            }
            result
        })
    }

    /// How many words the texts had.
    pub fn num_words(&self) -> u64 {
        self.parts.iter().map(|part| part.num_words).sum()
    }

    /// How many different words there are, or a larger number that is at most `bound`.
    ///
    /// Words that stand in several parts are told apart only where the sum of the parts is beyond `bound`.
    pub fn num_distinct(&mut self, bound: usize) -> usize {
        let most: usize = self.parts.iter().map(Part::len).sum();
        if most <= bound {
            return most;
        }
        self.unite();
        self.parts[0].len()
    }

    /// Every word once, as bytes with its count, in no particular order.
    pub fn for_each(&mut self, mut each: impl FnMut(&[u8], u64)) {
        self.unite();
        for (key, count) in self.parts[0].short.iter() {
            let (word, len) = word_of(key);
            each(&word[..len], count);
        }
        for (word, &count) in &self.parts[0].long {
            each(word, count);
        }
    }

    /// Adds all parts to the first.
    fn unite(&mut self) {
        let (first, others) = self.parts.split_first_mut().expect("a part");
        for other in others {
            let Part {
                short,
                long,
                num_words,
            } = std::mem::take(other);
            for (key, count) in short.iter() {
                *first.short.get_or_default(key) += count;
            }
            for (word, count) in long {
                *first.long.entry(word).or_insert(0) += count;
            }
            first.num_words += num_words;
        }
    }
}

impl Part {
    fn add(&mut self, splitter: &Splitter, text: &str) -> Result<(), PatternError> {
        let bytes = text.as_bytes();
        let mut block = Block::default();
        splitter.split(text, |start, end| {
            if block.push(bytes, start, end) {
                self.count(bytes, &mut block);
            }
        })?;
        self.count(bytes, &mut block);
        Ok(())
    }

    #[inline(always)]
    fn count(&mut self, bytes: &[u8], block: &mut Block) {
        let Self {
            short,
            long,
            num_words,
        } = self;
        for (key, (start, end), guess) in block.drain(short) {
            *num_words += 1;
            if let Some(count) = short.guessed(guess) {
                *count += 1;
            } else if key != 0 {
                *short.get_or_default(key) += 1;
            } else {
                count_long(long, &bytes[start..end]);
            }
        }
    }

    fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }
}

fn count_long(counts: &mut FxHashMap<Box<[u8]>, u64>, word: &[u8]) {
    match counts.get_mut(word) {
        Some(count) => *count += 1,
        None => {
            counts.insert(word.into(), 1);
        }
    }
}

/// `texts` in runs of about [`SHARE_BYTES`].
pub(crate) fn shares<'t>(texts: &'t [&'t str]) -> Vec<&'t [&'t str]> {
    let mut shares = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        bytes += text.len();
        if bytes >= SHARE_BYTES {
            shares.push(&texts[start..=index]);
            (start, bytes) = (index + 1, 0);
        }
    }
    if start < texts.len() {
        shares.push(&texts[start..]);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(pattern: &str, threads: usize, texts: &[&str]) -> Vec<(String, u64)> {
        let mut words = WordCounts::new(Splitter::new(pattern).unwrap(), threads);
        words.add(texts).unwrap();
        let mut counts = Vec::new();
        words.for_each(|word, count| {
            counts.push((String::from_utf8(word.to_vec()).unwrap(), count));
        });
        counts.sort();
        counts
    }

    #[test]
    fn words_are_counted_over_all_texts() {
        let counts = counted(r"\w+", 1, &["a b a", "", "b c"]);
        assert_eq!(counts, [("a".into(), 2), ("b".into(), 2), ("c".into(), 1)]);
    }

    #[test]
    fn lookahead_leaves_the_last_space_to_the_next_word() {
        let counts = counted(r" ?\w+|\s+(?!\S)|\s+", 1, &["a   b"]);
        assert_eq!(
            counts,
            [("  ".into(), 1), (" b".into(), 1), ("a".into(), 1)]
        );
    }

    #[test]
    fn threads_count_what_one_counts() {
        let long = "averyveryverylongword ".repeat(20_000);
        let numbers: String = (0..40_000).map(|number| format!("{number} ")).collect();
        let texts = [&*long, &*numbers, "x y", &*long, &*numbers, ""];
        let one = counted(r"\w+", 1, &texts);
        assert_eq!(counted(r"\w+", 3, &texts), one);
        assert_eq!(one.len(), 40_003);
    }

    #[test]
    fn distinct_words_are_counted_once_over_all_threads() {
        let text = "a b c d ".repeat(40_000);
        let mut words = WordCounts::new(Splitter::new(r"\w+").unwrap(), 2);
        words.add(&[&*text; 8]).unwrap();
        assert_eq!(words.num_distinct(4), 4);
        assert_eq!(words.num_words(), 8 * 160_000);
    }
}
