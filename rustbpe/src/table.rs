//! A hash table whose keys are short words, kept beside their values: one cache line answers most questions.

/// The longest word that fits into a key.
pub const LONGEST_KEY: usize = 15;

/// A word of 1 to [`LONGEST_KEY`] bytes: its bytes, zeros, and its length in the last byte; never 0.
pub type Key = u128;

/// A mask of the first so many bytes.
const FIRST_BYTES: [u128; LONGEST_KEY + 1] = {
    let mut masks = [0; LONGEST_KEY + 1];
    let mut len = 1;
    while len <= LONGEST_KEY {
        masks[len] = masks[len - 1] << 8 | 0xFF;
        len += 1;
    }
    masks
};

/// The key of the word `bytes[start..end]`; `None` for a longer one. Fast unless the text ends within 16 bytes.
#[inline(always)]
pub fn key(bytes: &[u8], start: usize, end: usize) -> Option<Key> {
    let len = end - start;
    if len > LONGEST_KEY {
        return None;
    }
    let word = match bytes.get(start..start + 16) {
        Some(window) => {
            u128::from_le_bytes(window.try_into().expect("16 bytes")) & FIRST_BYTES[len]
        }
        None => {
            let mut window = [0; 16];
            window[..len].copy_from_slice(&bytes[start..end]);
            u128::from_le_bytes(window)
        }
    };
    Some(word | (len as u128) << 120)
}

/// The word of a key: 16 bytes, and how many of them it has.
pub fn word_of(key: Key) -> ([u8; 16], usize) {
    (key.to_le_bytes(), (key >> 120) as usize)
}

/// So many words are looked up at once.
pub const BLOCK: usize = 64;

/// Words to values. The entries stand in the order they came, so that frequent words, which come early, stand
/// together; beside them is an index of 4 bytes a slot, open addressing, at most half full.
pub struct Table<V> {
    /// The first belongs to no word: its number, 0, means none.
    entries: Vec<Entry<V>>,
    /// The numbers of entries, by the hash of their keys.
    index: Vec<u32>,
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Entry<V> {
    key: Key,
    value: V,
}

impl<V: Copy + Default> Default for Table<V> {
    fn default() -> Self {
        Self {
            entries: vec![Entry::default()],
            index: vec![0; 1 << 12],
        }
    }
}

impl<V: Copy + Default> Table<V> {
    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.entries.len() - 1
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For each key the number of its entry, or 0 where it has none or it is not where it is looked for first.
    ///
    /// Two loops without branches: the processor waits for all the memory at once, not for one after another.
    #[inline(always)]
    fn guess(&self, keys: &[Key], guesses: &mut [u32; BLOCK]) {
        let mask = self.index.len() - 1;
        for (&key, guess) in keys.iter().zip(&mut *guesses) {
            *guess = self.index[hash(key) as usize & mask];
        }
        for (&key, guess) in keys.iter().zip(guesses) {
            let is_right = self.entries[*guess as usize].key == key;
            *guess *= u32::from(is_right);
        }
    }

