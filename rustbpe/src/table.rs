//! A hash table whose keys are short words, kept inside its slots: one cache line answers most questions.

/// The longest word that fits into a key.
pub const LONGEST_KEY: usize = 15;

/// A word of 1 to [`LONGEST_KEY`] bytes: its bytes, zeros, and its length in the last byte; never 0.
pub type Key = u128;

/// The key of the word `bytes[start..end]`; `None` for a longer one. Fast unless the text ends within 16 bytes.
#[inline(always)]
pub fn key(bytes: &[u8], start: usize, end: usize) -> Option<Key> {
    let len = end - start;
    if len > LONGEST_KEY {
        return None;
    }
    let word = match bytes.get(start..start + 16) {
        Some(window) => {
            u128::from_le_bytes(window.try_into().expect("16 bytes")) & ((1 << (8 * len)) - 1)
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

#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
struct Slot<V> {
    key: Key,
    value: V,
}

/// Keys to values (of at most 16 bytes, or a slot is more than 32); open addressing, at most half full.
pub struct Table<V> {
    slots: Vec<Slot<V>>,
    len: usize,
}

impl<V: Copy + Default> Default for Table<V> {
    fn default() -> Self {
        Self {
            slots: vec![Slot::default(); 1 << 12],
            len: 0,
        }
    }
}

impl<V: Copy + Default> Table<V> {
    /// How many keys it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    #[inline(always)]
    pub fn get(&self, key: Key) -> Option<&V> {
        let slot = &self.slots[self.find(key)];
        (slot.key == key).then_some(&slot.value)
    }

    /// The value of a key, which is a new default one if the key was not held.
    #[inline(always)]
    pub fn get_or_default(&mut self, key: Key) -> &mut V {
        let mut index = self.find(key);
        if self.slots[index].key != key {
            if 2 * self.len >= self.slots.len() {
                self.grow();
                index = self.find(key);
            }
            self.len += 1;
            self.slots[index].key = key;
        }
        &mut self.slots[index].value
    }

    /// Every key with its value, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, V)> {
        self.slots
            .iter()
            .filter(|slot| slot.key != 0)
            .map(|slot| (slot.key, slot.value))
    }

    /// The slot that holds the key, or the empty one where it belongs.
    #[inline(always)]
    fn find(&self, key: Key) -> usize {
        let mask = self.slots.len() - 1;
        let mut index = hash(key) as usize & mask;
        while self.slots[index].key != key && self.slots[index].key != 0 {
            index = (index + 1) & mask;
        }
        index
    }

    #[cold]
    fn grow(&mut self) {
        let slots = vec![Slot::default(); 4 * self.slots.len()];
        for slot in std::mem::replace(&mut self.slots, slots) {
            if slot.key != 0 {
                let index = self.find(slot.key);
                self.slots[index] = slot;
            }
        }
    }
}

/// Both halves times each other, folded: all bits of the key reach the low bits.
#[inline(always)]
fn hash(key: Key) -> u64 {
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
