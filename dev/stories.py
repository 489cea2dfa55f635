"""A grammar of little stories for dev/make_stories.py: a cast of characters, and plots about them.

A plot is text with choices, [this|or that], and with words of the cast in braces. A story depends only on its
random numbers and on the words that its caller fixes, so a question can ask for the story that follows it.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

GIRLS = ("Mia", "Lily", "Anna", "Ella", "Nora", "Rosie", "Daisy", "Ruby", "Bella", "Poppy", "Luna", "Emma")
BOYS = ("Tom", "Ben", "Max", "Sam", "Leo", "Finn", "Jack", "Oscar", "Toby", "Milo", "Charlie", "Pip")
ANIMALS = (
    *("fox", "cat", "dog", "bear", "rabbit", "mouse", "frog", "owl", "duck", "pig", "horse", "lion", "hen"),
    *("elephant", "turtle", "bird", "bee", "sheep", "goat", "squirrel", "hedgehog", "penguin", "monkey"),
    *("dragon", "robot", "tiger", "wolf", "cow", "deer", "snail", "unicorn"),
)
WOMEN, MEN = ("girl", "princess", "queen", "witch"), ("boy", "prince", "king", "wizard")
PEOPLE = (*WOMEN, *MEN, "farmer", "pirate", "knight", "baker")
HEROES = (*ANIMALS, *PEOPLE)
TRAITS = (
    *("brave", "shy", "kind", "curious", "clever", "sleepy", "hungry", "happy", "lonely", "funny", "careful"),
    *("cheerful", "gentle", "proud", "quiet"),
)
COLORS = ("red", "blue", "green", "yellow", "white", "brown", "pink", "golden")
HOMES = (
    *("in a quiet forest", "on a small farm", "by a blue lake", "in a red house on a hill", "near the sea"),
    *("in a little village", "at the edge of the forest", "in a tall castle", "on a green island"),
    *("under an old tree", "by a long river", "high up in the mountains", "in a big town", "behind a mill"),
)
THINGS = (
    *("ball", "hat", "kite", "scarf", "key", "drum", "book", "spoon", "bell", "shell", "ring", "lamp"),
    *("boat", "cup", "bag", "flute", "blanket", "coat"),
)
FOODS = (
    *("an apple", "a pie", "a cake", "some bread", "some honey", "some soup", "a cookie", "a pear"),
    *("a carrot", "some cheese", "a banana", "a pancake", "some berries", "some nuts"),
)
PLACES = (
    *("by the river", "in the garden", "on the hill", "in the meadow", "near the pond", "behind the barn"),
    *("at the market", "on the beach", "under the bridge", "in the tall grass", "by the old well"),
)
SKILLS = ("swim", "sing", "dance", "climb", "bake", "read", "paint", "skate", "fly a kite", "play the flute")
PROJECTS = ("house", "boat", "bridge", "tower", "swing", "cart", "tent", "bench")
PLANTS = ("flower", "pumpkin", "apple tree", "rose", "sunflower", "bean", "cherry tree", "tomato")
LISTS = {
    "trait": TRAITS, "home": HOMES, "color": COLORS, "thing": THINGS, "food": FOODS, "place": PLACES,
    "skill": SKILLS, "project": PROJECTS, "plant": PLANTS,
}  # fmt: skip
OPENINGS = (
    "Once upon a time there was a [little|small|young|{trait}|{trait} little] {hero} named {name}. "
    "{He} lived {home}.",
    "[Long ago|Once upon a time], a {trait} {hero} lived {home}. {His} name was {name}.",
    "There was once a [{trait}|{trait} young|little] {hero} called {name}, who lived {home}.",
)
ENDINGS = (
    "From that day on, {name} and {fname} were [best friends|the best of friends|always together].",
    "[{name} and {fname} were very happy|They laughed and laughed|Both of them were happy]. The end.",
    "That night {name} [slept very well|went to bed with a smile|had sweet dreams].",
    "And {name} never forgot that day.",
    "",
)
FRIEND = "[Just then|Then|After a while|Soon] {a_friend} named {fname} came [by|along|down the path]."
CHOICE = re.compile(r"\[([^][]*)\]")
FOLDER = Path(__file__).parent


def sections(name: str) -> dict[str, str]:
    """Return the texts of a file by their titles, "== title"; text before the first is a comment."""
    _, *parts = re.split(r"^== (.+)$", (FOLDER / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], map(str.strip, parts[1::2]), strict=True))


PLOTS = {
    theme: " ".join(text.split()).replace("{FRIEND}", FRIEND) for theme, text in sections("plots.txt").items()
}


@dataclass(frozen=True)
class Story:
    """A story with what questions need: `words` is its cast, `theme` its plot in a few words."""

    text: str
    theme: str
    words: dict[str, str]


def choose(chance: random.Random, text: str) -> str:
    """Return the text with one alternative of each [this|or that], the innermost first."""
    while CHOICE.search(text):
        text = CHOICE.sub(lambda match: chance.choice(match[1].split("|")), text)
    return text


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def cast(chance: random.Random, **fixed: str) -> dict[str, str]:
    """Return the words of a story: who, where and with what; the caller chooses the `fixed` ones."""
    hero = fixed.get("hero") or chance.choice(HEROES)
    friend = fixed.get("friend") or chance.choice([other for other in HEROES if other != hero])
    words = {"hero": hero, "friend": friend, "name": fixed.get("name") or chance.choice(names_for(hero))}
    others = [name for name in names_for(friend) if name != words["name"]]
    words["fname"] = fixed.get("fname") or chance.choice(others)
    for key, choices in LISTS.items():
        words[key] = fixed.get(key) or chance.choice(choices)
    for before, name in (("", words["name"]), ("f", words["fname"])):
        pronouns = ("she", "her", "her") if name in GIRLS else ("he", "him", "his")
        for key, word in zip(("he", "him", "his"), pronouns, strict=True):
            words[before + key], words[before + key.capitalize()] = word, word.capitalize()
    article = with_article(friend)
    return {**words, "a_friend": article, "a_Friend": article.capitalize()}


def names_for(kind: str) -> tuple[str, ...]:
    """Return the names that fit: a queen is not called Tom."""
    return GIRLS if kind in WOMEN else BOYS if kind in MEN else (*GIRLS, *BOYS)


def tell(chance: random.Random, *, plot: str | None = None, **fixed: str) -> Story:
    """Return a story; `plot` is a key of PLOTS, and `fixed` are words of the cast."""
    plot = plot or chance.choice(list(PLOTS))
    words = cast(chance, **fixed)
    parts = (chance.choice(OPENINGS), PLOTS[plot], chance.choice(ENDINGS))
    text = choose(chance, " ".join(filter(None, parts))).format_map(words)
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
    return Story(text, plot.format_map(words), words)
