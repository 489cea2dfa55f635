//! Best-fit-crop packing: documents to rows of equal length. `BestFitPacker` in nanolit/data/packing.py says what
//! it does, and is the oracle of this one. Tokens are bytes here: whatever their width, they are only copied.

use std::collections::BTreeMap;

/// A document's place among the held: its length in tokens, then its number.
type Key = (usize, u64);

/// Rows that begin with a document: the longest held one that fits, else the shortest, cropped.
pub struct BestFit {
    capacity: usize,
    buffer: usize,
    width: usize,
    held: BTreeMap<Key, Box<[u8]>>,
    row: Vec<u8>,
    row_cropped: usize,
    pub num_kept: usize,
    pub num_cropped: usize,
}

impl BestFit {
    /// Rows of `capacity` tokens of `width` bytes, chosen from at least `buffer` documents.
    pub fn new(capacity: usize, buffer: usize, width: usize) -> Self {
        Self {
            capacity,
            buffer,
            width,
            held: BTreeMap::new(),
            row: Vec::new(),
            row_cropped: 0,
            num_kept: 0,
            num_cropped: 0,
        }
    }

    /// Hold a document; of one longer than a row only what a row can take is kept, and the true length.
    pub fn hold(&mut self, number: u64, tokens: &[u8]) {
        let kept = tokens.len().min(self.capacity * self.width);
        self.held
            .insert((tokens.len() / self.width, number), tokens[..kept].into());
    }

    /// The next row; None where documents have to be held first, or, once they have `ended`, no row is full.
    pub fn pack(&mut self, ended: bool) -> Option<Vec<u8>> {
        loop {
            let room = self.capacity - self.row.len() / self.width;
            if room == 0 {
                self.num_kept += self.capacity;
                self.num_cropped += std::mem::take(&mut self.row_cropped);
                return Some(std::mem::take(&mut self.row));
            }
            if self.held.len() < self.buffer && !ended {
                return None;
            }
            let Some(key) = self.choose(room) else {
                self.num_cropped += self.capacity - room + std::mem::take(&mut self.row_cropped);
                self.row.clear();
                return None;
            };
            let tokens = self.held.remove(&key).expect("a chosen document is held");
            let taken = key.0.min(room);
            if self.row.capacity() == 0 {
                self.row.reserve_exact(self.capacity * self.width);
            }
            self.row.extend_from_slice(&tokens[..taken * self.width]);
            self.row_cropped += key.0 - taken;
        }
    }

    /// The first of the longest held documents of at most `room` tokens, else of the shortest.
    fn choose(&self, room: usize) -> Option<Key> {
        let fitting = self.held.range(..(room + 1, 0)).next_back();
        let &(length, _) = fitting.or(self.held.first_key_value())?.0;
        self.held.range((length, 0)..).next().map(|(&key, _)| key)
    }

    /// The numbers of the held documents, the shortest first.
    pub fn numbers(&self) -> Vec<u64> {
        self.held.keys().map(|&(_, number)| number).collect()
    }

    /// Tokens of the held documents.
    pub fn num_held(&self) -> usize {
        self.held.keys().map(|&(length, _)| length).sum()
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
        #[pyo3(signature = (capacity, *, buffer, width))]
        fn new(capacity: usize, buffer: usize, width: usize) -> PyResult<Self> {
            if capacity == 0 || width == 0 {
                return Err(PyValueError::new_err("capacity and width are at least 1"));
            }
            Ok(Self {
                core: super::BestFit::new(capacity, buffer, width),
            })
        }

        /// Hold documents: their numbers, their tokens one after another, and where each begins and the last ends.
        fn hold(
            &mut self,
            py: Python<'_>,
            numbers: Vec<u64>,
            tokens: PyBuffer<u8>,
            offsets: PyBuffer<i64>,
        ) -> PyResult<()> {
            let (tokens, offsets) = (tokens.to_vec(py)?, offsets.to_vec(py)?);
            let width = self.core.width;
            let wrong =
                || PyValueError::new_err("numbers, tokens and offsets don't belong together");
            if offsets.len() != numbers.len() + 1 {
                return Err(wrong());
            }
            for (&number, bounds) in numbers.iter().zip(offsets.windows(2)) {
                let (start, end) = (bounds[0] as usize * width, bounds[1] as usize * width);
                self.core
                    .hold(number, tokens.get(start..end).ok_or_else(wrong)?);
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
        let mut packer = BestFit::new(8, 1, 1);
        for (number, length) in [3_u8, 5, 9, 5].into_iter().enumerate() {
            packer.hold(number as u64, &vec![number as u8; length.into()]);
        }
        assert_eq!(packer.num_held(), 22);
        assert_eq!(packer.pack(false), Some(vec![1, 1, 1, 1, 1, 0, 0, 0]));
        assert_eq!(packer.pack(true), Some(vec![3, 3, 3, 3, 3, 2, 2, 2]));
        assert_eq!((packer.num_kept, packer.num_cropped), (16, 6));
        assert_eq!(packer.pack(true), None);
    }

    #[test]
    fn tokens_of_two_bytes_are_counted_as_tokens() {
        let mut packer = BestFit::new(2, 1, 2);
        packer.hold(7, &[1, 0, 2, 0, 3, 0]);
        assert_eq!(packer.numbers(), [7]);
        assert_eq!(packer.pack(true), Some(vec![1, 0, 2, 0]));
        assert_eq!((packer.num_kept, packer.num_cropped), (2, 1));
    }

    #[test]
    fn documents_are_asked_for_below_the_buffer_and_a_rest_is_declared() {
        let mut packer = BestFit::new(4, 2, 1);
        packer.hold(0, &[1, 1]);
        assert_eq!(packer.pack(false), None);
        assert_eq!((packer.num_cropped, packer.num_held()), (0, 2));
        assert_eq!(packer.pack(true), None);
        assert_eq!((packer.num_cropped, packer.num_held()), (2, 0));
    }
}
