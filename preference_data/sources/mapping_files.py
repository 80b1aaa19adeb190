"""A mapping of columns in a YAML file of its own, every mistake named by its file and key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from preference_data.quarantine import DataError
from preference_data.sources.cells import shown
from preference_data.sources.mapping import (
    Columns,
    Constant,
    Dated,
    Ends,
    Graded,
    Matching,
    Shown,
    Wide,
)

_SECTIONS = {
    section.__name__: section
    for section in (Columns, Constant, Dated, Ends, Graded, Matching, Shown, Wide)
}


def read_columns(path: Path) -> Columns:
    """Raises DataError for a file that is missing, no YAML, or no mapping of columns."""
    tree = _read_yaml(path)
    # Not on top: only this function needs them, and both take their time.
    from pydantic import TypeAdapter, ValidationError

    try:
        # Through JSON, so that strict mode still takes a list for a tuple.
        columns = TypeAdapter(Columns).validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        findings = cast("list[dict[str, Any]]", error.errors(include_url=False))
        raise DataError(f"{path}: {_sentence(findings, tree)}") from None
    return _with_items_beside(columns, path)


def _with_items_beside(columns: Columns, path: Path) -> Columns:
    wide = columns.wide
    if wide is None or not isinstance(wide.items, str):
        return columns
    beside = path.parent / wide.items
    if not beside.exists() or Path(wide.items).exists():
        return columns
    return replace(columns, wide=replace(wide, items=str(beside)))


def _read_yaml(path: Path) -> Mapping[str, object]:
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        tree = _value(loader.get_single_node())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise DataError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    except _KeyFault as error:
        raise DataError(f"{path}, {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path} holds no mapping; it starts with `prompt: …`.")
    return cast("dict[str, object]", tree)


class _KeyFault(Exception):
    """A key that stands twice in one section, or is none."""


def _value(node: Any) -> object:
    """A node as plain data, its keys as they are written: `1: first` maps the text 1.

    Plain numbers stay numbers, and everything else is text: `no` and `2026-01-01` are no values
    of another kind here.
    """
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    section: dict[str, object] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _KeyFault(f"line {line}: a list or a section cannot be a key.")
        if key.value in section:
            raise _KeyFault(f"line {line}: the key {key.value!r} stands twice in one section.")
        section[key.value] = _value(value)
    return section


def _scalar(node: Any) -> object:
    if node is None or str(node.tag).endswith(":null"):
        return None
    text, kind = str(node.value), str(node.tag).rpartition(":")[2]
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            return text
    return text


_EXPECTED = {
    "string_type": "text (in quotes, if it looks like something else)",
    "float_type": "a number",
    "tuple_type": "a list",
    "dict_type": "a section of keys",
    "dataclass_type": "a section of keys",
}


def _sentence(findings: Sequence[Mapping[str, Any]], tree: object) -> str:
    """The first mistake; an unknown key comes first, since what is missing is the same slip."""
    for finding in findings:
        if finding["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            return f"{_dotted(finding, tree)} is not a known key{_allowed(finding['loc'])}"
    # Each alternative of a value complains: the one that the file got furthest into was meant.
    first = _dotted(findings[0], tree)
    near = [finding for finding in findings if _dotted(finding, tree).startswith(first)]
    finding = max(near, key=lambda f: (len(_dotted(f, tree)), "error" in f.get("ctx", {})))
    where = _dotted(finding, tree)
    if finding["type"] == "missing":
        return f"{where} is required and missing."
    if "error" in (context := finding.get("ctx", {})):
        return f"{where}: {context['error']}" if where else str(context["error"])
    same = [other for other in near if _dotted(other, tree) == where]
    reasons = dict.fromkeys(
        _EXPECTED.get(other["type"]) or other["msg"].removeprefix("Input should be ")
        for other in same
    )
    return f"{where} is {shown(finding['input'])}: it must be {' or '.join(reasons)}."


def _allowed(location: Sequence[int | str]) -> str:
    section = next((_SECTIONS[str(p)] for p in location[-2::-1] if str(p) in _SECTIONS), None)
    if section is None:
        section = Wide if location[0] == "wide" else Columns
    names = sorted(field.name for field in fields(section))
    near = get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Allowed here: {', '.join(names)}."


def _dotted(finding: Mapping[str, Any], tree: object) -> str:
    """The path in the file: pydantic's, without the names of alternatives, which are not there."""
    text, node = "", tree
    for part in finding["loc"]:
        if isinstance(node, dict) and part in node:
            node = cast("dict[str, object]", node)[str(part)]
        elif isinstance(node, list) and isinstance(part, int):
            node = cast("list[object]", node)[part]
            text += f"[{part}]"
            continue
        elif finding["type"] != "missing" or part != finding["loc"][-1]:
            continue
        text += f".{part}" if text else str(part)
    return text
