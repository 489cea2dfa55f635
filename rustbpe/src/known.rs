//! Words whose ids are known: a hash table that answers from one cache line.

use crate::Id;
use crate::table::{Key, hash};

/// A word's ids: up to three of them, or where they stand elsewhere.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
pub struct Known {
    key: Key,
    /// The ids; of more than three only the first is used, as the place of all.
    pub ids: [Id; 3],
    /// How many there are; 0 where there is no word.
    pub num_ids: u32,
}

/// Two words to a cache line; a word whose line is full stands in the next one with room.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([Known; 2]);

/// The words that fit into a key, with their ids. At most half full.
#[derive(Clone)]
pub struct KnownWords {
    lines: Vec<Line>,
    len: usize,
}

impl KnownWords {
    /// None yet, and room for so many.
    pub fn with_capacity(num_words: usize) -> Self {
        Self {
            lines: vec![Line::default(); num_words.max(1).next_power_of_two()],
            len: 0,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks for the memory that [`Self::guess`] will look at.
    #[inline(always)]
    pub fn prefetch(&self, hash: u64) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let line = &raw const self.lines[hash as usize & (self.lines.len() - 1)];
            // SAFETY: a prefetch reads nothing, and the line exists.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = hash;
    }

    /// The word, if it stands in its own line: most do.
    #[inline(always)]
    pub fn guess(&self, key: Key, hash: u64) -> Option<&Known> {
        let Line([first, second]) = &self.lines[hash as usize & (self.lines.len() - 1)];
        let is_second = second.key == key;
        if is_second | (first.key == key) {
            Some(if is_second { second } else { first })
        } else {
            None
        }
    }

    /// The word, wherever it stands.
    pub fn get(&self, key: Key, hash: u64) -> Option<&Known> {
        let (line, slot) = self.find(key, hash);
        let found = &self.lines[line].0[slot];
        (found.num_ids != 0).then_some(found)
    }

    /// Adds a word that is not among them.
    pub fn insert(&mut self, key: Key, hash: u64, ids: [Id; 3], num_ids: u32) -> &Known {
        if self.len >= self.lines.len() {
            self.grow();
        }
        self.len += 1;
        let (line, slot) = self.find(key, hash);
        let entry = &mut self.lines[line].0[slot];
        *entry = Known { key, ids, num_ids };
        entry
    }

    /// Where the word stands, or the empty place where it belongs.
    #[inline(always)]
    fn find(&self, key: Key, hash: u64) -> (usize, usize) {
        let mask = self.lines.len() - 1;
        let mut line = hash as usize & mask;
        loop {
            for slot in 0..2 {
                let known = &self.lines[line].0[slot];
                if known.key == key || known.num_ids == 0 {
                    return (line, slot);
                }
            }
            line = (line + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        let more = vec![Line::default(); 2 * self.lines.len()];
        for Line(words) in std::mem::replace(&mut self.lines, more) {
            for known in words {
                if known.num_ids != 0 {
                    let (line, slot) = self.find(known.key, hash(known.key));
                    self.lines[line].0[slot] = known;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::table::key;

    #[test]
    fn it_holds_what_a_hash_map_holds() {
        let mut words = KnownWords::with_capacity(4);
        let mut expected = HashMap::new();
        let of = |number: u32| {
            let word = number.to_string();
            let key = key(word.as_bytes(), 0, word.len()).unwrap();
            (key, hash(key))
        };
        for number in 0..20_000 {
            let (key, hash) = of(number);
            assert!(words.get(key, hash).is_none());
            words.insert(key, hash, [number, 1, 2], 3);
            expected.insert(key, number);
        }
        assert_eq!(words.len(), expected.len());
        for number in 0..20_000 {
            let (key, hash) = of(number);
            assert_eq!(words.get(key, hash).unwrap().ids, [number, 1, 2]);
        }
        let (key, hash) = of(20_000);
        assert!(words.get(key, hash).is_none());
    }
}
