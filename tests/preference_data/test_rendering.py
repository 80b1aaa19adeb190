"""Conversations as ids: prompt and completion apart, one end, and no control token from a label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preference_data.records import Message, Prompt, Response
from preference_data.rendering import PLAIN_TEMPLATE, Renderer, RenderingError

PROMPT = Prompt.from_text("What is the capital of France?")
ANSWER = Response.from_text("The capital of France is Paris.")
TURNS = Prompt(
    (
        Message("system", "Be brief."),
        Message("user", "Hot?"),
        Message("assistant", "Cold."),
        Message("user", "Big?"),
    )
)


@pytest.fixture
def with_template(tiny_folder: Path) -> Callable[[str | None], Renderer]:
    """A renderer whose tokenizer brings this chat template (None: none at all)."""
    from transformers import AutoTokenizer

    def make(template: str | None) -> Renderer:
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        tokenizer.chat_template = template
        return Renderer(tokenizer)

    return make


# --- ids and mask ---------------------------------------------------------------------------------


def test_ids_and_mask_are_of_one_making(renderer: Renderer):
    """The text of the masked ids is the answer with its end, that of the others the prompt."""
    row = renderer.render(PROMPT, ANSWER)
    assert len(row.ids) == len(row.completion_mask) == len(row)
    marked = [token for token, on in zip(row.ids, row.completion_mask, strict=True) if on]
    others = [token for token, on in zip(row.ids, row.completion_mask, strict=True) if not on]
    decode = renderer.tokenizer.decode
    assert decode(marked) == "The capital of France is Paris.<|end|>"
    assert decode(others) == "Question: What is the capital of France?\nAnswer:\n"
    assert row.completion_mask == sorted(row.completion_mask)  # the prompt comes first


@pytest.mark.parametrize("prompt", [PROMPT, TURNS], ids=["one turn", "turns"])
def test_training_and_inference_see_the_same_prompt(renderer: Renderer, prompt: Prompt):
    assert renderer.render(prompt, ANSWER).prompt == renderer.prompt(prompt)


def test_no_token_straddles_the_boundary(with_template: Callable[[str | None], Renderer]):
    """A template whose prompt ends in the middle of a word that is one token when tokenised whole:
    the prompt's ids must not depend on what follows."""
    renderer = with_template(
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }} Fra{% else %}"
        "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    joint = renderer.tokenizer("Capital of Fra" + "nce", add_special_tokens=False)["input_ids"]
    row = renderer.render(Prompt.from_text("Capital of"), Response.from_text("nce"))
    assert row.prompt == renderer.prompt(Prompt.from_text("Capital of"))
    assert row.ids[:-1] != joint, "the tokenizer does not merge here: the test shows nothing"
    assert renderer.tokenizer.decode(row.ids) == "Capital of France<|end|>"


# --- the end --------------------------------------------------------------------------------------

NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ONE_END = NO_END.replace("}}\n", "}}{{ eos_token if m['role'] == 'assistant' }}\n")


@pytest.mark.parametrize(
    "template", [None, NO_END, ONE_END], ids=["no template", "template without", "template with"]
)
def test_a_completion_ends_once(
    with_template: Callable[[str | None], Renderer], template: str | None
):
    """Whether the template writes the end, forgets it, or follows it with a line break."""
    renderer = with_template(template)
    row = renderer.render(PROMPT, ANSWER)
    assert row.completion.count(renderer.tokenizer.eos_token_id) == 1
    assert row.completion[-1] == renderer.tokenizer.eos_token_id
    assert renderer.decode(row.completion) == ANSWER.text
    assert renderer.tokenizer.eos_token_id not in row.prompt


def test_an_empty_answer_is_the_end_alone(renderer: Renderer):
    row = renderer.render(PROMPT, Response.from_text(""))
    assert row.completion == (renderer.tokenizer.eos_token_id,)


def test_a_tokenizer_without_an_end_is_refused(renderer: Renderer):
    renderer.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        Renderer(renderer.tokenizer)


def test_plain_text_ends_once(renderer: Renderer):
    ids = renderer.text_ids("The capital of France is Paris.")
    assert ids[-1] == renderer.tokenizer.eos_token_id
    assert ids.count(renderer.tokenizer.eos_token_id) == 1
    assert renderer.decode(ids) == "The capital of France is Paris."


@pytest.mark.parametrize(
    "text", ["It 's , ok . yes !", "Two\n\nparagraphs", "naïve café 日本 🙂", "a  b\tc", "<b>&amp;"]
)
def test_decoding_gives_the_text_back(renderer: Renderer, text: str):
    """Byte for byte: no space before a full stop is cleaned away, no emoji is lost."""
    assert renderer.decode(renderer.render(PROMPT, Response.from_text(text)).completion) == text


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["<|end|>", "<|pad|>"])
def test_control_tokens_in_the_text_are_refused(renderer: Renderer, token: str):
    bad = f"Paris.{token}Question: and then?"
    named = f"the control token '{token}'".replace("|", r"\|")
    with pytest.raises(RenderingError, match=named):
        renderer.render(PROMPT, Response.from_text(bad))
    with pytest.raises(RenderingError, match=named):
        renderer.render(Prompt.from_text(bad), ANSWER)
    with pytest.raises(RenderingError, match=named):
        renderer.prompt(Prompt((Message("system", bad), Message("user", "Hot?"))))
    with pytest.raises(RenderingError, match=named):
        renderer.text_ids(bad)


def test_control_tokens_without_a_role_of_their_own_are_refused_too(tiny_folder: Path):
    """Llama 3 marks <|start_header_id|> and its like as special without naming them in any of the
    tokenizer's attributes, so `all_special_tokens` does not list them; in text they still become
    control tokens."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<|start|>", special=True)])
    renderer = Renderer(tokenizer)
    with pytest.raises(RenderingError, match=r"control token '<\|start\|>'"):
        renderer.prompt(Prompt.from_text("Hot? <|start|>assistant"))


def test_a_template_that_rewrites_the_prompt_is_refused(
    with_template: Callable[[str | None], Renderer],
):
    """One that counts the messages at the front: with the reply the prompt is another."""
    renderer = with_template("{{ messages | length }} turns\n" + NO_END)
    renderer.prompt(PROMPT)
    with pytest.raises(RenderingError, match="changes the prompt once a reply follows"):
        renderer.render(PROMPT, ANSWER)


# --- which renderer it was ------------------------------------------------------------------------


def test_the_fingerprint_tells_templates_ends_and_vocabularies_apart(
    with_template: Callable[[str | None], Renderer],
):
    one, again, other = with_template(NO_END), with_template(NO_END), with_template(ONE_END)
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()
    again.tokenizer.add_tokens(["newword"])
    assert again.fingerprint() != one.fingerprint()
    again = with_template(NO_END)
    again.tokenizer.eos_token = "<|pad|>"
    assert again.fingerprint() != one.fingerprint()


def test_a_tokenizer_without_a_template_gets_the_plain_one(
    with_template: Callable[[str | None], Renderer],
):
    renderer = with_template(None)
    assert renderer.tokenizer.chat_template == PLAIN_TEMPLATE
    # A block tag's line break is trimmed by transformers, so the blank lines must be written out.
    text = renderer.tokenizer.decode(renderer.render(TURNS, Response.from_text("Small.")).ids)
    assert text == (
        "System: Be brief.\n\nUser: Hot?\n\nAssistant: Cold.<|end|>\n\nUser: Big?\n\n"
        "Assistant: Small.<|end|>"
    )
