//! The thin skin: what Python imports as `nanolit._rustbpe`.

use std::time::{Duration, Instant};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyList, PyString};

use crate::Id;
use crate::encoder::{Encoded, Encoder as Core, MOST_TOKENS, Width};
use crate::merges::{self, TooLarge, Words};
use crate::packing::python::BestFit;
use crate::split::Splitter;
use crate::words::WordCounts;

/// Texts are taken from Python until they hold this many bytes; then they are counted without the GIL.
const BATCH_BYTES: usize = 4 << 20;
/// Python is asked this often whether it was interrupted.
const POLL: Duration = Duration::from_millis(100);
/// Python is told this often how far the work is.
const TELL: Duration = Duration::from_millis(500);

/// Tokens in rank order, the 256 bytes first; fewer than `num_tokens` if the texts hold no more pairs.
///
/// A text is a str, or a pair of buffers (64-bit offsets, UTF-8) that hold many. `progress` is called about twice
/// a second with what is being done ("count" or "merge"), how much is done and how much there is (count: bytes
/// and distinct words; merge: merges), and with "counted" once when all is counted.
#[pyfunction]
#[pyo3(signature = (texts, *, pattern, num_tokens, threads, max_words, progress=None))]
fn train<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    pattern: &str,
    num_tokens: usize,
    threads: usize,
    max_words: usize,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let mut watcher = Watcher::new(progress);
    let mut counts = WordCounts::new(splitter(pattern)?, threads);
    count_words(texts, &mut counts, max_words, &mut watcher)?;
    let num_merges = num_tokens.saturating_sub(256);
    let mut stopped = None;
    let tokens = py.detach(|| {
        let mut watch = |made| {
            if stopped.is_none() {
                stopped = watcher.look("merge", made, num_merges).err();
            }
            stopped.is_none()
        };
        let words = collect(counts, &mut watch)?;
        let merges = merges::learn(words, num_merges, watch).unwrap_or_default();
        Ok(merges::token_bytes(&merges))
    });
    if let Some(error) = stopped {
        return Err(error);
    }
    let tokens = tokens.map_err(|TooLarge| {
        PyValueError::new_err(
            "the texts hold more distinct words than training has room for (16 GB); train on less text",
        )
    })?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token)).collect())
}

fn splitter(pattern: &str) -> PyResult<Splitter> {
    Splitter::new(pattern).map_err(|error| PyValueError::new_err(error.0))
}

/// The words, or as many as there are when `watch` says stop.
fn collect(
    mut counts: WordCounts,
    watch: &mut impl FnMut(usize) -> bool,
) -> Result<Words, TooLarge> {
    let (mut words, mut result) = (Words::default(), Ok(()));
    let (mut seen, mut go_on) = (0_usize, true);
    counts.for_each(|word, count| {
        if result.is_ok() && go_on {
            result = words.add(word, count);
            seen += 1;
            go_on = seen % merges::WATCHED_WORDS != 0 || watch(0);
        }
    });
    result.map(|()| words)
}

fn count_words(
    texts: &Bound<'_, PyAny>,
    counts: &mut WordCounts,
    max_words: usize,
    watcher: &mut Watcher,
) -> PyResult<()> {
    let py = texts.py();
    let (mut total_bytes, mut different) = (0, 0);
    let mut flush = |batch: &mut Batch| -> PyResult<()> {
        let distinct = py.detach(|| {
            counts
                .add(&batch.texts())
                .map(|()| counts.num_distinct(max_words))
        });
        let distinct = distinct.map_err(|error| PyValueError::new_err(error.0))?;
        if distinct > max_words {
            return Err(PyValueError::new_err(format!(
                "the texts hold more than {max_words} distinct words ({distinct} in the first {} MB), and all \
                 are kept in memory, about 200 bytes each; train on less text, or allow more with max_words",
                (total_bytes + batch.text.len()) / 1_000_000,
            )));
        }
        total_bytes += batch.text.len();
        different = distinct;
        batch.clear();
        watcher.look("count", total_bytes, distinct)
    };
    let mut batch = Batch::default();
    for (index, text) in texts.try_iter()?.enumerate() {
        batch.push(&text?, index)?;
        if batch.text.len() >= BATCH_BYTES {
            flush(&mut batch)?;
        }
    }
    flush(&mut batch)?;
    if counts.num_words() == 0 {
        return Err(PyValueError::new_err(
            "there is nothing to train on: the texts are empty, or the pattern finds no word in them; give \
             more text",
        ));
    }
    watcher.tell(py, "counted", total_bytes, different)
}

