//! Text to token ids, exactly as tiktoken gives them.
//!
//! A word that is a token is that token. In any other the two neighbours whose bytes together are the token of
//! the lowest rank become that token, the leftmost of equals first, until no two are one. Words repeat: a thread
//! begins with the tokens as words that it knows, and remembers each new one that it merges.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustc_hash::FxHashMap;

use crate::Id;
use crate::known::KnownWords;
use crate::split::{PatternError, Splitter};
use crate::table::{Key, LONGEST_KEY, hash, key};
use crate::words::shares;

/// No token: two neighbours that together are none.
const NONE: Id = Id::MAX;
/// Words of more bytes are merged through a queue, O(n log n); shorter ones by looking at all pairs, O(n²).
const SCAN_BYTES: usize = 64;
/// Words of more bytes are not remembered.
const REMEMBERED_BYTES: usize = 256;
/// A thread forgets what it remembers at so many words, the vocabulary's with them, or four times as many ids:
/// at most about 128 MB of text in words. A power of two, at which the table of words would grow.
const REMEMBERED_WORDS: usize = 1 << 20;
/// So many words are looked up at once.
const BLOCK: usize = 32;
/// So many ids are written before they go into their row.
const STAGED: usize = 256;
/// In place of the key of a word that is too long for one; no word has this key.
const TOO_LONG: Key = Key::MAX;

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
    /// The tokens that fit into a key: what every memory begins with.
    short: KnownWords,
    /// The longer ones.
    long: FxHashMap<Box<[u8]>, Id>,
    pairs: Pairs,
    /// What threads remember, for the next to go on with.
    memories: Mutex<Vec<Memory>>,
}

/// The words a thread knows, and room to work in.
struct Memory {
    short: KnownWords,
    long: FxHashMap<Box<[u8]>, Place>,
    /// The ids of words of more than three tokens.
    ids: Vec<Id>,
    work: Work,
}

/// The ids of a word that does not fit into a key: where they stand in [`Memory::ids`].
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    end: usize,
}

