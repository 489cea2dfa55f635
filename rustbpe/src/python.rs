//! The thin skin: what Python imports as `nanolit._rustbpe`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::merges;
use crate::words::WordCounts;

/// Texts are taken from Python until they hold this many bytes; then they are counted without the GIL.
const BATCH_BYTES: usize = 16 << 20;

/// Tokens in rank order, the 256 bytes first; fewer than `num_tokens` if the texts hold no more pairs.
#[pyfunction]
#[pyo3(signature = (texts, *, pattern, num_tokens))]
fn train<'py>(
    py: Python<'py>,
    texts: &Bound<'py, PyAny>,
    pattern: &str,
    num_tokens: usize,
) -> PyResult<Vec<Bound<'py, PyBytes>>> {
    let words = count_words(py, texts, pattern)?;
    let num_merges = num_tokens.saturating_sub(256);
    let mut interruption = None;
    let tokens = py.detach(|| {
        let watch = |_| match Python::attach(|py| py.check_signals()) {
            Ok(()) => true,
            Err(error) => {
                interruption = Some(error);
                false
            }
        };
        merges::learn(words.iter(), num_merges, watch).map(|merges| merges::token_bytes(&merges))
    });
    match interruption {
        Some(error) => Err(error),
        None => Ok(tokens
            .unwrap_or_default()
            .iter()
            .map(|token| PyBytes::new(py, token))
            .collect()),
    }
}

fn count_words(py: Python<'_>, texts: &Bound<'_, PyAny>, pattern: &str) -> PyResult<WordCounts> {
    let mut words = WordCounts::new(pattern).map_err(PyValueError::new_err)?;
    let mut batch: Vec<String> = Vec::new();
    let mut batch_bytes = 0;
    for (index, text) in texts.try_iter()?.enumerate() {
        let text = as_string(&text?, index)?;
        batch_bytes += text.len();
        batch.push(text);
        if batch_bytes >= BATCH_BYTES {
            py.check_signals()?;
            py.detach(|| words.add(&batch))
                .map_err(PyValueError::new_err)?;
            batch.clear();
            batch_bytes = 0;
        }
    }
    py.detach(|| words.add(&batch))
        .map_err(PyValueError::new_err)?;
    Ok(words)
}

fn as_string(text: &Bound<'_, PyAny>, index: usize) -> PyResult<String> {
    let Ok(string) = text.cast::<PyString>() else {
        let kind = text.get_type().name()?;
        return Err(PyValueError::new_err(format!(
            "text {index} is of type {kind}; the tokenizer trains on strings: leave such rows out"
        )));
    };
    string.extract().map_err(|_| {
        PyValueError::new_err(format!(
            "text {index} holds half a surrogate pair, which is no character: leave it out"
        ))
    })
}

#[pymodule]
fn _rustbpe(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(train, module)?)
}
