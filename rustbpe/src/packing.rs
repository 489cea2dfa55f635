//! Best-fit packing: documents to rows of equal length. `BestFitPacker` in nanolit/data/packing.py says what
//! it does, and is the oracle of this one. Tokens are bytes here: whatever their width, they are only copied.

use std::collections::BTreeMap;

/// A document's place among the held: its length in tokens, then its number.
type Key = (usize, u64);

/// A held document's tokens, and how many of them rows have already.
struct Held {
    tokens: Box<[u8]>,
    start: usize,
}

/// Rows that begin with a document: the longest held one that fits, else the shortest, cropped or split.
pub struct BestFit {
    capacity: usize,
    buffer: usize,
    width: usize,
    /// The rest of a cut document is held again unless it is smaller; None: never.
    smallest_rest: Option<usize>,
    held: BTreeMap<Key, Held>,
    row: Vec<u8>,
    row_cropped: usize,
    row_repeated: usize,
    pub num_kept: usize,
    pub num_cropped: usize,
}

impl BestFit {
    /// Rows of `capacity` tokens of `width` bytes, chosen from at least `buffer` documents.
    pub fn new(capacity: usize, buffer: usize, width: usize, smallest_rest: Option<usize>) -> Self {
        Self {
            capacity,
            buffer,
            width,
            smallest_rest,
            held: BTreeMap::new(),
            row: Vec::new(),
            row_cropped: 0,
            row_repeated: 0,
            num_kept: 0,
            num_cropped: 0,
        }
    }

    /// Hold a document from its token `start`, with its true length; of one that is never split, and longer
    /// than a row, only what a row can take is kept.
    pub fn hold(&mut self, number: u64, tokens: &[u8], start: usize) {
        let kept = match self.smallest_rest {
            None => tokens.len().min(self.capacity * self.width),
            Some(_) => tokens.len(),
        };
        let length = tokens.len() / self.width - start + start.min(1);
        let tokens = tokens[..kept].into();
        self.held.insert((length, number), Held { tokens, start });
    }

    /// The next row; None where documents have to be held first, or, once they have `ended`, no row is full.
    pub fn pack(&mut self, ended: bool) -> Option<Vec<u8>> {
        loop {
            let room = self.capacity - self.row.len() / self.width;
            if room == 0 {
                self.num_kept += self.capacity - std::mem::take(&mut self.row_repeated);
                self.num_cropped += std::mem::take(&mut self.row_cropped);
                return Some(std::mem::take(&mut self.row));
            }
            if self.wants() && !ended {
                return None;
            }
            let Some((length, number)) = self.choose(room) else {
                self.num_cropped += self.capacity - room + std::mem::take(&mut self.row_cropped);
                self.num_cropped -= std::mem::take(&mut self.row_repeated);
                self.row.clear();
                return None;
            };
            let held = self.held.remove(&(length, number));
            let Held { tokens, start } = held.expect("a chosen document is held");
            if self.row.capacity() == 0 {
                self.row.reserve_exact(self.capacity * self.width);
            }
            let bos = start.min(1);
            let stop = start + length.min(room) - bos;
            self.row.extend_from_slice(&tokens[..bos * self.width]);
            self.row
                .extend_from_slice(&tokens[start * self.width..stop * self.width]);
            self.row_repeated += bos;
            let rest = length.saturating_sub(room);
            if rest > 0 && self.smallest_rest.is_some_and(|smallest| rest >= smallest) {
                let start = stop;
                self.held
                    .insert((rest + start.min(1), number), Held { tokens, start });
            } else {
                self.row_cropped += rest;
            }
        }
    }

    /// Whether documents are to be held before another is chosen.
    fn wants(&self) -> bool {
        let longest = self
            .held
            .last_key_value()
            .map_or(0, |(&(length, _), _)| length);
        self.held.len() < self.buffer && !(self.smallest_rest.is_some() && longest > self.capacity)
    }

    /// The first of the longest held documents of at most `room` tokens, else of the shortest.
    fn choose(&self, room: usize) -> Option<Key> {
        let fitting = if self.smallest_rest.is_some() && room == self.capacity {
            self.held.last_key_value()
        } else {
            self.held.range(..(room + 1, 0)).next_back()
        };
        let &(length, _) = fitting.or(self.held.first_key_value())?.0;
        self.held.range((length, 0)..).next().map(|(&key, _)| key)
    }

    /// The numbers of the held documents, the shortest first.
    pub fn numbers(&self) -> Vec<u64> {
        self.held.keys().map(|&(_, number)| number).collect()
    }

    /// How many tokens of each of them rows have already.
    pub fn starts(&self) -> Vec<usize> {
        self.held.values().map(|held| held.start).collect()
    }

    /// Tokens of the held documents that no row has.
    pub fn num_held(&self) -> usize {
        let held = self.held.iter();
        held.map(|(&(length, _), held)| length - held.start.min(1))
            .sum()
    }
}

#[cfg(feature = "python")]
pub mod python {
    use pyo3::buffer::PyBuffer;
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;
    use pyo3::types::PyByteArray;

    /// `BestFit` for Python: rows as bytes.
    #[pyclass]
    pub struct BestFit {
        core: super::BestFit,
    }

