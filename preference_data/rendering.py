"""Conversation to token ids, in two parts: a prompt and a completion that begins where it ends.

The same prompt ids are used in training and at inference. What follows them when the whole
conversation is tokenised is the completion; where a token would straddle the boundary
(tokenise(prompt) + tokenise(completion) != tokenise(prompt + completion) for most tokenizers), the
completion is tokenised apart. It ends with the end-of-sequence token exactly once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from preference_data.records import Message, Prompt, Response

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""For tokenizers that bring no chat template of their own."""


class RenderingError(ValueError):
    """A conversation that cannot be turned into ids; the message says why."""


@dataclass(frozen=True)
class Rendered:
    """Ids of a prompt and of one completion of it, which ends with EOS."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.completion]

    @property
    def completion_mask(self) -> list[int]:
        """1 where the token belongs to the completion."""
        return [0] * len(self.prompt) + [1] * len(self.completion)


class Renderer:
    """Renders with one tokenizer. Raises ValueError for a tokenizer that cannot mark an end."""

    def __init__(self, tokenizer: Any):
        if tokenizer.eos_token_id is None:
            raise ValueError("The tokenizer has no end-of-sequence token; a reply could not end.")
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_TEMPLATE
        self.tokenizer = tokenizer
        # Llama 3 marks most of its control tokens as special without listing them by name.
        added = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        special = dict.fromkeys((*tokenizer.all_special_tokens, *added))
        self._special = [token for token in special if token.strip()]

    def prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Ids up to the place where the assistant's reply begins."""
        return tuple(self._ids(self._prompt_text(prompt)))

    def render(self, prompt: Prompt, response: Response) -> Rendered:
        """Ids of the prompt and of the response with its end. Raises RenderingError."""
        start = self._prompt_text(prompt)
        self._refuse_special(response.messages)
        whole = self._template((*prompt.messages, *response.messages), generate=False)
        if not whole.startswith(start):
            raise RenderingError("the chat template changes the prompt once a reply follows")
        end = self.tokenizer.eos_token
        text = whole[len(start) :].rstrip()
        text = text if text.endswith(end) else text + end
        return self._cut(start, text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of completion ids, without its end marker."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def without_control(self, text: str) -> str:
        """The text less the control tokens that it spells out, which `render` would refuse."""
        before = None
        while text != before:  # what is left may close up to another
            before = text
            for token in self._special:
                text = text.replace(token, "")
        return text

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text (for pretraining), closed by EOS."""
        self._refuse_special((Message("user", text),))
        return [*self._ids(text), self.tokenizer.eos_token_id]

    def fingerprint(self) -> str:
        """Changes with the template, the vocabulary or the end token."""
        digest = hashlib.sha256()
        for part in (
            self.tokenizer.chat_template,
            self.tokenizer.eos_token,
            sorted(self.tokenizer.get_vocab().items()),
        ):
            digest.update(repr(part).encode())
        return digest.hexdigest()[:16]

    def _prompt_text(self, prompt: Prompt) -> str:
        self._refuse_special(prompt.messages)
        return self._template(prompt.messages, generate=True)

    def _template(self, messages: Sequence[Message], generate: bool) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generate
        )

    def _cut(self, start: str, text: str) -> Rendered:
        """Alone, a completion may get a space that it does not have after the prompt: tokenizers
        of the SentencePiece kind begin every text with one."""
        prompt, whole = self._ids(start), self._ids(start + text)
        follows = whole[: len(prompt)] == prompt
        completion = whole[len(prompt) :] if follows else self._ids(text)
        return Rendered(tuple(prompt), tuple(completion))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _refuse_special(self, messages: Sequence[Message]) -> None:
        """A label file must not be able to write control tokens into a conversation."""
        for message in messages:
            for token in self._special:
                if token in message.content:
                    raise RenderingError(f"the text holds the control token {token!r}")
