"""A chat in the terminal: streamed replies, several turns, commands with a slash; Ctrl-C stops a reply only.

In a pipe nothing but replies goes to standard output: no greeting, no prompts, notes on the error output.
"""

import dataclasses
import secrets
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanolit.chat.dialogue import Talker, left_out, room_for, without_empty
from nanolit.inference.sampling import check_settings
from nanolit.machine.arguments import choose, setting, settings_of
from nanolit.machine.device import derived_seed
from nanolit.machine.paths import expanded, read_json, write_json
from nanolit.machine.terminal import at_terminal, printable, say, unbroken
from nanolit.tokenizer.conversation import check_conversation


@dataclass(kw_only=True)
class Drawing:
    """Sampling settings, which /set changes. With `seed` None every reply is another draw."""

    temperature: float = setting("0 always picks the most likely token", 0.6, least=0)
    top_k: int | None = setting("sample from the N most likely tokens; 0: from all", 50, least=0)
    top_p: float = setting("sample from the smallest set of tokens with this total probability", 1.0)
    repetition_penalty: float = setting("above 1: repeat less", 1.0)
    max_tokens: int = setting("longest reply", 256, least=1)
    seed: int | None = setting("random seed for the same replies every time", None)

    def changed(self, text: str) -> "Drawing":
        """Return these with `name=value` set; ValueError says what is allowed."""
        name, equals, value = text.replace(" ", "").partition("=")
        if not equals:
            raise ValueError(f"/set changes one of these settings: {self}; write /set NAME=VALUE")
        kinds = settings_of(Drawing)
        kind = kinds[choose(name, kinds, kind="setting")]
        is_none = value == "none" and name in ("top_k", "seed")  # as it is shown
        number: Any = None if is_none else kind.converted(value)
        new = dataclasses.replace(self, **{name: None if (name, number) == ("top_k", 0) else number})
        check_settings(
            temperature=new.temperature,
            top_k=new.top_k,
            top_p=new.top_p,
            repetition_penalty=new.repetition_penalty,
        )
        return new

    def __str__(self) -> str:
        return " ".join(f"{name}={'none' if value is None else value}" for name, value in vars(self).items())


