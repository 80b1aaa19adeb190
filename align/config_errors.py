"""Mistakes in a configuration as sentences: where (dotted path), what is wrong, what is allowed.

pydantic finds most of them; `sentence` says the one that matters in the file's own words.
"""
# pyright: strict

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeAlias,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel, ValidationError

Path: TypeAlias = tuple[int | str, ...]
"""Keys and list positions from the top of the file down to a value."""


NEAR = 0.65
"""Likeness (difflib's) from which a name may be meant. Of all keys with one letter lost, added,
changed or swapped 99.9 % find their own from 0.5 and 99.85 % from 0.65; of keys in a section where
they do not belong 460 find another from 0.5, and 54 from 0.65."""

ELSEWHERE: dict[str, tuple[str, ...]] = {
    "rank": ("r",),
    "lora_r": ("r",),
    "lora_rank": ("r",),
    "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",),
    "model_name": ("model",),
    "model_name_or_path": ("model",),
    "torch_dtype": ("dtype",),
    "attn_implementation": ("attention",),
    "lr": ("learning_rate",),
    "epochs": ("num_train_epochs",),
    "num_epochs": ("num_train_epochs", "epochs"),
    "num_ppo_epochs": ("epochs",),
    "num_mini_batches": ("minibatches",),
    "batch_size": ("train_batch_size", "prompts_per_iteration"),
    "warmup_ratio": ("warmup_steps",),
    "max_seq_length": ("max_length",),
    "max_completion_length": ("max_new_tokens",),
    "response_length": ("max_new_tokens",),
    "num_generations": ("samples_per_prompt",),
    "cliprange": ("clip", "policy"),
    "cliprange_value": ("value",),
    "lam": ("lambda",),
    "kl_coef": ("kl", "coefficient"),
    "init_kl_coef": ("kl", "coefficient"),
}
"""Keys as peft, transformers and trl call them, and ours; the first that is allowed is meant."""


class ConfigError(ValueError):
    """A mistake of the user's in the configuration: where (dotted path), what, and what to do."""


def hint(name: str, allowed: Iterable[str]) -> str:
    """The end of a sentence: `; did you mean 'x'?` when an allowed name is near, else `.`"""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=NEAR)
    return f"; did you mean {near[0]!r}?" if near else "."


def dotted(path: Iterable[int | str]) -> str:
    """`steps.evaluate.policies[1]`, as the override on the command line is written."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "The configuration"


def shown(value: Any) -> str:
    """A value as the YAML file would show it, short enough for a sentence."""
    if value is None:
        return "empty"
    if isinstance(value, Mapping):
        return "a section of keys"
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


@dataclass(frozen=True)
class _Finding:
    """One of pydantic's errors, at its place in the file."""

    path: Path
    kind: str
    value: Any
    message: str
    context: Mapping[str, Any]


def sentence(error: ValidationError, root: Any, tree: Any) -> str:
    """The first mistake in `tree`, which was meant as a `root`, in one or two sentences.

    An unknown key comes before everything else, because the missing key that pydantic finds as
    well is usually the same slip.
    """
    findings = [
        _Finding(
            path=_path_in_file(problem["loc"], problem["type"], tree),
            kind=problem["type"],
            value=problem["input"],
            message=problem["msg"],
            context=problem.get("ctx", {}),
        )
        for problem in error.errors(include_url=False)
    ]
    for finding in findings:
        if finding.kind in {"extra_forbidden", "unexpected_keyword_argument"}:
            return _unknown_key(finding.path, root, tree)
    first = findings[0].path
    # A union (`reward: STEP | {function: …}`) reports each of its branches: the branch that the
    # file got furthest into is the one that was meant.
    deepest = max(
        (finding.path for finding in findings if finding.path[: len(first)] == first), key=len
    )
    return _wrong_value([finding for finding in findings if finding.path == deepest], root, tree)


def _unknown_key(path: Path, root: Any, tree: Any) -> str:
    allowed = sorted(_keys_at(path[:-1], root, tree))
    if path[-1] in allowed:  # in another kind of section than the one that was meant
        return f"{dotted(path)} cannot stand beside the other keys here; remove it or them."
    return (
        f"{dotted(path)} is not a known key{_meant(path, allowed, root, tree)} "
        f"Allowed here: {', '.join(allowed)}."
    )


def _meant(path: Path, allowed: Sequence[str], root: Any, tree: Any) -> str:
    """The end of a sentence: what the key was meant as, or which kinds of step have such a key."""
    key = str(path[-1])
    for ours in ELSEWHERE.get(key, ()):
        if ours in allowed:
            return f"; did you mean {ours!r}?"
    end = hint(key, allowed)
    if end == "." and (kinds := _kinds_with(path, root, tree)):
        return f"; {key} belongs to steps of kind {', '.join(kinds)}."
    return end


def _kinds_with(path: Path, root: Any, tree: Any) -> list[str]:
    """The kinds of step that would have this key in this place; none of what is no step's."""
    if len(path) < 3 or path[0] != "steps":
        return []
    found: list[str] = []
    for kind in sorted(_kinds(_annotation_at(path[:2], root, tree))):
        step = {**tree["steps"][path[1]], "kind": kind}
        other = {**tree, "steps": {**tree["steps"], path[1]: step}}
        if path[-1] in _keys_at(path[:-1], root, other):
            found.append(kind)
    return found


