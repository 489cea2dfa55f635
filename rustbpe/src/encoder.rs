//! Text to token ids, exactly as tiktoken gives them.
//!
//! A word that is a token is that token. In any other the two neighbours whose bytes together are the token of
//! the lowest rank become that token, the leftmost of equals first, until no two are one. Words repeat: those met
//! before are looked up, and a cold cache of them fills quickly.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustc_hash::FxHashMap;

use crate::Id;
use crate::split::{PatternError, Splitter};
use crate::table::{Block, Key, LONGEST_KEY, Table, key};
use crate::words::shares;

/// No token: two neighbours that together are none.
const NONE: Id = Id::MAX;
/// Words of more bytes are merged through a queue, O(n log n); shorter ones by looking at all pairs, O(n²).
const SCAN_BYTES: usize = 64;
/// Words of more bytes are not remembered.
const REMEMBERED_BYTES: usize = 256;
/// A thread forgets what it remembers at so many words or tokens: at most about 64 MB.
const REMEMBERED_WORDS: usize = 1 << 20;

/// How an id is written: 2 bytes where the vocabulary fits, else 4.
pub trait Width: Copy + Send + sealed::Sealed {
    /// The id, which fits.
    fn from_id(id: Id) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
}

impl Width for u16 {
    #[inline(always)]
    fn from_id(id: Id) -> Self {
        id as Self
    }
}

impl Width for u32 {
    #[inline(always)]
    fn from_id(id: Id) -> Self {
        id
    }
}

/// Encodes text with one vocabulary; any number of threads may share it.
pub struct Encoder {
    splitter: Splitter,
    /// The tokens that fit into a key, and the longer ones.
    short: Table<Id>,
    long: FxHashMap<Box<[u8]>, Id>,
    pairs: Pairs,
    /// What threads remember, for the next to go on with.
    memories: Mutex<Vec<Memory>>,
}

/// The words a thread has met, and room to work in.
#[derive(Default)]
struct Memory {
    short: Table<Known>,
    long: FxHashMap<Box<[u8]>, Known>,
    /// The ids of words of more than three tokens.
    ids: Vec<Id>,
    work: Work,
}

/// A word's ids: up to three of them, or where they begin in [`Memory::ids`].
#[derive(Clone, Copy, Default)]
struct Known {
    num_ids: u32,
    ids: [Id; 3],
}

impl Encoder {
    /// The tokens in rank order, of which the first 256 are the bytes 0 to 255.
    ///
    /// O(bytes of all tokens): every way to cut a token in two tokens is looked for.
    pub fn new(tokens: &[Vec<u8>], splitter: Splitter) -> Self {
        let ids: FxHashMap<Box<[u8]>, Id> = (0..)
            .zip(tokens)
            .map(|(id, token)| (token.as_slice().into(), id))
            .collect();
        let mut pairs = Vec::new();
        for (id, token) in (0..).zip(tokens) {
            for cut in 1..token.len() {
                if let (Some(&left), Some(&right)) =
                    (ids.get(&token[..cut]), ids.get(&token[cut..]))
                {
                    pairs.push(((left, right), id));
                }
            }
        }
        let mut short = Table::default();
        for (token, &id) in &ids {
            if let Some(key) = key(token, 0, token.len()) {
                *short.get_or_default(key) = id + 1; // 0 is no token
            }
        }
        let mut long = ids;
        long.retain(|token, _| token.len() > LONGEST_KEY);
        Self {
            splitter,
            short,
            long,
            pairs: Pairs::new(&pairs),
            memories: Mutex::default(),
        }
    }

    /// Appends the ids of `text` to `out`.
    pub fn encode<W: Width>(&self, text: &str, out: &mut Vec<W>) -> Result<(), PatternError> {
        let mut memory = self.remember();
        let result = self.encode_with(&mut memory, text, out);
        self.keep(memory);
        result
    }

