"""A chat in the terminal: streamed replies, several turns, /clear and /quit; Ctrl-C stops a reply only."""

import secrets
import sys
from dataclasses import dataclass, field

from nanolit.chat.dialogue import Talker
from nanolit.machine.device import derived_seed

COMMANDS = "/clear starts over, /quit leaves, Ctrl-C stops a reply"


@dataclass
class Terminal:
    """One person's chat on standard input and output; `turns` is its history.

    With `seed` None every reply is another draw; with a number the same messages get the same replies.
    """

    talker: Talker
    temperature: float
    top_k: int | None
    max_tokens: int
    seed: int | None
    turns: list[list[int]] = field(default_factory=list)
    num_replies: int = 0

    def greet(self, name: str) -> None:
        """Say who answers, what it can, and how to leave."""
        print(f"NanoLit chat with {name} (context {self.talker.engine.context:,} tokens). {COMMANDS}.")
        if self.talker.continues_text:
            print("(a base model: it continues your text, and each message begins a new one)")

    def converse(self) -> None:
        """Read messages until /quit or the end of the input."""
        if sys.stdin.isatty():
            import readline  # noqa: F401  (its import gives input() line editing and history)
        while True:
            try:
                message = input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print(f"\n({COMMANDS})")
                continue
            if message == "/quit":
                return
            if message == "/clear":
                self.turns.clear()
                print("(the conversation starts over)")
            elif message.startswith("/"):
                print(f"(no command {message.split()[0]}; {COMMANDS})")
            elif message:
                self._answer_or_explain(message)

    def _answer_or_explain(self, message: str) -> None:
        try:
            self.answer(message)
        except ValueError as error:
            print(f"({error})")

    def answer(self, message: str) -> None:
        """Print the reply as it comes and add the turn to the history, also when Ctrl-C cuts it short."""
        reply = self.talker.reply(
            self.turns,
            message,
            temperature=self.temperature,
            top_k=self.top_k,
            max_tokens=self.max_tokens,
            seed=self._next_seed(),
        )
        if reply.dropped_turns:
            del self.turns[: reply.dropped_turns]
            print(f"(the context is full: the oldest {reply.dropped_turns} turn(s) were dropped)")
        try:
            for piece in reply:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        print()
        if not self.talker.continues_text:
            self.turns.append(reply.turn)

    def _next_seed(self) -> int:
        self.num_replies += 1
        if self.seed is None:
            return secrets.randbits(63)
        return derived_seed(self.seed, "reply", self.num_replies)