/// Texts, one after another, and where each ends.
#[derive(Default)]
struct Batch {
    text: String,
    ends: Vec<usize>,
}

impl Batch {
    fn push(&mut self, text: &Bound<'_, PyAny>, index: usize) -> PyResult<()> {
        let Ok(string) = text.cast::<PyString>() else {
            return self.push_many(text, index);
        };
        let string = string.to_str().map_err(|_| {
            PyValueError::new_err(format!(
                "text {index} holds half a surrogate pair, which is no character: leave it out"
            ))
        })?;
        self.text.push_str(string);
        self.ends.push(self.text.len());
        Ok(())
    }

    /// Offsets (64-bit, one more than there are texts) and UTF-8, as arrow lays out its large strings.
    fn push_many(&mut self, texts: &Bound<'_, PyAny>, index: usize) -> PyResult<()> {
        let Ok((offsets, bytes)) = texts.extract::<(PyBuffer<i64>, PyBuffer<u8>)>() else {
            let kind = texts.get_type().name()?;
            return Err(PyValueError::new_err(format!(
                "text {index} is of type {kind}; the tokenizer trains on strings: leave such rows out"
            )));
        };
        let offsets = offsets.to_vec(texts.py())?;
        let bytes = bytes.to_vec(texts.py())?;
        let invalid = || {
            PyValueError::new_err(format!(
                "the buffers of text {index} hold no UTF-8; write them again as UTF-8"
            ))
        };
        let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else {
            return Ok(());
        };
        let text = bytes.get(first as usize..last as usize);
        let text = std::str::from_utf8(text.ok_or_else(invalid)?).map_err(|_| invalid())?;
        let base = self.text.len();
        for end in &offsets[1..] {
            let end = (end - first) as usize;
            if !text.is_char_boundary(end) {
                return Err(invalid());
            }
            self.ends.push(base + end);
        }
        self.text.push_str(text);
        Ok(())
    }

    fn texts(&self) -> Vec<&str> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, &end)| &self.text[start..end])
            .collect()
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }
}

/// Asks Python now and then whether to stop, and tells it how far the work is.
struct Watcher {
    progress: Option<Py<PyAny>>,
    polled: Instant,
    told: Instant,
}

impl Watcher {
    fn new(progress: Option<Bound<'_, PyAny>>) -> Self {
        Self {
            progress: progress.map(Bound::unbind),
            polled: Instant::now(),
            told: Instant::now(),
        }
    }

    fn look(&mut self, doing: &str, done: usize, all: usize) -> PyResult<()> {
        if self.polled.elapsed() < POLL {
            return Ok(());
        }
        self.polled = Instant::now();
        let tell = self.told.elapsed() >= TELL;
        if tell {
            self.told = Instant::now();
        }
        Python::attach(|py| {
            py.check_signals()?;
            if tell {
                self.tell(py, doing, done, all)?;
            }
            Ok(())
        })
    }

    fn tell(&self, py: Python<'_>, doing: &str, done: usize, all: usize) -> PyResult<()> {
        if let Some(progress) = &self.progress {
            progress.call1(py, (doing, done, all))?;
        }
        Ok(())
    }
}

/// Text to ids, exactly tiktoken's; any number of threads may use it at once.
#[pyclass(frozen)]
struct Encoder {
    core: Core,
    wide: bool,
}

#[pymethods]
impl Encoder {
    /// `tokens` in rank order, the bytes 0 to 255 first; ids are written in 4 bytes if `wide`, else in 2.
    #[new]
    #[pyo3(signature = (tokens, *, pattern, wide))]
    fn new(py: Python<'_>, tokens: Vec<Vec<u8>>, pattern: &str, wide: bool) -> PyResult<Self> {
        if tokens.len() > MOST_TOKENS {
            return Err(PyValueError::new_err(format!(
                "the vocabulary has {} tokens, more than the {MOST_TOKENS} that the encoder has room for; \
                 choose a smaller vocabulary",
                tokens.len()
            )));
        }
        let splitter = splitter(pattern)?;
        let core = py.detach(|| Core::new(&tokens, splitter));
        Ok(Self { core, wide })
    }

