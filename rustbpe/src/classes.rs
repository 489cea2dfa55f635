//! Characters to the classes that the known patterns speak of: letters, numbers, white space, the rest.

use std::sync::LazyLock;

use regex_syntax::hir::{Class, HirKind};

/// `\p{L}`
pub const LETTER: u8 = 1;
/// `\p{N}`
pub const NUMBER: u8 = 2;
/// `\s`
pub const SPACE: u8 = 4;
/// `[^\s\p{L}\p{N}]`
pub const OTHER: u8 = 8;
/// `[\r\n]`; set beside [`SPACE`].
pub const NEWLINE: u8 = 16;

const NUM_CODE_POINTS: usize = 0x11_0000;

/// The class of every code point, 1.1 MB, of which text touches little.
///
/// Read from regex-syntax when first used (about a millisecond), so that it cannot differ from what the regex
/// crates take `\p{L}`, `\p{N}` and `\s` for.
pub static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut classes = vec![OTHER; NUM_CODE_POINTS].into_boxed_slice();
    for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
        let hir = regex_syntax::parse(pattern).expect("a pattern that regex-syntax knows");
        let HirKind::Class(Class::Unicode(ranges)) = hir.kind() else {
            unreachable!("{pattern} is a class of characters")
        };
        for range in ranges.ranges() {
            classes[range.start() as usize..=range.end() as usize].fill(class);
        }
    }
    classes['\r' as usize] |= NEWLINE;
    classes['\n' as usize] |= NEWLINE;
    classes
});

/// The classes of the ASCII characters; 0 for the bytes of others.
pub static ASCII: LazyLock<[u8; 256]> = LazyLock::new(|| {
    let mut classes = [0; 256];
    classes[..128].copy_from_slice(&CLASSES[..128]);
    classes
});

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    #[test]
    fn every_character_has_the_class_that_the_regex_crate_gives_it() {
        let patterns = [r"\p{L}", r"\p{N}", r"\s", r"[^\s\p{L}\p{N}]", r"[\r\n]"];
        let regexes = patterns.map(|pattern| Regex::new(&format!("^{pattern}$")).unwrap());
        for character in '\0'..=char::MAX {
            let text = character.to_string();
            let expected = (0..5).fold(0, |class, bit| {
                class | u8::from(regexes[bit].is_match(&text).unwrap()) << bit
            });
            // NEWLINE is the fifth bit, in the order of the patterns
            assert_eq!(CLASSES[character as usize], expected, "{character:?}");
        }
    }
}