    /// The ids of each text on so many threads, after `first` where there is one: all in one row, and where each
    /// text's begin and the last's end.
    pub fn encode_batch<W: Width>(
        &self,
        texts: &[&str],
        first: Option<Id>,
        threads: usize,
    ) -> Result<Vec<Encoded<W>>, PatternError> {
        let shares = shares(texts);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut memory = self.remember();
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(share) = shares.get(index) else {
                    break;
                };
                let mut encoded = Encoded::default();
                for text in *share {
                    encoded.ids.extend(first.map(W::from_id));
                    self.encode_with(&mut memory, text, &mut encoded.ids)?;
                    encoded.ends.push(encoded.ids.len());
                }
                done.push((index, encoded));
            }
            self.keep(memory);
            Ok(done)
        };
        let mut encoded = thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(shares.len()))
                .map(|_| scope.spawn(work))
                .collect();
            let mut done = work();
            for other in others {
                let more = other.join().expect("encoding does not panic");
                done = done.and_then(|mut done: Vec<_>| {
                    done.extend(more?);
                    Ok(done)
                });
            }
            done
        })?;
        encoded.sort_unstable_by_key(|&(index, _)| index);
        Ok(encoded.into_iter().map(|(_, encoded)| encoded).collect())
    }

    fn encode_with<W: Width>(
        &self,
        memory: &mut Memory,
        text: &str,
        out: &mut Vec<W>,
    ) -> Result<(), PatternError> {
        let bytes = text.as_bytes();
        let mut block = Block::default();
        self.splitter.split(text, |start, end| {
            if block.push(bytes, start, end) {
                self.encode_block(memory, bytes, &mut block, out);
            }
        })?;
        self.encode_block(memory, bytes, &mut block, out);
        Ok(())
    }

    #[inline(always)]
    fn encode_block<W: Width>(
        &self,
        memory: &mut Memory,
        bytes: &[u8],
        block: &mut Block,
        out: &mut Vec<W>,
    ) {
        memory.forget_if_full(); // between blocks: the guesses of a block stay true
        for (key, (start, end), guess) in block.drain(&memory.short) {
            if let Some(known) = memory.short.guessed(guess) {
                known.write(&memory.ids, out);
            } else if key != 0 {
                self.encode_short(memory, key, &bytes[start..end], out);
            } else {
                self.encode_long(memory, &bytes[start..end], out);
            }
        }
    }

    #[inline(never)]
    fn encode_short<W: Width>(&self, memory: &mut Memory, key: Key, word: &[u8], out: &mut Vec<W>) {
        let known = memory.short.get_or_default(key);
        if known.num_ids == 0 {
            *known = match self.short.get(key) {
                Some(&id) => Known::of(&[id - 1], &mut memory.ids),
                None => Known::of(memory.work.merge(word, &self.pairs), &mut memory.ids),
            };
        }
        known.write(&memory.ids, out);
    }

    #[inline(never)]
    fn encode_long<W: Width>(&self, memory: &mut Memory, word: &[u8], out: &mut Vec<W>) {
        if let Some(known) = memory.long.get(word) {
            return known.write(&memory.ids, out);
        }
        let ids = match self.long.get(word) {
            Some(id) => std::slice::from_ref(id),
            None => memory.work.merge(word, &self.pairs),
        };
        out.extend(ids.iter().map(|&id| W::from_id(id)));
        if word.len() <= REMEMBERED_BYTES {
            let known = Known::of(ids, &mut memory.ids);
            memory.long.insert(word.into(), known);
        }
    }

    fn remember(&self) -> Memory {
        self.memories
            .lock()
            .expect("no panic while it is held")
            .pop()
            .unwrap_or_default()
    }

    fn keep(&self, memory: Memory) {
        self.memories
            .lock()
            .expect("no panic while it is held")
            .push(memory);
    }
}

/// The ids of some texts in one row, and where those of each end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded<W> {
    /// The ids of all texts.
    pub ids: Vec<W>,
    /// The end of each text's ids.
    pub ends: Vec<usize>,
}

impl<W> Default for Encoded<W> {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl Memory {
    fn forget_if_full(&mut self) {
        if self.short.len() + self.long.len() >= REMEMBERED_WORDS
            || self.ids.len() >= 4 * REMEMBERED_WORDS
        {
            *self = Self::default();
        }
    }
}

impl Known {
    fn of(ids: &[Id], many: &mut Vec<Id>) -> Self {
        let mut known = Self {
            num_ids: ids.len() as u32,
            ids: [0; 3],
        };
        if ids.len() <= 3 {
            known.ids[..ids.len()].copy_from_slice(ids);
        } else {
            known.ids[0] = many.len() as u32;
            many.extend_from_slice(ids);
        }
        known
    }