impl Encoder {
    /// The tokens in rank order, of which the first 256 are the bytes 0 to 255.
    ///
    /// O(bytes of all tokens): every way to cut a token in two tokens is looked for. Panics beyond
    /// [`MOST_TOKENS`].
    pub fn new(tokens: &[Vec<u8>], splitter: Splitter) -> Self {
        assert!(tokens.len() <= MOST_TOKENS, "too many tokens");
        let ids: FxHashMap<Box<[u8]>, Id> = (0..)
            .zip(tokens)
            .map(|(id, token)| (token.as_slice().into(), id))
            .collect();
        let mut pairs = Vec::new();
        let mut short = KnownWords::with_capacity(tokens.len());
        for (id, token) in (0..).zip(tokens) {
            for cut in 1..token.len() {
                if let (Some(&left), Some(&right)) =
                    (ids.get(&token[..cut]), ids.get(&token[cut..]))
                {
                    pairs.push(((left, right), id));
                }
            }
            if let Some(key) = key(token, 0, token.len()) {
                short.insert(key, hash(key), [id, 0, 0], 1);
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

    /// Each word is looked up only when some more have been found: meanwhile the memory of its line arrives.
    fn encode_with<W: Width>(
        &self,
        memory: &mut Memory,
        text: &str,
        out: &mut Vec<W>,
    ) -> Result<(), PatternError> {
        let mut words = Words {
            encoder: self,
            memory,
            bytes: text.as_bytes(),
            words: [Word::default(); 2 * BLOCK],
            num_words: 0,
            out: Output::new(out),
        };
        match &self.splitter {
            Splitter::Scanner(scanner) => scanner.split(text, |start, end| words.add(start, end)),
            splitter => splitter.split(text, |start, end| words.add(start, end))?,
        }
        words.finish();
        Ok(())
    }

    /// A word that is new, or long, or of many tokens, or that stands in another line than its own.
    #[inline(never)]
    fn encode_rare<W: Width>(
        &self,
        memory: &mut Memory,
        bytes: &[u8],
        word: &Word,
        out: &mut Output<W>,
    ) {
        if word.key == TOO_LONG {
            return self.encode_long(memory, bytes, out);
        }
        let Memory {
            short, ids, work, ..
        } = memory;
        let known = match short.get(word.key, word.hash) {
            Some(known) => *known,
            None => {
                let merged = work.merge(bytes, &self.pairs);
                let num_ids = merged.len() as u32;
                let mut inside = [0; 3];
                if merged.len() <= 3 {
                    inside[..merged.len()].copy_from_slice(merged);
                } else {
                    inside[0] = ids.len() as Id;
                    ids.extend_from_slice(merged);
                }
                *short.insert(word.key, word.hash, inside, num_ids)
            }
        };
        if known.num_ids <= 3 {
            out.push(known.ids, known.num_ids);
        } else {
            out.push_all(&ids[known.ids[0] as usize..][..known.num_ids as usize]);
        }
        self.forget_if_full(memory);
    }

    fn encode_long<W: Width>(&self, memory: &mut Memory, word: &[u8], out: &mut Output<W>) {
        let Memory {
            long, ids, work, ..
        } = &mut *memory;
        if let Some(&Place { start, end }) = long.get(word) {
            return out.push_all(&ids[start..end]);
        }
        let merged = match self.long.get(word) {
            Some(id) => std::slice::from_ref(id),
            None => work.merge(word, &self.pairs),
        };
        out.push_all(merged);
        if word.len() <= REMEMBERED_BYTES {
            let start = ids.len();
            ids.extend_from_slice(merged);
            long.insert(
                word.into(),
                Place {
                    start,
                    end: ids.len(),
                },
            );
        }
        self.forget_if_full(memory);
    }

    fn forget_if_full(&self, memory: &mut Memory) {
        let most = REMEMBERED_WORDS.max(2 * self.short.len());
        let num_words = memory.short.len() + memory.long.len();
        if num_words >= most || memory.ids.len() >= 4 * REMEMBERED_WORDS {
            *memory = self.fresh();
        }
    }

    fn fresh(&self) -> Memory {
        Memory {
            short: self.short.clone(),
            long: FxHashMap::default(),
            ids: Vec::new(),
            work: Work::default(),
        }
    }

    fn remember(&self) -> Memory {
        self.memories
            .lock()
            .expect("no panic while it is held")
            .pop()
            .unwrap_or_else(|| self.fresh())
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

/// The words of a text on their way to ids.
struct Words<'a, W> {
    encoder: &'a Encoder,
    memory: &'a mut Memory,
    bytes: &'a [u8],
    words: [Word; 2 * BLOCK],
    num_words: usize,
    out: Output<'a, W>,
}

impl<W: Width> Words<'_, W> {
    #[inline(always)]
    fn add(&mut self, start: usize, end: usize) {
        self.words[self.num_words % (2 * BLOCK)] = Word::new(self.bytes, start, end);
        self.num_words += 1;
        if self.num_words % BLOCK == 0 {
            self.look_ahead();
        }
    }

    /// Asks for the memory of the newest block at once, then encodes the block before, whose memory has arrived.
    #[inline(never)]
    fn look_ahead(&mut self) {
        let newest = (self.num_words - BLOCK) % (2 * BLOCK);
        for word in &self.words[newest..newest + BLOCK] {
            self.memory.short.prefetch(word.hash);
        }
        if self.num_words > BLOCK {
            let before = BLOCK - newest;
            for index in before..before + BLOCK {
                self.encode(index);
            }
        }
    }

    fn finish(mut self) {
        let done = (self.num_words / BLOCK).saturating_sub(1) * BLOCK;
        for number in done..self.num_words {
            self.encode(number % (2 * BLOCK));
        }
        self.out.flush();
    }

    #[inline(always)]
    fn encode(&mut self, index: usize) {
        let word = &self.words[index];
        match self.memory.short.guess(word.key, word.hash) {
            Some(known) if known.num_ids <= 3 => self.out.push(known.ids, known.num_ids),
            _ => {
                let bytes = &self.bytes[word.start..word.end];
                self.encoder
                    .encode_rare(self.memory, bytes, word, &mut self.out);
            }
        }
    }
}

/// A word of a text, and what it is looked up by.
#[derive(Clone, Copy, Default)]
struct Word {
    key: Key,
    hash: u64,
    start: usize,
    end: usize,
}

impl Word {
    #[inline(always)]
    fn new(bytes: &[u8], start: usize, end: usize) -> Self {
        let key = key(bytes, start, end).unwrap_or(TOO_LONG);
        Self {
            key,
            hash: hash(key),
            start,
            end,
        }
    }
}

/// Ids on their way into a row: a word's are written without asking how many there are.
struct Output<'o, W> {
    ids: [W; STAGED + 3],
    len: usize,
    row: &'o mut Vec<W>,
}

impl<'o, W: Width> Output<'o, W> {
    fn new(row: &'o mut Vec<W>) -> Self {
        Self {
            ids: [W::from_id(0); STAGED + 3],
            len: 0,
            row,
        }
    }

    /// The first `num_ids` of three ids.
    #[inline(always)]
    fn push(&mut self, ids: [Id; 3], num_ids: u32) {
        if self.len >= STAGED {
            self.flush();
        }
        let at = self.len % STAGED; // it is less, which the compiler cannot know
        for (index, id) in ids.into_iter().enumerate() {
            self.ids[at + index] = W::from_id(id);
        }
        self.len = at + num_ids as usize;
    }

    fn push_all(&mut self, ids: &[Id]) {
        self.flush();
        self.row.extend(ids.iter().map(|&id| W::from_id(id)));
    }

    #[inline(never)]
    fn flush(&mut self) {
        self.row.extend_from_slice(&self.ids[..self.len]);
        self.len = 0;
    }
}

/// Pairs of tokens to the token that they are together.
struct Pairs {
    of_bytes: Box<[Id]>,
    /// A bit for each hash that a pair has: most pairs asked for are none, which this says from a fast cache.
    filter: Box<[u64]>,
    /// Open addressing, at most four fifths full; of each pair left, right and together, 21, 21 and 22 bits:
    /// eight to a cache line. All ones where there is none.
    slots: Box<[u64]>,
}

/// 2^20 bits, 128 KB.
const FILTER_BITS: u32 = 20;
/// Of a token's id in a slot; a part of a pair has one bit less.
const ID_BITS: u32 = 22;
/// A vocabulary has room for so many tokens.
pub const MOST_TOKENS: usize = 1 << (ID_BITS - 1);

impl Pairs {
    fn new(pairs: &[((Id, Id), Id)]) -> Self {
        let num_slots = (5 * pairs.len() / 4 + 1).next_power_of_two();
        let mut of = Self {
            of_bytes: vec![NONE; 1 << 16].into(),
            filter: vec![0; 1 << (FILTER_BITS - 6)].into(),
            slots: vec![u64::MAX; num_slots].into(),
        };
        for &((left, right), id) in pairs {
            if left < 256 && right < 256 {
                of.of_bytes[(left << 8 | right) as usize] = id;
            }
            let (key, hash) = Self::hash(left, right);
            let (word, bit) = Self::filter_place(hash);
            of.filter[word] |= 1 << bit;
            let slot = of.find(key, hash);
            of.slots[slot] = key << ID_BITS | u64::from(id);
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
        match self.slots[self.find(key, hash)] {
            u64::MAX => NONE,
            slot => (slot & ((1 << ID_BITS) - 1)) as Id,
        }
    }

    #[inline(always)]
    fn hash(left: Id, right: Id) -> (u64, u64) {
        let key = u64::from(left) << (64 - ID_BITS - 21) | u64::from(right);
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
        while self.slots[slot] >> ID_BITS != key && self.slots[slot] != u64::MAX {
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
    fn a_thread_forgets_before_its_table_grows() {
        let encoder = encoder(&tokens("", 0));
        let words: String = (0..REMEMBERED_WORDS)
            .map(|n| format!(" {}", letters(n)))
            .collect();
        let found = ids(&encoder, &words);
        assert_eq!(found, words.bytes().map(Id::from).collect::<Vec<_>>());
        let memories = encoder.memories.lock().unwrap();
        assert!(
            memories[0].short.len() < REMEMBERED_WORDS / 2,
            "it began anew"
        );
    }

    /// A word of its own for every number.
    fn letters(mut number: usize) -> String {
        let mut word = String::new();
        loop {
            word.push((b'a' + (number % 26) as u8) as char);
            number /= 26;
            if number == 0 {
                return word;
            }
        }
    }

    #[test]
    fn a_word_of_a_million_letters_takes_no_million_squared() {
        let tokens = tokens("aaaaaaaa aaaa aa ", 2);
        let ids = ids(&encoder(&tokens), &"a".repeat(1_000_001));
        assert_eq!(ids.len(), 250_001);
    }
}
