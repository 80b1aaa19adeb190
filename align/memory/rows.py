"""What imported data will take: tokens of its rows, by the base's own tokenizer and template.

Neither torch nor transformers is imported: the tokenizer is `tokenizers`' own, and the chat
template is rendered as transformers does it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from align.config import DataKind
from preference_data import views
from preference_data.rendering import Renderer, RenderingError

SAMPLE = 400
"""Rows that are counted, at even steps through all."""


@dataclass(frozen=True)
class Rows:
    """What is known of a data source. Lengths are tokens."""

    count: int
    lengths: tuple[int, ...]
    """of each row that was counted: a prompt and all its answers, or a prompt alone"""
    answered: float
    """share of the tokens that are answers'"""
    conversations: tuple[int, ...]
    """of the prompt with its longest answer, of each row that was counted"""

    @property
    def mean(self) -> float:
        return sum(self.lengths) / len(self.lengths)

    def fitting(self, max_length: int) -> tuple[int, ...]:
        """`lengths` of the rows without a longer conversation; of all, if that leaves none."""
        both = zip(self.lengths, self.conversations, strict=True)
        return tuple(whole for whole, longest in both if longest <= max_length) or self.lengths

    def over(self, max_length: int) -> float:
        """Share of rows with a conversation longer than that."""
        return sum(length > max_length for length in self.conversations) / len(self.conversations)


class _Tokenizer:
    """As much of transformers' tokenizer as a Renderer asks for."""

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{folder} holds no tokenizer that can be read") from error
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        own = folder / "chat_template.jinja"
        self.chat_template = own.read_text("utf-8") if own.is_file() else _template(settings)
        named = {key: _text(value) for key, value in settings.items() if key.endswith("_token")}
        self._names: dict[str, str] = {key: text for key, text in named.items() if text}
        self.eos_token = self._names.get("eos_token")
        self.eos_token_id = self.eos_token and self._tokenizer.token_to_id(self.eos_token)
        self.added_tokens_decoder = self._tokenizer.get_added_tokens_decoder()
        self.all_special_tokens = list(self._names.values())

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {
            "input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        }

    def apply_chat_template(
        self, turns: Sequence[Mapping[str, str]], tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Text, as transformers renders it: `tokenize` is False."""
        del tokenize
        from jinja2 import TemplateError
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(Extension):
            """`{% generation %}` marks what an assistant said, and changes no text."""

            tags = {"generation"}  # noqa: RUF012 - jinja2's own way to say it

            def parse(self, parser: Any) -> Any:
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            template = environment.from_string(str(self.chat_template))
            return template.render(
                messages=turns, add_generation_prompt=add_generation_prompt, **self._names
            )
        except TemplateError as error:
            raise RenderingError(f"the chat template cannot be used: {error}") from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own writes < and > as a page needs them."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _template(settings: Mapping[str, Any]) -> str | None:
    """The chat template; of several, the one for want of another."""
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}.get("default")
    return found


def _text(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _refuse(message: str) -> None:
    raise RenderingError(message)


def load_renderer(folder: Path) -> Renderer | None:
    """Of the tokenizer in a model's folder; None if it holds none that can be read here."""
    try:
        return Renderer(_Tokenizer(folder))
    except (OSError, ValueError):
        return None


def count_rows(folder: Path, kind: DataKind, renderer: Renderer) -> Rows | None:
    """What the imported data in `folder` takes where it is used as `kind`; None if nothing of it
    can be rendered, or it is text."""
    read: Mapping[str, Callable[[Path], list[Any]]] = {
        "preferences": views.judgements,
        "demonstrations": views.demonstrations,
        "prompts": views.prompts,
    }
    if kind not in read:
        return None
    records = read[kind](folder)
    found: list[tuple[int, int, int]] = []
    for record in records[:: max(1, len(records) // SAMPLE)]:
        try:
            found.append(_lengths(record, kind, renderer))
        except RenderingError:
            continue
    if not found:
        return None
    whole = [prompt + answers for prompt, answers, _ in found]
    return Rows(
        count=len(records),
        lengths=tuple(whole),
        answered=sum(answers for _, answers, _ in found) / sum(whole),
        conversations=tuple(prompt + longest for prompt, _, longest in found),
    )


def _lengths(record: Any, kind: DataKind, renderer: Renderer) -> tuple[int, int, int]:
    """Tokens of the prompt, of all answers, and of the longest."""
    if kind == "prompts":
        return len(renderer.prompt(record)), 0, 0
    responses = record.responses if kind == "preferences" else (record.response,)
    rendered = [renderer.render(record.prompt, response) for response in responses]
    lengths = [len(row.completion) for row in rendered]
    return len(rendered[0].prompt), sum(lengths), max(lengths)