    #[inline(always)]
    fn write<W: Width>(&self, many: &[Id], out: &mut Vec<W>) {
        let [a, b, c] = self.ids;
        match self.num_ids {
            1 => out.push(W::from_id(a)),
            2 => out.extend_from_slice(&[W::from_id(a), W::from_id(b)]),
            3 => out.extend_from_slice(&[W::from_id(a), W::from_id(b), W::from_id(c)]),
            n => {
                let ids = &many[a as usize..(a + n) as usize];
                out.extend(ids.iter().map(|&id| W::from_id(id)));
            }
        }
    }
}

/// Pairs of tokens to the token that they are together.
struct Pairs {
    of_bytes: Box<[Id]>,
    /// A bit for each hash that a pair has: most pairs asked for are none, which this says from a fast cache.
    filter: Box<[u64]>,
    /// Open addressing, at most half full: left and right, then the token; [`NONE`] where there is none.
    slots: Box<[(u64, Id)]>,
}

/// 2^20 bits, 128 KB.
const FILTER_BITS: u32 = 20;

impl Pairs {
    fn new(pairs: &[((Id, Id), Id)]) -> Self {
        let num_slots = (2 * pairs.len()).next_power_of_two().max(2);
        let mut of = Self {
            of_bytes: vec![NONE; 1 << 16].into(),
            filter: vec![0; 1 << (FILTER_BITS - 6)].into(),
            slots: vec![(u64::MAX, NONE); num_slots].into(),
        };
        for &((left, right), id) in pairs {
            if left < 256 && right < 256 {
                of.of_bytes[(left << 8 | right) as usize] = id;
            }
            let (key, hash) = Self::hash(left, right);
            let (word, bit) = Self::filter_place(hash);
            of.filter[word] |= 1 << bit;
            let slot = of.find(key, hash);
            of.slots[slot] = (key, id);
        }
        of
    }

    /// The token of two bytes.
    #[inline(always)]
    fn bytes(&self, left: u8, right: u8) -> Id {
        self.of_bytes[usize::from(left) << 8 | usize::from(right)]
    }

    /// The token of two tokens.
    #[inline(always)]
    fn get(&self, left: Id, right: Id) -> Id {
        let (key, hash) = Self::hash(left, right);
        let (word, bit) = Self::filter_place(hash);
        if self.filter[word] >> bit & 1 == 0 {
            return NONE;
        }
        self.slots[self.find(key, hash)].1
    }

    #[inline(always)]
    fn hash(left: Id, right: Id) -> (u64, u64) {
        let key = u64::from(left) << 32 | u64::from(right);
        let hash = (key ^ key >> 29).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (key, hash)
    }

    #[inline(always)]
    fn filter_place(hash: u64) -> (usize, u32) {
        let place = (hash >> (64 - FILTER_BITS)) as u32;
        ((place / 64) as usize, place % 64)
    }

