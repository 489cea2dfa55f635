//! Word counts to merges: the loop that makes a byte-pair encoding.
//!
//! The rule: of all pairs of neighbouring tokens the one that occurs most often is merged next; of equally
//! frequent pairs the one with the smaller left id, then the smaller right id. Occurrences overlap (`aaa` holds
//! the pair (a, a) twice) and are merged from left to right. This is the rule of the package rustbpe 0.1.0.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// A token's id: 0–255 are the bytes, 256 + i is what merge i made.
pub type Id = u32;
/// Two neighbouring tokens.
pub type Pair = (Id, Id);

/// How many merges are made between two calls of the watcher.
const WATCH_EVERY: usize = 64;

struct Word {
    start: usize,
    len: u32,
    count: i64,
}

struct PairEntry {
    count: i64,
    /// Indices of the words that may hold the pair, ascending. A word stays listed after it lost the pair.
    words: Vec<u32>,
}

/// All words as token ids in one buffer, and for every pair its count and where it occurs.
#[derive(Default)]
struct State {
    tokens: Vec<Id>,
    words: Vec<Word>,
    pairs: FxHashMap<Pair, u32>,
    entries: Vec<PairEntry>,
}

/// The first `num_merges` merges, or as many as there are; `None` if `watch` (handed the number made) said stop.
///
/// Time is O(B + Σ over merges of the words that hold the pair), B the bytes of all distinct words; memory O(B).
pub fn learn<'w>(
    words: impl IntoIterator<Item = (&'w str, u64)>,
    num_merges: usize,
    mut watch: impl FnMut(usize) -> bool,
) -> Option<Vec<Pair>> {
    let mut state = State::default();
    for (word, count) in words {
        state.add_word(word.as_bytes(), count as i64);
    }
    let mut queue: BinaryHeap<(i64, Reverse<Pair>)> = state
        .pairs
        .iter()
        .map(|(&pair, &entry)| (state.entries[entry as usize].count, Reverse(pair)))
        .collect();
    let mut merges = Vec::new();
    while merges.len() < num_merges {
        if merges.len() % WATCH_EVERY == 0 && !watch(merges.len()) {
            return None;
        }
        let Some((count, Reverse(pair))) = queue.pop() else {
            break;
        };
        // A pair's count only falls after it was queued: queue it again with the count it has now.
        let current = state.entries[state.pairs[&pair] as usize].count;
        if current < count {
            if current > 0 {
                queue.push((current, Reverse(pair)));
            }
            continue;
        }
        let id = 256 + merges.len() as Id;
        for (pair, entry) in state.merge(pair, id) {
            let count = state.entries[entry as usize].count;
            if count > 0 {
                queue.push((count, Reverse(pair))); // 0: the same merge made it and used it up again
            }
        }
        merges.push(pair);
    }
    Some(merges)
}

impl State {
    fn add_word(&mut self, bytes: &[u8], count: i64) {
        if bytes.len() < 2 {
            return; // holds no pair
        }
        let index = self.words.len() as u32;
        self.words.push(Word {
            start: self.tokens.len(),
            len: bytes.len() as u32,
            count,
        });
        self.tokens.extend(bytes.iter().map(|&byte| Id::from(byte)));
        for pair in bytes.windows(2) {
            self.add_pair((pair[0].into(), pair[1].into()), index, count);
        }
    }

    /// Counts an occurrence of `pair` in the word; the pair's entry and whether it is a new one.
    fn add_pair(&mut self, pair: Pair, word: u32, count: i64) -> Option<(Pair, u32)> {
        let next = self.entries.len() as u32;
        let index = *self.pairs.entry(pair).or_insert(next);
        if index == next {
            self.entries.push(PairEntry {
                count,
                words: vec![word],
            });
            return Some((pair, index));
        }
        let entry = &mut self.entries[index as usize];
        entry.count += count;
        if entry.words.last() != Some(&word) {
            entry.words.push(word);
        }
        None
    }

    fn remove_pair(&mut self, pair: Pair, count: i64) {
        self.entries[self.pairs[&pair] as usize].count -= count;
    }

    /// Replaces `pair` by `id` in every word; the pairs that this made, with their entries.
    fn merge(&mut self, pair: Pair, id: Id) -> Vec<(Pair, u32)> {
        let entry = self.pairs[&pair] as usize;
        let words = std::mem::take(&mut self.entries[entry].words);
        let mut made = Vec::new();
        for word in words {
            self.merge_word(word, pair, id, &mut made);
        }
        made
    }

