//! Word counts to merges: the loop that makes a byte-pair encoding.
//!
//! The rule: of all pairs of neighbouring tokens the one that occurs most often is merged next; of equally
//! frequent pairs the one with the smaller left id, then the smaller right id. Occurrences overlap (`aaa` holds
//! the pair (a, a) twice) and are merged from left to right. This is the rule of the package rustbpe 0.1.0.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;

use rustc_hash::FxHashMap;

use crate::Id;

/// Two neighbouring tokens.
pub type Pair = (Id, Id);

/// Where a word begins in [`Words::cells`].
type Place = u32;

/// Words as token ids, ready to be merged.
#[derive(Default)]
pub struct Words {
    /// Each word is its number of tokens, its count in two halves, then its tokens: one or two cache lines.
    cells: Vec<u32>,
}

/// Cells before a word's tokens.
const HEAD: usize = 3;

/// There is no room for all the words: they have more cells than a place can name.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge;

impl Words {
    /// Adds a word that occurs `count` times.
    pub fn add(&mut self, word: &[u8], count: u64) -> Result<(), TooLarge> {
        if word.len() < 2 {
            return Ok(()); // holds no pair
        }
        if self.cells.len() + HEAD + word.len() > Place::MAX as usize {
            return Err(TooLarge);
        }
        let head = [word.len() as u32, count as u32, (count >> 32) as u32];
        self.cells.extend_from_slice(&head);
        self.cells.extend(word.iter().map(|&byte| u32::from(byte)));
        Ok(())
    }

    /// A word's count, and its tokens.
    #[inline(always)]
    fn word(&mut self, place: Place) -> (i64, &mut u32, &mut [Id]) {
        let (head, tokens) = self.cells[place as usize..].split_at_mut(HEAD);
        let count = i64::from(head[2]) << 32 | i64::from(head[1]);
        let tokens = &mut tokens[..head[0] as usize];
        (count, &mut head[0], tokens)
    }
}

/// A pair's count, which is always exact, and the words that may hold it: one stays listed after it lost it.
#[derive(Default)]
struct Entry {
    count: i64,
    places: Vec<Place>,
}

/// What a merge changes between the new token and one neighbour, on one side.
#[derive(Default)]
struct Change {
    touched: bool,
    /// Occurrences of the neighbour beside the part that is gone.
    gone: i64,
    /// Occurrences of the neighbour beside the new token, and where.
    made: Entry,
}

/// The changes on one side, by neighbour: a merge has many occurrences, but few different neighbours.
struct Side {
    changes: Vec<Change>,
    touched: Vec<Id>,
}

impl Side {
    fn new(num_ids: usize) -> Self {
        let changes = (0..num_ids).map(|_| Change::default()).collect();
        Self {
            changes,
            touched: Vec::new(),
        }
    }

    #[inline(always)]
    fn change(&mut self, neighbour: Id) -> &mut Change {
        let change = &mut self.changes[neighbour as usize];
        if !change.touched {
            change.touched = true;
            self.touched.push(neighbour);
        }
        change
    }

    #[inline(always)]
    fn make(&mut self, neighbour: Id, place: Place, count: i64) {
        let made = &mut self.change(neighbour).made;
        made.count += count;
        if made.places.last() != Some(&place) {
            made.places.push(place);
        }
    }
}

struct State {
    words: Words,
    pairs: FxHashMap<Pair, u32>,
    entries: Vec<Entry>,
    left: Side,
    right: Side,
}

/// After so many words `watch` is asked again whether to stop, before the first merge.
pub const WATCHED_WORDS: usize = 1 << 16;

/// The first `num_merges` merges, or as many as there are; `None` if `watch` (handed the number made, before
/// every merge) said stop.
///
/// Time is O(B + Σ over merges of the tokens of the words that hold the pair), B the bytes of all distinct words;
/// hashing and the queue are paid per pair that changes, not per occurrence. Memory is O(B): about 8 bytes a byte.
pub fn learn(
    words: Words,
    num_merges: usize,
    mut watch: impl FnMut(usize) -> bool,
) -> Option<Vec<Pair>> {
    let mut state = State::new(words, num_merges, &mut watch)?;
    let mut queue: BinaryHeap<(i64, Reverse<Pair>)> = state
        .pairs
        .iter()
        .map(|(&pair, &entry)| (state.entries[entry as usize].count, Reverse(pair)))
        .collect();
    let mut merges = Vec::new();
    while merges.len() < num_merges {
        if !watch(merges.len()) {
            return None;
        }
        let Some((count, Reverse(pair))) = queue.pop() else {
            break;
        };
        // A pair's count only falls after it was queued: queue it again with the count it has now.
        let entry = &mut state.entries[state.pairs[&pair] as usize];
        if entry.count < count {
            if entry.count > 0 {
                queue.push((entry.count, Reverse(pair)));
            }
            continue;
        }
        let places = mem::take(&mut entry.places);
        state.pairs.remove(&pair); // every occurrence is replaced, and new pairs hold the new token
        let id = 256 + merges.len() as Id;
        for place in places {
            state.merge_word(place, pair, id);
        }
        state.settle(pair, id, |pair, count| queue.push((count, Reverse(pair))));
        merges.push(pair);
    }
    Some(merges)
}