    /// The value of a guessed entry.
    #[inline(always)]
    pub fn guessed(&mut self, guess: u32) -> Option<&mut V> {
        match guess {
            0 => None,
            number => Some(&mut self.entries[number as usize].value),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: Key) -> Option<&V> {
        match self.index[self.find(key)] {
            0 => None,
            number => Some(&self.entries[number as usize].value),
        }
    }

    /// The value of a key, which is a new default one if the key was not held.
    pub fn get_or_default(&mut self, key: Key) -> &mut V {
        let mut slot = self.find(key);
        if self.index[slot] == 0 {
            if 2 * self.entries.len() >= self.index.len() {
                self.grow();
                slot = self.find(key);
            }
            self.index[slot] = u32::try_from(self.entries.len()).expect("fewer than 2^32 words");
            self.entries.push(Entry {
                key,
                value: V::default(),
            });
        }
        &mut self.entries[self.index[slot] as usize].value
    }

    /// Every key with its value, in the order they came.
    pub fn iter(&self) -> impl Iterator<Item = (Key, V)> {
        self.entries[1..]
            .iter()
            .map(|entry| (entry.key, entry.value))
    }

    /// The slot of the key's number, or the empty one where it belongs.
    #[inline(always)]
    fn find(&self, key: Key) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = hash(key) as usize & mask;
        loop {
            let number = self.index[slot] as usize;
            if number == 0 || self.entries[number].key == key {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }

    #[cold]
    fn grow(&mut self) {
        self.index = vec![0; 2 * self.index.len()];
        let mask = self.index.len() - 1;
        for (number, entry) in (1..).zip(&self.entries[1..]) {
            let mut slot = hash(entry.key) as usize & mask;
            while self.index[slot] != 0 {
                slot = (slot + 1) & mask;
            }
            self.index[slot] = number;
        }
    }
}

/// Words of a text, collected until there is a block of them to look up at once.
pub struct Block {
    keys: [Key; BLOCK],
    places: [(usize, usize); BLOCK],
    guesses: [u32; BLOCK],
    len: usize,
}

impl Default for Block {
    fn default() -> Self {
        Self {
            keys: [0; BLOCK],
            places: [(0, 0); BLOCK],
            guesses: [0; BLOCK],
            len: 0,
        }
    }
}

impl Block {
    /// Adds the word `bytes[start..end]`; whether the block is full now.
    #[inline(always)]
    pub fn push(&mut self, bytes: &[u8], start: usize, end: usize) -> bool {
        let at = self.len % BLOCK; // it is never full here, which the compiler cannot know
        self.keys[at] = key(bytes, start, end).unwrap_or(0);
        self.places[at] = (start, end);
        self.len = at + 1;
        self.len == BLOCK
    }

    /// Empties the block: each word's key (0 if it is too long for one), place, and guess in `table`, in order.
    #[inline(always)]
    pub fn drain<'b, V: Copy + Default>(
        &'b mut self,
        table: &Table<V>,
    ) -> impl Iterator<Item = (Key, (usize, usize), u32)> + use<'b, V> {
        let len = std::mem::take(&mut self.len);
        table.guess(&self.keys[..len], &mut self.guesses);
        (0..len).map(|at| (self.keys[at], self.places[at], self.guesses[at]))
    }
}

/// Both halves times each other, folded: all bits of the key reach the low bits.
#[inline(always)]
pub fn hash(key: Key) -> u64 {
    // Odd constants of random bits: they keep a half of zeros from giving zero.
    let low = key as u64 ^ 0x9E37_79B9_7F4A_7C15;
    let high = (key >> 64) as u64 ^ 0xD1B5_4A32_D192_ED03;
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_key_is_the_word_wherever_it_stands() {
        let bytes = b"some words, at the end of which it ends";
        for start in 0..bytes.len() {
            for end in start + 1..=bytes.len() {
                let Some(found) = key(bytes, start, end) else {
                    assert!(end - start > LONGEST_KEY);
                    continue;
                };
                let (word, len) = word_of(found);
                assert_eq!(&word[..len], &bytes[start..end]);
                assert_eq!(Some(found), key(&bytes[start..end], 0, end - start));
            }
        }
    }

    #[test]
    fn zeros_at_the_end_of_a_word_count() {
        assert_ne!(key(b"a\0", 0, 1), key(b"a\0", 0, 2));
        assert_ne!(key(b"\0\0", 0, 1), key(b"\0\0", 0, 2));
    }

    #[test]
    fn a_guess_is_the_keys_entry_or_none() {
        let mut table = Table::<u64>::default();
        let keys: Vec<Key> = (1..=50).map(|key| key << 120).collect();
        for &key in &keys[..40] {
            *table.get_or_default(key) = key as u64;
        }
        let mut guesses = [0; BLOCK];
        table.guess(&keys, &mut guesses);
        let mut num_right = 0;
        for (&key, &guess) in keys.iter().zip(&guesses) {
            let expected = table.get(key).copied();
            if let Some(&mut value) = table.guessed(guess) {
                assert_eq!(Some(value), expected);
                num_right += 1;
            }
        }
        assert!((30..=40).contains(&num_right), "{num_right}");
    }

    #[test]
    fn it_holds_what_a_hash_map_holds() {
        let mut table = Table::<u64>::default();
        let mut expected = HashMap::new();
        for number in 0..50_000_u64 {
            let word = (number % 20_000).to_string();
            let key = key(word.as_bytes(), 0, word.len()).unwrap();
            *table.get_or_default(key) += number;
            *expected.entry(key).or_insert(0) += number;
        }
        assert_eq!(table.len(), expected.len());
        assert_eq!(table.iter().collect::<HashMap<_, _>>(), expected);
        assert!(
            expected
                .iter()
                .all(|(&key, value)| table.get(key) == Some(value))
        );
        assert_eq!(table.get(1 << 120), None);
    }
}