def _wrong_value(findings: Sequence[_Finding], root: Any, tree: Any) -> str:
    """What is wrong with one value; several findings are the branches of a union."""
    first = next((found for found in findings if found.kind == "value_error"), findings[0])
    where = dotted(first.path)
    if first.kind == "missing":
        return f"{where} is required and missing."
    if first.kind in {"union_tag_invalid", "union_tag_not_found"}:
        return _wrong_kind(first, root, tree)
    if first.kind == "value_error":
        reason = str(first.context["error"]).rstrip(".")
        value = "" if isinstance(first.value, Mapping) else f" is {shown(first.value)}"
        return f"{where}{value}: {reason}."
    expected = list(dict.fromkeys(_expected(finding) for finding in findings))
    end = "."
    literals = [word for finding in findings for word in _literals(finding)]
    if isinstance(first.value, str):
        end = hint(first.value, literals)
    elif "text" in expected and isinstance(first.value, bool | int | float):
        end = "; put it in quotes if it is meant as text."
    return f"{where} is {shown(first.value)}: it must be {' or '.join(expected)}{end}"


def _wrong_kind(finding: _Finding, root: Any, tree: Any) -> str:
    where = dotted((*finding.path, "kind"))
    kinds = sorted(_kinds(_annotation_at(finding.path, root, tree)))
    if finding.kind == "union_tag_not_found":
        return f"{where} is required and missing. Allowed: {', '.join(kinds)}."
    found = finding.value["kind"]
    return f"{where} is {shown(found)}{hint(str(found), kinds)} Allowed: {', '.join(kinds)}."


_EXPECTED = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
    "dataclass_type": "a section of keys",
}
_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def _expected(finding: _Finding) -> str:
    """What the value should have been, after `it must be`."""
    if finding.kind in _EXPECTED:
        return _EXPECTED[finding.kind]
    if words := _literals(finding):
        return words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    for bound, words in _BOUNDS.items():
        if bound in finding.context:
            return f"{words} {finding.context[bound]:g}"
    return f"different ({finding.message[0].lower()}{finding.message[1:]})"


def _literals(finding: _Finding) -> list[str]:
    if finding.kind != "literal_error":
        return []
    return re.findall(r"'([^']*)'", str(finding.context["expected"]))


def _path_in_file(location: tuple[int | str, ...], kind: str, tree: Any) -> Path:
    """pydantic's location without the names of union branches, which are not in the file."""
    if location[:1] == ("steps",):
        location = location[:2] + location[3:]  # the third part repeats the step's kind
    path: list[int | str] = []
    node = tree
    for index, part in enumerate(location):
        inside = (
            part in cast(Any, node)
            if isinstance(node, Mapping)
            else isinstance(node, list) and isinstance(part, int)
        )
        if inside:
            node = cast(Any, node)[part]
        elif kind != "missing" or index + 1 < len(location):
            continue
        path.append(part)
    return tuple(path)


# --- the models beside the file -----------------------------------------------------------------


def _keys_at(path: Path, root: Any, tree: Any) -> set[str]:
    """The keys that the section at `path` may have."""
    node = tree
    for part in path:
        node = node[part]
    branches = _branches(_annotation_at(path, root, tree))
    return {key for branch in branches if _fits(branch, node) for key in _fields(branch)}


def _kinds(annotation: Any) -> set[str]:
    """The step kinds among the branches of a union."""
    return {kind for branch in _branches(annotation) for kind in _kind_of(branch)}


def _annotation_at(path: Path, root: Any, tree: Any) -> Any:
    """The type that the value at `path` was read as; None where there can be none."""
    annotation, node = root, tree
    for part in path:
        inner = tuple(
            entered
            for branch in _branches(annotation)
            if _fits(branch, node)
            for entered in _entered(branch, part)
        )
        if not inner:
            return None
        annotation, node = Union[inner], node[part]  # noqa: UP007 - built at run time
    return annotation


def _branches(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, without the Annotated around them."""
    if get_origin(annotation) is Annotated:
        yield from _branches(get_args(annotation)[0])
    elif get_origin(annotation) in {Union, UnionType}:
        for branch in get_args(annotation):
            yield from _branches(branch)
    else:
        yield annotation


def _entered(branch: Any, part: int | str) -> Iterator[Any]:
    """The type of what `part` leads to inside one type."""
    if get_origin(branch) is dict:
        yield get_args(branch)[1]
    elif get_origin(branch) is tuple:
        yield get_args(branch)[0]
    elif part in (fields := _fields(branch)):
        yield fields[str(part)]


def _fields(branch: Any) -> dict[str, Any]:
    """The keys of a section, as the file writes them, and their types."""
    if isinstance(branch, type) and issubclass(branch, BaseModel):
        return {
            str(info.validation_alias or name): info.annotation
            for name, info in branch.model_fields.items()
        }
    if isinstance(branch, type) and dataclasses.is_dataclass(branch):
        return get_type_hints(branch)
    return {}


def _kind_of(branch: Any) -> tuple[str, ...]:
    kind = _fields(branch).get("kind")
    return get_args(kind) if get_origin(kind) is Literal else ()


def _fits(branch: Any, node: Any) -> bool:
    """Whether the value can be this branch: of several steps, only the one of its kind."""
    kind = _kind_of(branch)
    return not kind or (isinstance(node, Mapping) and cast(Any, node).get("kind") in kind)
