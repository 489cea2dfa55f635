//! Byte-level BPE: texts in, tokens in rank order out; then texts in, token ids out.
//!
//! A text is cut into words by a pattern ([`split`], by hand for the known patterns: [`scanner`]); words are
//! counted ([`words`]), and the pair of neighbouring tokens that occurs most often in all words becomes the next
//! token, again and again ([`merges`]). [`encoder`] replays the merges on new text; [`packing`] makes rows of
//! documents. The core knows nothing of
//! Python; the thin skin that Python imports as `nanolit._rustbpe` is behind the feature `python`.

pub mod classes;
pub mod encoder;
pub mod known;
pub mod merges;
pub mod packing;
#[cfg(feature = "python")]
mod python;
pub mod scanner;
pub mod split;
pub mod table;
pub mod words;

/// A token's id: 0–255 are the bytes, 256 + i is what merge i made.
pub type Id = u32;