@dataclass
class Terminal:
    """One person's chat on standard input and output; `messages` is the conversation so far."""

    talker: Talker
    drawing: Drawing
    messages: list[dict[str, Any]] = field(default_factory=list)
    system: str = ""
    num_replies: int = 0

    def __post_init__(self) -> None:
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()

    def greet(self, name: str) -> None:
        """Say who answers, what it can, and how to leave."""
        what = "a base model: it continues your text, and each message starts a new text"
        if not self.talker.continues_text:
            what = f"context {self.talker.engine.context:,} tokens"
        self.note(f"NanoLit chat with {name} ({what}). /help lists the commands, /quit quits.")

    def note(self, text: str) -> None:
        """Say what is not a reply."""
        if self.interactive:
            say(printable(text))
        else:
            print(printable(text), file=sys.stderr, flush=True)

    def converse(self) -> None:
        """Read messages until /quit or the end of the input."""
        if self.interactive:
            import readline  # noqa: F401  (its import gives input() line editing and history)
        while True:
            try:
                text = input("> " if self.interactive else "").strip()
            except EOFError:
                if self.interactive:
                    print()
                return
            except KeyboardInterrupt:
                self.note("\n(/quit quits, Ctrl-C stops a reply)")
                continue
            if text.split()[:1] == ["/quit"]:
                return
            try:
                self._command(text) if text.startswith("/") else text and self.answer(text)
            except BrokenPipeError:  # whatever reads the replies is gone
                raise
            except (ValueError, OSError) as error:
                self.note(f"({error})")

    def answer(self, message: str) -> None:
        """Print the reply as it comes and add both to the conversation, also when Ctrl-C cuts it short."""
        self.messages = without_empty(self.messages)
        settings = vars(self.drawing) | {"seed": self._next_seed()}
        reply = self.talker.reply(self._conversation(), message, **settings)
        if reply.dropped_turns:
            del self.messages[: 2 * reply.dropped_turns]
            self.note(f"({left_out(reply.dropped_turns)})")
        try:
            columns = shutil.get_terminal_size().columns
            for piece in unbroken(reply, columns) if self.interactive and at_terminal() else reply:
                print(printable(piece), end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        print(flush=True)
        # An empty reply is kept until the next message, for /regen and /undo
        self.messages += [{"role": "user", "content": message}, {"role": "assistant", "content": reply.text}]

    def _conversation(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages]

    def _next_seed(self) -> int:
        self.num_replies += 1
        if self.drawing.seed is None:
            return secrets.randbits(63)
        return derived_seed(self.drawing.seed, "reply", self.num_replies)

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name not in COMMANDS:
            raise ValueError(f"no command {name}; /help lists them")
        COMMANDS[name][1](self, rest.strip())

    def _help(self, rest: str) -> None:
        self.note("\n".join(f"  {name:<8} {about}" for name, (about, _) in COMMANDS.items()))

    def _set(self, rest: str) -> None:
        if rest:
            drawing = self.drawing.changed(rest)
            room_for(drawing.max_tokens, self.talker.engine.context)
            self.drawing = drawing
        self.note(f"({self.drawing})")

    def _system(self, rest: str) -> None:
        self.system = rest
        self.note("(the system prompt is set)" if rest else "(there is no system prompt)")

    def _clear(self, rest: str) -> None:
        self.messages.clear()
        self.note("(the conversation starts over)")

    def _undo(self, rest: str) -> None:
        self.note(f"(removed: {self._take_back()})")

    def _regen(self, rest: str) -> None:
        before = [*self.messages]
        try:
            self.answer(self._take_back())
        except BaseException:
            self.messages = before
            raise

    def _take_back(self) -> str:
        """Remove the last exchange and return the user's message."""
        if not self.messages:
            raise ValueError("there are no messages yet")
        message, _ = self.messages[-2:]
        del self.messages[-2:]
        return message["content"]

    def _save(self, rest: str) -> None:
        path = _path(rest, "/save")
        if not without_empty(self.messages):
            raise ValueError("there are no messages yet")
        if path.exists():
            raise ValueError(f"{path} already exists; give another name")
        write_json(path, {"messages": without_empty(self._conversation())})
        self.note(f"(saved in {path})")

    def _load(self, rest: str) -> None:
        path = _path(rest, "/load")
        if not path.is_file():
            raise ValueError(f"there is no file {path}; /save writes one")
        conversation = read_json(path)
        check_conversation(conversation, place=str(path))
        messages = list(conversation["messages"])
        if messages[-1]["role"] != "assistant" or any(type(m["content"]) is not str for m in messages):
            raise ValueError(f"{path} is not a conversation saved by /save: texts that end with a reply")
        self.system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        self.messages = messages
        count = len(messages) // 2
        self.note(f"({count} turn{'s' * (count != 1)} from {path})")


COMMANDS: dict[str, tuple[str, Callable[[Terminal, str], object]]] = {
    "/help": ("list these commands", Terminal._help),
    "/set": ("NAME=VALUE changes a sampling setting; without it, list them", Terminal._set),
    "/system": ("TEXT sets the system prompt; without it, remove the prompt", Terminal._system),
    "/regen": ("answer the last message again", Terminal._regen),
    "/undo": ("remove the last message and its reply", Terminal._undo),
    "/clear": ("start over", Terminal._clear),
    "/save": ("FILE saves the conversation", Terminal._save),
    "/load": ("FILE continues a saved conversation", Terminal._load),
    "/quit": ("quit (Ctrl-C only stops a reply)", Terminal._help),  # `converse` does it
}


def _path(text: str, command: str) -> Path:
    if not text:
        raise ValueError(f"{command} needs a file: {command} talk.json")
    return expanded(text)
