"""The documentation says what is there: keys, commands, messages, metrics, files."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import docs_pages as docs
import pytest

from align.cli import COMMANDS
from align.config import json_schema
from align.doctor import RULES
from preference_data.sources import FORMATS

PACKAGES = ("preference_data", "reward_models", "align", "launch")

# --- the generated pages --------------------------------------------------------------------------


def keys_of(model: Mapping[str, Any]) -> set[str]:
    return set(model.get("properties", {}))


def test_every_key_of_the_configuration_is_in_the_reference():
    pages = docs.load("reference_pages")
    schema = json_schema()
    definitions = {"Config": schema, **schema["$defs"]}
    parts = re.split(r"^\(config-(.*)\)=$", pages.configuration(), flags=re.MULTILINE)[1:]
    shown = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(shown) == {pages.anchor_of(name).removeprefix("config-") for name in definitions}
    for name, definition in definitions.items():
        text = shown[pages.anchor_of(name).removeprefix("config-")]
        found = re.findall(r"^`(?:[\w.\[\]]*\.)?(\w+)`\{#", text, re.MULTILINE)
        assert set(found) == keys_of(definition)
        assert len(found) == len(set(found))


def test_the_reference_says_types_ranges_and_defaults():
    text = docs.load("reference_pages").configuration()
    entry = text.split("`steps.NAME.train.gae.lambda`")[1].split("\n\n")[0]
    assert "number at least 0, at most 1; default `0.95`" in entry
    assert "trusts the value function alone" in entry
    kind = text.split("`steps.NAME.train.advantage`")[1].split("\n\n")[0]
    assert 'one of `gae`, `rloo`, `grpo`, `reinforce`; default `"gae"`' in kind
    assert "`name`{#config-config-name}\n: text; required." in text
    assert "## `steps.NAME.train` of pretrain and sft\n" in text


def test_every_command_and_option_is_in_the_reference():
    pages = docs.load("reference_pages")
    text = pages.command_line()
    assert re.findall(r"^## align (.*)$", text, re.MULTILINE) == list(COMMANDS)
    for name, command in pages.commands().items():
        part = text.split(f"## align {name}\n")[1].split("\n## align ")[0]
        for option in (one for one in command.params if one.param_type_name == "option"):
            assert f"`{option.opts[0]}" in part


def test_every_format_is_explained():
    rows = docs.load("reference_pages").formats().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(FORMATS)
    assert all(len(row.split(" | ")[1]) > 5 for row in rows)
    text = docs.text_of("data.md")
    assert "\n% generated: formats\n" in text
    assert all(f"`{name}`" in text for name in FORMATS)


# --- words ----------------------------------------------------------------------------------------


@cache
def said_in_code() -> str:
    """Every text of the packages, what is filled in as `…`, one a line."""
    found: list[str] = []
    for path in (one for package in PACKAGES for one in (docs.ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (
                    str(part.value) if isinstance(part, ast.Constant) else "…"
                    for part in node.values
                )
                found.append("".join(parts))
    filled = (re.sub(r"%[\d.]*[a-z]\b", "…", text) for text in found)
    return "\n".join(" ".join(text.split()) for text in filled)


MESSAGES = [one for one in docs.blocks("troubleshooting.md") if one.language == "text"]


@pytest.mark.parametrize("block", MESSAGES, ids=lambda block: block.place)
def test_a_message_is_one_that_is_said(block: Any):
    if block.remark.startswith("said by "):
        return
    pieces = [" ".join(piece.split()) for piece in block.text.split("…")]
    unsaid = [piece for piece in pieces if piece not in said_in_code()]
    assert not unsaid, f"{block.place}: nothing says {unsaid}"


def test_troubleshooting_knows_twenty_symptoms():
    assert len(re.findall(r"^### ", docs.text_of("troubleshooting.md"), re.MULTILINE)) >= 20


METRIC = re.compile(
    r"^(?:objective|policy|value|response|reward|dpo|train|ppo|ptx|judge|time|memory)/\w*[a-z0-9]$"
)


def test_every_metric_is_explained():
    """Each name of a metric that the code holds stands in a page, in code."""
    held = {line for line in said_in_code().splitlines() if METRIC.match(line)}
    shown = {name for page in docs.PAGES for name in re.findall(r"`([\w/]+)`", docs.text_of(page))}
    assert not held - shown


def test_metrics_that_are_explained_exist():
    held = said_in_code()
    for page in docs.PAGES:
        for name in re.findall(r"^\| `([a-z]+/\w+)` \|", docs.text_of(page), re.MULTILINE):
            assert name in held or f"{name.partition('/')[0]}/…" in held, f"{page}: {name}"


def test_files_that_are_named_exist():
    for page in docs.PAGES:
        for name in re.findall(
            r"`((?:configs|launch|tests|align)/[\w/]+\.\w+)", docs.text_of(page)
        ):
            assert (docs.ROOT / name).is_file(), f"docs/{page}: {name}"


def test_options_that_are_named_exist():
    """`steps.….train.x` and `train.x` in the running text."""
    keys = {
        key
        for definition in (json_schema(), *json_schema()["$defs"].values())
        for key in keys_of(definition)
    }
    for page in docs.PAGES:
        for path in re.findall(r"`(?:steps\.\w+\.)?train\.([a-z_.]+)`", docs.text_of(page)):
            assert set(path.split(".")) <= keys, f"docs/{page}: train.{path}"


def test_every_finding_of_the_doctor_is_explained():
    """The end of what each rule says stands among the messages."""
    tree = ast.parse((docs.ROOT / "align/doctor.py").read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    shown = " ".join(" ".join(block.text.split()) for block in MESSAGES)
    for rule, _ in RULES:
        texts = [
            node.value
            for node in ast.walk(functions[rule.__name__].body[-1])
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        said = [text.strip() for text in texts if len(text) > 12]
        assert said and said[-1] in shown, rule.__name__