impl State {
    fn new(words: Words, num_merges: usize, watch: &mut impl FnMut(usize) -> bool) -> Option<Self> {
        let mut state = Self {
            words,
            pairs: FxHashMap::default(),
            entries: Vec::new(),
            left: Side::new(256 + num_merges),
            right: Side::new(256 + num_merges),
        };
        let mut of_bytes: Vec<Entry> = (0..1 << 16).map(|_| Entry::default()).collect();
        let (mut place, mut seen) = (0, 0_usize);
        while place < state.words.cells.len() {
            seen += 1;
            if seen % WATCHED_WORDS == 0 && !watch(0) {
                return None;
            }
            let (count, _, tokens) = state.words.word(place as Place);
            for pair in tokens.windows(2) {
                let entry = &mut of_bytes[(pair[0] << 8 | pair[1]) as usize];
                entry.count += count;
                if entry.places.last() != Some(&(place as Place)) {
                    entry.places.push(place as Place);
                }
            }
            place += HEAD + tokens.len();
        }
        for (pair, entry) in (0..).zip(of_bytes) {
            if entry.count > 0 {
                state.add_entry((pair >> 8, pair & 0xFF), entry);
            }
        }
        Some(state)
    }

    fn add_entry(&mut self, pair: Pair, entry: Entry) {
        self.pairs.insert(pair, self.entries.len() as u32);
        self.entries.push(entry);
    }

    /// Replaces the pair by `id` in one word, and notes what this changes beside it.
    #[inline(always)]
    fn merge_word(&mut self, place: Place, (a, b): Pair, id: Id) {
        let (count, len, tokens) = self.words.word(place);
        let Some(first) = tokens.windows(2).position(|pair| pair == [a, b]) else {
            return;
        };
        let (mut read, mut write) = (first, first);
        while read < tokens.len() {
            if read + 1 < tokens.len() && tokens[read] == a && tokens[read + 1] == b {
                if write > 0 {
                    let neighbour = tokens[write - 1];
                    if neighbour == id {
                        // What the merge before counted beside its right: (id, a), which this one replaces.
                        self.right.change(a).made.count -= count;
                    } else {
                        self.left.change(neighbour).gone += count;
                    }
                    self.left.make(neighbour, place, count);
                }
                if read + 2 < tokens.len() {
                    let neighbour = tokens[read + 2];
                    self.right.change(neighbour).gone += count;
                    self.right.make(neighbour, place, count);
                }
                tokens[write] = id;
                read += 2;
            } else {
                tokens[write] = tokens[read];
                read += 1;
            }
            write += 1;
        }
        *len = write as u32;
    }

    /// Brings the counts of all pairs up to date after a merge; `queue` is handed each new pair.
    fn settle(&mut self, (a, b): Pair, id: Id, mut queue: impl FnMut(Pair, i64)) {
        for neighbour in mem::take(&mut self.left.touched) {
            let change = mem::take(&mut self.left.changes[neighbour as usize]);
            self.settle_one((neighbour, a), (neighbour, id), change, &mut queue);
        }
        for neighbour in mem::take(&mut self.right.touched) {
            let change = mem::take(&mut self.right.changes[neighbour as usize]);
            self.settle_one((b, neighbour), (id, neighbour), change, &mut queue);
        }
    }

    fn settle_one(
        &mut self,
        gone: Pair,
        made: Pair,
        change: Change,
        queue: &mut impl FnMut(Pair, i64),
    ) {
        if change.gone > 0 {
            // The merged pair itself is no longer listed: (a, a) in aaa is beside what replaced it.
            if let Some(&entry) = self.pairs.get(&gone) {
                self.entries[entry as usize].count -= change.gone;
            }
        }
        if change.made.count > 0 {
            queue(made, change.made.count);
            self.add_entry(made, change.made);
        }
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

    fn collect(words: &[(&str, u64)]) -> Words {
        let mut collected = Words::default();
        for (word, count) in words {
            collected.add(word.as_bytes(), *count).unwrap();
        }
        collected
    }

    fn fast(words: &[(&str, u64)], num_merges: usize) -> Vec<Pair> {
        learn(collect(words), num_merges, |_| true).unwrap()
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
        assert_eq!(learn(collect(&[("ab", 1)]), 1, |_| false), None);
    }

    #[test]
    fn a_token_is_its_two_parts_joined() {
        let tokens = token_bytes(&fast(&[("abab", 1)], 9));
        assert_eq!(tokens[256..], [b"ab".to_vec(), b"abab".to_vec()]);
    }
}