    #[pymethods]
    impl BestFit {
        /// Rows of `capacity` tokens of `width` bytes, chosen from at least `buffer` documents.
        #[new]
        #[pyo3(signature = (capacity, *, buffer, width, smallest_rest=None))]
        fn new(
            capacity: usize,
            buffer: usize,
            width: usize,
            smallest_rest: Option<usize>,
        ) -> PyResult<Self> {
            if capacity <= usize::from(smallest_rest.is_some()) || width == 0 {
                return Err(PyValueError::new_err(
                    "capacity and width are at least 1, where documents are split capacity at least 2",
                ));
            }
            Ok(Self {
                core: super::BestFit::new(capacity, buffer, width, smallest_rest),
            })
        }

        /// Hold documents: their numbers, their tokens one after another, where each begins and the last ends,
        /// and how many tokens of each rows have already (None: of all none).
        fn hold(
            &mut self,
            py: Python<'_>,
            numbers: Vec<u64>,
            tokens: PyBuffer<u8>,
            offsets: PyBuffer<i64>,
            starts: Option<Vec<usize>>,
        ) -> PyResult<()> {
            let starts = starts.unwrap_or_else(|| vec![0; numbers.len()]);
            let (tokens, offsets) = (tokens.to_vec(py)?, offsets.to_vec(py)?);
            let width = self.core.width;
            let wrong = || {
                PyValueError::new_err("numbers, tokens, offsets and starts don't belong together")
            };
            if offsets.len() != numbers.len() + 1 || starts.len() != numbers.len() {
                return Err(wrong());
            }
            for ((&number, bounds), &start) in numbers.iter().zip(offsets.windows(2)).zip(&starts) {
                let (from, to) = (bounds[0] as usize * width, bounds[1] as usize * width);
                let tokens = tokens.get(from..to).ok_or_else(wrong)?;
                if start * width > tokens.len() {
                    return Err(wrong());
                }
                self.core.hold(number, tokens, start);
            }
            Ok(())
        }

        /// The next row; None where documents have to be held first, or, once they have `ended`, no row is full.
        fn pack<'py>(&mut self, py: Python<'py>, ended: bool) -> Option<Bound<'py, PyByteArray>> {
            self.core.pack(ended).map(|row| PyByteArray::new(py, &row))
        }

        /// The numbers of the held documents, the shortest first.
        fn numbers(&self) -> Vec<u64> {
            self.core.numbers()
        }

        /// How many tokens of each of them rows have already.
        fn starts(&self) -> Vec<usize> {
            self.core.starts()
        }

        #[getter]
        fn num_held(&self) -> usize {
            self.core.num_held()
        }

        #[getter]
        fn num_kept(&self) -> usize {
            self.core.num_kept
        }

        #[getter]
        fn num_cropped(&self) -> usize {
            self.core.num_cropped
        }

        /// Count on from these.
        fn set_counts(&mut self, num_kept: usize, num_cropped: usize) {
            (self.core.num_kept, self.core.num_cropped) = (num_kept, num_cropped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_that_fits_comes_first_then_the_shortest_is_cropped() {
        let mut packer = BestFit::new(8, 1, 1, None);
        for (number, length) in [3_u8, 5, 9, 5].into_iter().enumerate() {
            packer.hold(number as u64, &vec![number as u8; length.into()], 0);
        }
        assert_eq!(packer.num_held(), 22);
        assert_eq!(packer.pack(false), Some(vec![1, 1, 1, 1, 1, 0, 0, 0]));
        assert_eq!(packer.pack(true), Some(vec![3, 3, 3, 3, 3, 2, 2, 2]));
        assert_eq!((packer.num_kept, packer.num_cropped), (16, 6));
        assert_eq!(packer.pack(true), None);
    }

    #[test]
    fn tokens_of_two_bytes_are_counted_as_tokens() {
        let mut packer = BestFit::new(2, 1, 2, None);
        packer.hold(7, &[1, 0, 2, 0, 3, 0], 0);
        assert_eq!(packer.numbers(), [7]);
        assert_eq!(packer.pack(true), Some(vec![1, 0, 2, 0]));
        assert_eq!((packer.num_kept, packer.num_cropped), (2, 1));
    }

    #[test]
    fn documents_are_asked_for_below_the_buffer_and_a_rest_is_declared() {
        let mut packer = BestFit::new(4, 2, 1, None);
        packer.hold(0, &[1, 1], 0);
        assert_eq!(packer.pack(false), None);
        assert_eq!((packer.num_cropped, packer.num_held()), (0, 2));
        assert_eq!(packer.pack(true), None);
        assert_eq!((packer.num_cropped, packer.num_held()), (2, 0));
    }
    #[test]
    fn the_rest_of_a_split_document_follows_behind_its_bos() {
        let mut packer = BestFit::new(4, 1, 1, Some(2));
        packer.hold(0, &[9, 1, 2, 3, 4, 5, 6, 7, 8, 10], 0);
        packer.hold(1, &[9, 20], 0);
        assert_eq!(packer.pack(false), Some(vec![9, 1, 2, 3]));
        assert_eq!(
            (packer.numbers(), packer.starts()),
            (vec![1, 0], vec![0, 4])
        );
        assert_eq!(packer.pack(false), Some(vec![9, 4, 5, 6]));
        assert_eq!(packer.pack(true), Some(vec![9, 7, 8, 10]));
        assert_eq!((packer.num_kept, packer.num_cropped), (10, 0));
        assert_eq!((packer.pack(true), packer.num_cropped), (None, 2));
    }
}
