"""Which prompts of ppo and evaluate steps fit, and why none does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from align.config import ConfigError, Evaluate
from align.prompts import fitting
from preference_data.records import Prompt
from preference_data.rendering import Renderer

SHORT, LONG = "Hi.", "What is the capital of France? " * 20
CONTROL = "Say <|end|> please."


def fits(renderer: Renderer, *texts: str) -> list[str]:
    step = Evaluate(kind="evaluate", data="asked", policies=["ppo"], baseline="sft",
                    judges=["gold"], max_prompt_length=40)  # fmt: skip
    config: Any = SimpleNamespace(steps={"judged": step})
    found = fitting(config, "judged", [Prompt.from_text(text) for text in texts], renderer)
    assert all(ids == renderer.prompt(prompt) for prompt, ids in found)
    return [prompt.messages[0].content for prompt, _ in found]


def test_what_is_too_long_or_cannot_be_rendered_is_passed_over(renderer: Renderer):
    assert fits(renderer, LONG, SHORT, CONTROL) == [SHORT]


def test_where_none_fits_the_option_is_named(renderer: Renderer):
    with pytest.raises(ConfigError) as error:
        fits(renderer, LONG, CONTROL)
    assert str(error.value) == (
        "steps.judged.max_prompt_length is 40, and none of 2 prompts of data.asked fits into it; "
        "raise it."
    )


def test_where_none_can_be_rendered_no_option_is_blamed(renderer: Renderer):
    with pytest.raises(ConfigError) as error:
        fits(renderer, CONTROL, CONTROL)
    assert str(error.value) == (
        "steps.judged.data: none of 2 prompts of data.asked can be rendered; the first: the text "
        "holds the control token '<|end|>'."
    )
