//! Byte-level BPE training: texts in, tokens in rank order out.
//!
//! A text is cut into words by a pattern ([`words`]); the pair of neighbouring tokens that occurs most often in
//! all words becomes the next token, again and again ([`merges`]). The core knows nothing of Python; the thin
//! skin that Python imports as `nanolit._rustbpe` is behind the feature `python`.

pub mod merges;
#[cfg(feature = "python")]
mod python;
pub mod words;