    fn merge_word(&mut self, index: u32, (a, b): Pair, id: Id, made: &mut Vec<(Pair, u32)>) {
        let Word { start, len, count } = self.words[index as usize];
        let end = start + len as usize;
        let (mut read, mut write) = (start, start);
        while read < end {
            if read + 1 < end && self.tokens[read] == a && self.tokens[read + 1] == b {
                self.remove_pair((a, b), count);
                if write > start {
                    let left = self.tokens[write - 1];
                    self.remove_pair((left, a), count);
                    made.extend(self.add_pair((left, id), index, count));
                }
                if read + 2 < end {
                    let right = self.tokens[read + 2];
                    self.remove_pair((b, right), count);
                    made.extend(self.add_pair((id, right), index, count));
                }
                self.tokens[write] = id;
                read += 2;
            } else {
                self.tokens[write] = self.tokens[read];
                read += 1;
            }
            write += 1;
        }
        self.words[index as usize].len = (write - start) as u32;
    }
}

/// The bytes of every token in rank order: the 256 bytes, then what each merge makes.
pub fn token_bytes(merges: &[Pair]) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    for &(left, right) in merges {
        tokens.push([&*tokens[left as usize], &*tokens[right as usize]].concat());
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule written out: count all pairs anew before every merge.
    fn slow(words: &[(&str, u64)], num_merges: usize) -> Vec<Pair> {
        let mut words: Vec<(Vec<Id>, u64)> = words
            .iter()
            .map(|&(word, count)| (word.bytes().map(Id::from).collect(), count))
            .collect();
        let mut merges = Vec::new();
        while merges.len() < num_merges {
            let mut counts: FxHashMap<Pair, u64> = FxHashMap::default();
            for (tokens, count) in &words {
                for pair in tokens.windows(2) {
                    *counts.entry((pair[0], pair[1])).or_insert(0) += count;
                }
            }
            let best = counts
                .iter()
                .max_by_key(|&(&pair, &count)| (count, Reverse(pair)));
            let Some((&pair, _)) = best else { break };
            let id = 256 + merges.len() as Id;
            for (tokens, _) in &mut words {
                let mut at = 0;
                while at + 1 < tokens.len() {
                    if (tokens[at], tokens[at + 1]) == pair {
                        tokens.splice(at..at + 2, [id]);
                    }
                    at += 1;
                }
            }
            merges.push(pair);
        }
        merges
    }

    fn fast(words: &[(&str, u64)], num_merges: usize) -> Vec<Pair> {
        learn(words.iter().copied(), num_merges, |_| true).unwrap()
    }

    #[test]
    fn equals_counting_anew_before_every_merge() {
        let texts: [&[(&str, u64)]; 6] = [
            &[("aaaaaaaaa", 3), ("aaaa", 1), ("baaab", 2)],
            &[("abababab", 1), ("babab", 1), ("ab", 5)],
            &[
                ("hug", 10),
                ("pug", 5),
                ("pun", 12),
                ("bun", 4),
                ("hugs", 5),
            ],
            &[("über", 2), ("größe", 2), ("🙂🙃🙂🙃", 7)],
            &[("", 9), ("x", 9)],
            &[("mississippi", 1), ("missing", 1), ("sip", 1)],
        ];
        for words in texts {
            assert_eq!(fast(words, 100), slow(words, 100), "{words:?}");
        }
    }

    #[test]
    fn equals_counting_anew_on_random_words() {
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let words: Vec<(String, u64)> = (0..1 + random(8))
                .map(|_| {
                    let letters = (0..random(12)).map(|_| [b'a', b'b', b'c'][random(3) as usize]);
                    (String::from_utf8(letters.collect()).unwrap(), 1 + random(4))
                })
                .collect();
            let words: Vec<(&str, u64)> = words.iter().map(|(word, n)| (&**word, *n)).collect();
            assert_eq!(fast(&words, 50), slow(&words, 50), "{words:?}");
        }
    }

    #[test]
    fn of_equally_frequent_pairs_the_smallest_comes_first() {
        let merges = fast(&[("zy", 1), ("za", 1), ("ab", 1)], 3);
        let expected = [(b'a', b'b'), (b'z', b'a'), (b'z', b'y')];
        assert_eq!(merges, expected.map(|(a, b)| (Id::from(a), Id::from(b))));
    }

    #[test]
    fn a_watcher_that_says_stop_ends_the_work() {
        assert_eq!(learn([("ab", 1)], 1, |_| false), None);
    }

    #[test]
    fn a_token_is_its_two_parts_joined() {
        let tokens = token_bytes(&fast(&[("abab", 1)], 9));
        assert_eq!(tokens[256..], [b"ab".to_vec(), b"abab".to_vec()]);
    }
}
