"""Conversations with a policy: what was said, cut to the context, and the answers to it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from align.config import ConfigError
from align.policy import load_policy, respond, uniforms
from align.progress import silent
from preference_data.counts import counted
from preference_data.records import Message, Prompt
from preference_data.rendering import Renderer, RenderingError

Turns = list[dict[str, str]]
"""Messages with `role` and `content`."""
LIKELIEST = 1e-6
"""The temperature that stands for 0: the likeliest token is taken, whatever the draw."""
UNFINISHED = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class TooLong(ValueError):
    """A prompt that leaves no room for an answer; the message has the numbers."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.7
    """0 takes the likeliest token"""
    max_new_tokens: int = 128
    seed: int = 0

    def draws(self, number: int, rows: int = 1) -> Tensor:
        """[rows, max_new_tokens] of the answer of this number, from 1; of every policy the same."""
        return uniforms(self.seed * 1_000_003 + number, rows, self.max_new_tokens)


class Voice:
    """A policy that answers."""

    def __init__(self, name: str, model: Any, renderer: Renderer):
        self.name = name
        self.renderer = renderer
        self._model = model

    @classmethod
    def load(cls, path: Path, name: str, device: str | None = None) -> Voice:
        """Raises ConfigError for a folder that holds no policy."""
        try:
            model, renderer = load_policy(path, device=device)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(f"{str(error).rstrip('.')}.") from error
        return cls(name, model, renderer)

    @property
    def positions(self) -> int | None:
        """Tokens of a prompt and its answer together, at most; None where there is no limit."""
        return getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def ids(self, turns: Turns, room: int) -> tuple[int, ...]:
        """The prompt's tokens. Raises TooLong if they and `room` for the answer do not fit, and
        ValueError for what is no conversation, or that the template refuses."""
        from jinja2 import TemplateError

        messages = tuple(Message(turn["role"], turn["content"]) for turn in turns)  # type: ignore[arg-type]
        try:
            ids = self.renderer.prompt(Prompt(messages))
        except TemplateError as error:
            raise ValueError(f"the chat template of {self.name} refuses this: {error}") from error
        except RenderingError as error:
            raise ValueError(f"{error}; write it otherwise") from error
        if self.positions is not None and len(ids) + room > self.positions:
            raise TooLong(
                f"its {counted(len(ids), 'token')} and {room} new ones are more than the "
                f"{self.positions} positions of {self.name}"
            )
        return ids

    def answer(
        self, ids: tuple[int, ...], draws: Tensor, temperature: float,
        say: Callable[[str], object] = lambda piece: None,
    ) -> str:  # fmt: skip
        """The answer to a prompt; `say` is given each piece of it as soon as it is sampled."""
        pieces = Pieces(self.renderer)

        def token(tokens: Tensor) -> None:
            for piece in pieces.add(int(tokens[0])):
                say(piece)

        with silent():  # the pieces are the progress
            [response] = respond(
                self._model, [ids], draws, self.renderer, temperature or LIKELIEST, token
            )
        text = self.renderer.decode(response.ids)
        if rest := text[len(pieces.said) :]:
            say(rest)
        return text

    def answers(
        self, prompts: Sequence[tuple[int, ...]], draws: Tensor, temperature: float
    ) -> list[str]:
        """The answers to several prompts in one batch, each with its row of `draws`."""
        found = respond(self._model, prompts, draws, self.renderer, temperature or LIKELIEST)
        return [self.renderer.decode(response.ids) for response in found]


class Pieces:
    """The text of tokens that come one by one, without what a later one could still change: bytes
    of an unfinished character, and space at the end."""

    def __init__(self, renderer: Renderer) -> None:
        self.said = ""
        self._ids: list[int] = []
        self._renderer = renderer

    def add(self, token: int) -> Iterator[str]:
        """What is certain now and was not before."""
        self._ids.append(token)
        text = self._renderer.decode(self._ids)  # stripped
        if text.endswith(UNFINISHED) or not text.startswith(self.said):
            return
        if piece := text[len(self.said) :]:
            self.said = text
            yield piece


@dataclass
class Conversation:
    """What was said to one policy, and by it."""

    voice: Voice
    system: str | None = None
    turns: Turns = field(default_factory=Turns)
    """Of the user and the assistant in turn"""
    forgotten: int = 0
    """The first of them that no longer fit"""

    def ask(
        self, text: str, draws: Tensor, temperature: float, say: Callable[[str], object]
    ) -> str:
        """Answers, and keeps what was said. Interrupted, it keeps what had been said until then; a
        question that came to nothing is taken back.

        Raises TooLong if the question alone does not fit, ValueError if it cannot be asked.
        """
        said: list[str] = []
        self.turns.append({"role": "user", "content": text})
        try:
            ids = self._fitting(draws.shape[1])
            answer = self.voice.answer(
                ids, draws, temperature, lambda piece: (said.append(piece), say(piece))
            )
        except BaseException as error:
            if said and isinstance(error, KeyboardInterrupt):
                self._keep("".join(said))
            else:
                self.turns.pop()
            raise
        self._keep(answer)
        return answer

    def _keep(self, answer: str) -> None:
        # A policy may spell out a control token, which no prompt may hold.
        content = self.voice.renderer.without_control(answer)
        self.turns.append({"role": "assistant", "content": content})

    def _fitting(self, room: int) -> tuple[int, ...]:
        """The prompt's tokens; the oldest question and its answer go until it fits."""
        while True:
            try:
                return self.voice.ids(self.messages, room)
            except TooLong:
                if len(self.turns) - self.forgotten <= 1:
                    raise
                self.forgotten += 2

    @property
    def messages(self) -> Turns:
        """What the policy reads: the system message, and the turns that are not forgotten."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns[self.forgotten :]]

    def undo(self) -> str | None:
        """Takes the last question and its answer back, and returns the question."""
        if not self.turns:
            return None
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        self.forgotten = 0  # what fits is found anew
        return question

    def reset(self) -> None:
        self.turns.clear()
        self.forgotten = 0

    def to_json(self) -> dict[str, Any]:
        """Everything that was said, also what is forgotten."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"policy": self.voice.name, "messages": [*system, *self.turns]}


def names_of(paths: Sequence[Path]) -> list[str]:
    """What policies are called: their folders' names, with those above them where two are alike."""
    resolved = [path.resolve() for path in paths]
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(set(resolved)) or depth > 20:
            break
        depth += 1
    return (
        names if len(set(names)) == len(names) else [f"{n} ({i})" for i, n in enumerate(names, 1)]
    )


def printable(text: str) -> str:
    """The text less control characters, which would move the cursor or colour the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


Score = Callable[[Turns, str], float | None]
"""(the conversation up to an answer, the answer) -> its score, None where it cannot be scored."""


def load_score(path: Path, device: str | None = None) -> Score:
    """The scores of a reward step as PPO reads them: 0 is the mean of the training's answers, 1
    their standard deviation. Raises ConfigError for a folder that holds no reward model."""
    from reward_models import RewardModel

    try:
        model = RewardModel.from_pretrained(path, device=device)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        raise ConfigError(f"--reward: {str(error).rstrip('.')}.") from error

    def score(turns: Sequence[Mapping[str, str]], answer: str) -> float | None:
        try:
            [found] = model.rewards([model.group_of(list(turns), answer)])
        except ValueError:  # nothing was said, or too much
            return None
        return found

    return score