    /// The ids of a text.
    fn encode(&self, py: Python<'_>, text: &str) -> PyResult<Vec<Id>> {
        let mut ids = Vec::new();
        py.detach(|| self.core.encode(text, &mut ids))
            .map_err(|error| PyValueError::new_err(error.0))?;
        Ok(ids)
    }

    /// The ids of all texts as bytes, and where each text's end, as the bytes of 64-bit integers.
    ///
    /// The texts are a list of strings, or two buffers: 64-bit offsets and UTF-8.
    #[pyo3(signature = (texts, *, first, threads))]
    fn encode_flat<'py>(
        &self,
        texts: &Bound<'py, PyAny>,
        first: Option<Id>,
        threads: usize,
    ) -> PyResult<Joined<'py>> {
        let py = texts.py();
        let Ok(list) = texts.cast::<PyList>() else {
            let mut batch = Batch::default();
            batch.push_many(texts, 0)?;
            return if self.wide {
                join(
                    py,
                    &self.encoded_texts::<u32>(py, &batch.texts(), first, threads)?,
                )
            } else {
                join(
                    py,
                    &self.encoded_texts::<u16>(py, &batch.texts(), first, threads)?,
                )
            };
        };
        if self.wide {
            join(py, &self.encoded::<u32>(list, first, threads)?)
        } else {
            join(py, &self.encoded::<u16>(list, first, threads)?)
        }
    }
}

impl Encoder {
    fn encoded<W: Width>(
        &self,
        list: &Bound<'_, PyList>,
        first: Option<Id>,
        threads: usize,
    ) -> PyResult<Vec<Encoded<W>>> {
        let strings: Vec<Bound<'_, PyString>> = list
            .iter()
            .enumerate()
            .map(|(index, text)| {
                text.cast_into::<PyString>().map_err(|error| {
                    let kind = error.into_inner().get_type().name();
                    let kind = kind.map_or_else(|_| "unknown".into(), |kind| kind.to_string());
                    PyValueError::new_err(format!(
                        "text {index} is of type {kind}; only strings can be encoded: leave it out"
                    ))
                })
            })
            .collect::<PyResult<_>>()?;
        let texts: Vec<&str> = strings
            .iter()
            .map(|string| string.to_str())
            .collect::<PyResult<_>>()?;
        self.encoded_texts(list.py(), &texts, first, threads)
    }

    fn encoded_texts<W: Width>(
        &self,
        py: Python<'_>,
        texts: &[&str],
        first: Option<Id>,
        threads: usize,
    ) -> PyResult<Vec<Encoded<W>>> {
        py.detach(|| self.core.encode_batch(texts, first, threads))
            .map_err(|error| PyValueError::new_err(error.0))
    }
}

type Joined<'py> = (Bound<'py, PyByteArray>, Bound<'py, PyByteArray>);

fn join<'py, W: Width>(py: Python<'py>, encoded: &[Encoded<W>]) -> PyResult<Joined<'py>> {
    let num_ids: usize = encoded.iter().map(|part| part.ids.len()).sum();
    let num_texts: usize = encoded.iter().map(|part| part.ends.len()).sum();
    let ids = PyByteArray::new_with(py, num_ids * size_of::<W>(), |bytes| {
        let mut at = 0;
        for part in encoded {
            let part = as_bytes(&part.ids);
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    })?;
    let offsets = PyByteArray::new_with(py, (num_texts + 1) * 8, |bytes| {
        let (mut base, mut at) = (0, 8);
        for part in encoded {
            for end in &part.ends {
                bytes[at..at + 8].copy_from_slice(&((base + end) as i64).to_ne_bytes());
                at += 8;
            }
            base += part.ids.len();
        }
        Ok(())
    })?;
    Ok((ids, offsets))
}

/// The ids as they lie in memory.
fn as_bytes<W: Width>(ids: &[W]) -> &[u8] {
    // SAFETY: a Width is u16 or u32, every byte of which is initialized; bytes need no alignment.
    unsafe { std::slice::from_raw_parts(ids.as_ptr().cast(), size_of_val(ids)) }
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Encoder>()?;
    module.add_class::<BestFit>()?;
    module.add_function(wrap_pyfunction!(train, module)?)
}
