"""Text that is safe to print on a terminal."""

import unicodedata


def printable(text: str) -> str:
    """Return `text` with control characters, newline and tab excepted, as pictures of themselves.

    Some move the cursor, rename the window or type for the user: ␛ says that one was there.
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) != "Cc"
        else chr(0x2400 + ord(character))
        if ord(character) < 0x20
        else "␡"
        for character in text
    )
