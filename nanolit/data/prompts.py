"""Prompts for reinforcement learning: the problems of one step, the same on any number of ranks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nanolit.data.sequence import permutation
from nanolit.tasks.task import Conversation, Task
from nanolit.tokenizer.bpe import Tokenizer
from nanolit.tokenizer.conversation import check_conversation, render_prompt

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A problem; its place in the step, over all ranks, keys its random numbers."""

    place: int
    ids: list[int]
    conversation: Conversation


@dataclass(frozen=True, kw_only=True)
class PromptStep:
    """One rank's prompts of a step, and the stream's position after it (JSON)."""

    prompts: list[Prompt]
    position: dict[str, int]


class PromptStream:
    """The steps of this rank, `num_steps` of them; a step has `prompts` problems over all ranks.

    Every epoch goes once through the task in an order keyed by (seed, epoch); between epochs a step reaches
    over. Without `max_steps` there is one, less a step of fewer than `prompts` problems. Problems whose
    prompt is longer than `max_prompt_tokens` are left out: `num_left_out`.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        *,
        prompts: int,
        max_prompt_tokens: int,
        seed: int,
        max_steps: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if prompts < 1 or prompts % world:
            raise ValueError(f"prompts per step ({prompts}) must be a multiple of the ranks ({world})")
        self.prompts = prompts
        self._own = range(rank * prompts // world, (rank + 1) * prompts // world)
        self._seed = seed
        self._problems: list[tuple[list[int], Conversation]] = []
        for index in range(len(task)):
            conversation = task[index]
            check_conversation(conversation, place=task.place(index))
            ids = render_prompt(conversation, tokenizer)
            if len(ids) <= max_prompt_tokens:
                self._problems.append((ids, conversation))
        self.num_left_out = len(task) - len(self._problems)
        if not self._problems:
            raise ValueError(
                f"{task.name}: every prompt is longer than {max_prompt_tokens} tokens; give a longer context"
            )
        self.num_steps = len(self._problems) // prompts if max_steps is None else max_steps
        if self.num_steps < 1:
            raise ValueError(
                f"{task.name} has {len(self._problems)} prompts, fewer than the {prompts} of one step; try "
                f"{len(self._problems)} per step"
            )
        self._next_step = 0

    def __len__(self) -> int:
        """Return a length without end; see PretrainStream. `num_steps` is the number."""
        return 10**9

    def load_position(self, positions: Sequence[Mapping[str, int]]) -> None:
        """Continue after the step that these positions came with; ValueError if the order has changed."""
        was = dict(positions[0])
        now = self._position(was.get("step", 0))
        if changed := [key for key in now if was.get(key) != now[key]]:
            differences = ", ".join(f"{key} was {was.get(key)}, is {now[key]}" for key in changed)
            raise ValueError(
                f"can't resume, the prompts' order would differ: {differences}; resume with the run's first "
                "settings, or start a new run"
            )
        self._next_step = was["step"]

    def __iter__(self) -> Iterator[PromptStep]:
        """Begin at the first step, or after the loaded position or the last step that was taken."""
        for number in range(self._next_step, self.num_steps):
            prompts = [self._prompt(number, place) for place in self._own]
            self._next_step = number + 1
            yield PromptStep(prompts=prompts, position=self._position(number + 1))

    def _prompt(self, step: int, place: int) -> Prompt:
        epoch, turn = divmod(step * self.prompts + place, len(self._problems))
        order = permutation(len(self._problems), self._seed, "conversation order", epoch)
        ids, conversation = self._problems[order[turn]]
        return Prompt(place=place, ids=ids, conversation=conversation)

    def _position(self, step: int) -> dict[str, int]:
        problems = len(self._problems)
        return {
            "format": FORMAT,
            "step": step,
            "seed": self._seed,
            "prompts": self.prompts,
            "problems": problems,
        }