    #[inline(always)]
    fn find(&self, key: u64, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = (hash >> 24) as usize & mask;
        while self.slots[slot].0 != key && self.slots[slot].0 != u64::MAX {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// Room to merge a word in.
#[derive(Default)]
struct Work {
    ids: Vec<Id>,
    /// For each of `ids` the token that it and the next are together.
    joined: Vec<Id>,
}

impl Work {
    /// The ids of a word that is no token.
    fn merge(&mut self, word: &[u8], pairs: &Pairs) -> &[Id] {
        self.ids.clear();
        self.ids.extend(word.iter().map(|&byte| Id::from(byte)));
        self.joined.clear();
        let joined = word.windows(2).map(|pair| pairs.bytes(pair[0], pair[1]));
        self.joined.extend(joined);
        self.joined.push(NONE); // the last has no next
        if word.len() > SCAN_BYTES {
            self.merge_by_queue(pairs);
        } else {
            self.merge_by_scan(pairs);
        }
        &self.ids
    }

    /// Over at most 64 ids, which stay where they are; a bit of `here` says which are still there.
    fn merge_by_scan(&mut self, pairs: &Pairs) {
        let (ids, joined) = (&mut *self.ids, &mut *self.joined);
        let mut here = u64::MAX >> (64 - ids.len());
        loop {
            let (mut lowest, mut at) = (NONE, 0);
            for (index, &id) in joined.iter().enumerate() {
                (lowest, at) = if id < lowest {
                    (id, index)
                } else {
                    (lowest, at)
                };
            }
            if lowest == NONE {
                break;
            }
            let gone = at + 1 + (here >> at >> 1).trailing_zeros() as usize;
            here &= !(1 << gone);
            ids[at] = lowest;
            joined[gone] = NONE;
            let after = (here >> at >> 1).trailing_zeros() as usize;
            joined[at] = match ids.get(at + 1 + after) {
                Some(&next) => pairs.get(lowest, next),
                None => NONE,
            };
            let before = here & ((1 << at) - 1);
            if before != 0 {
                let before = 63 - before.leading_zeros() as usize;
                joined[before] = pairs.get(ids[before], lowest);
            }
        }
        let mut index = 0;
        self.ids.retain(|_| {
            index += 1;
            here >> (index - 1) & 1 == 1
        });
    }

    /// The same through a queue of what may be joined, over ids linked to their neighbours.
    fn merge_by_queue(&mut self, pairs: &Pairs) {
        let (ids, joined) = (&mut self.ids, &mut self.joined);
        let len = ids.len();
        let mut next: Vec<usize> = (1..=len).collect();
        let mut previous: Vec<usize> = (0..len).map(|index| index.wrapping_sub(1)).collect();
        let mut queue: BinaryHeap<Reverse<(Id, usize)>> = (0..len)
            .filter(|&index| joined[index] != NONE)
            .map(|index| Reverse((joined[index], index)))
            .collect();
        while let Some(Reverse((id, at))) = queue.pop() {
            if joined[at] != id {
                continue; // it or its next has been joined with another since
            }
            let gone = next[at];
            let after = next[gone];
            ids[at] = id;
            joined[gone] = NONE;
            ids[gone] = NONE;
            next[at] = after;
            joined[at] = NONE;
            if after < len {
                previous[after] = at;
                joined[at] = pairs.get(id, ids[after]);
            }
            let mut touched = [Some(at), None];
            if previous[at] < len {
                let before = previous[at];
                joined[before] = pairs.get(ids[before], id);
                touched[1] = Some(before);
            }
            for index in touched.into_iter().flatten() {
                if joined[index] != NONE {
                    queue.push(Reverse((joined[index], index)));
                }
            }
        }
        ids.retain(|&id| id != NONE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::merges::{Words, learn, token_bytes};

    const PATTERN: &str = r"\s*\S+|\s+";

    fn tokens(text: &str, num_merges: usize) -> Vec<Vec<u8>> {
        let mut words = Words::default();
        for word in text.split_inclusive(' ') {
            words.add(word.as_bytes(), 1).unwrap();
        }
        token_bytes(&learn(words, num_merges, |_| true).unwrap())
    }

    fn encoder(tokens: &[Vec<u8>]) -> Encoder {
        Encoder::new(tokens, Splitter::new(PATTERN).unwrap())
    }

    /// The definition: of all neighbours that together are a token join the leftmost of the lowest rank.
    fn slow(tokens: &[Vec<u8>], word: &[u8]) -> Vec<Id> {
        let rank = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
        if let Some(id) = rank(word) {
            return vec![id as Id];
        }
        let mut parts: Vec<Vec<u8>> = word.iter().map(|&byte| vec![byte]).collect();
        loop {
            let joined = |at: usize| rank(&parts[at..at + 2].concat());
            let best = (0..parts.len() - 1)
                .filter_map(|at| Some((joined(at)?, at)))
                .min();
            let Some((_, at)) = best else { break };
            let right = parts.remove(at + 1);
            parts[at].extend(right);
        }
        parts.iter().map(|part| rank(part).unwrap() as Id).collect()
    }

    fn ids(encoder: &Encoder, text: &str) -> Vec<Id> {
        let mut ids = Vec::new();
        encoder.encode(text, &mut ids).unwrap();
        ids
    }

    proptest! {
        #[test]
        fn ids_are_those_of_the_definition(
            corpus in "[ab ]{0,60}",
            words in prop::collection::vec("[abc]{1,20}|[ab]{60,90}", 1..6),
        ) {
            let tokens = tokens(&corpus, 30);
            let encoder = encoder(&tokens);
            for word in words.iter().chain(&words) { // the second time they are remembered
                prop_assert_eq!(ids(&encoder, word), slow(&tokens, word.as_bytes()), "{}", word);
            }
        }

        #[test]
        fn ids_are_those_of_the_definition_for_any_vocabulary(
            tokens in prop::collection::hash_set("[ab]{2,5}", 0..30),
            word in "[ab]{1,90}",
        ) {
            let bytes = (0..=255).map(|byte| vec![byte]);
            let tokens: Vec<_> = bytes.chain(tokens.into_iter().map(String::into_bytes)).collect();
            prop_assert_eq!(ids(&encoder(&tokens), &word), slow(&tokens, word.as_bytes()));
        }
    }

    #[test]
    fn a_batch_on_threads_is_its_texts_one_by_one() {
        let tokens = tokens("the cat sat on the mat that the rat had ", 40);
        let encoder = encoder(&tokens);
        let long = "the rat sat on the catastrophe ".repeat(10_000);
        let texts = ["the cat", "", &long, "on the mat", &long, &long];
        let encoded = encoder.encode_batch::<u16>(&texts, Some(999), 3).unwrap();
        let mut found = Vec::new();
        for part in encoded {
            let starts = [0].into_iter().chain(part.ends.iter().copied());
            for (start, &end) in starts.zip(&part.ends) {
                found.push(part.ids[start..end].to_vec());
            }
        }
        for (text, found) in texts.iter().zip(found) {
            assert_eq!(found[0], 999);
            let found: Vec<Id> = found[1..].iter().map(|&id| id.into()).collect();
            assert_eq!(found, ids(&encoder, text));
        }
    }

    #[test]
    fn a_word_of_a_million_letters_takes_no_million_squared() {
        let tokens = tokens("aaaaaaaa aaaa aa ", 2);
        let ids = ids(&encoder(&tokens), &"a".repeat(1_000_001));
        assert_eq!(ids.len(), 250_001);
    }
}
