"""Documents that the tokenizer's tests share: hand-made ones for what corpora seldom hold, and drawn ones."""

from hypothesis import strategies as st

TEXTS = [
    "",
    "The quick brown fox isn't lazy; it's 12 years old, in 1999 it was -3.",
    "They'll've SAID they're sure WE'D agree, I'M TOLD.  Two  spaces,   three.\n\n\tA tab.\r\nWindows  \n",
    "aaaaaaaaaaaaaaa aaaa aaaaa bababababab abababa",
    "Die Größe der Straße überrascht; l'été à Noël, naïve façade, Łódź, ığdır.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ελληνικά: τάχιστη αλώπηξ.",
    "我能吞下玻璃而不伤身体。いろはにほへと ちりぬるを。 키스의 고유조건은 입술끼리 만나야 한다.",
    "नमस्ते दुनिया ۱۲۳ مرحبا بالعالم שלום עולם ١٢٣٤ ①②③ Ⅷ ½",
    "🙂🙃🙂 👩‍👩‍👧‍👦 🇩🇪🇫🇷 👍🏽 e\u0301 zero\u200bwidth nb\u00a0space ideographic\u3000space \u2028line",
    "def f(x):\n    return x**2  # 100_000\n\n\nfor i in range(10):\n\tprint(f(i))\n",
    "<|bos|>plain text<|user_start|>",
    "\x00\x01\x7f",
    " ",
    "\n\n\n   ",
]

# Characters that Python's own Unicode tables know: the regex packages know newer ones than one another.
characters = st.characters(exclude_categories=("Cs", "Cn"))
documents = st.lists(
    st.one_of(
        st.text(characters, max_size=40),
        st.text("ab", max_size=40),
        st.text(" \n\r\t'sdlvetmSLV1é🙂x.", max_size=60),
        st.sampled_from(TEXTS),
    ),
    max_size=8,
)
