"""YAML as a configuration needs it: 1.2 scalars, no key twice, every mistake with its line."""

from __future__ import annotations

import re
from typing import Any, cast

import yaml

from align.config_errors import ConfigError, hint


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2.

    PyYAML follows 1.1, which reads 1e-4 as text, `no` and `off` as false, 1:30 as 90, 010 as 8
    and 2026-01-01 as a date.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}
for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first
    )


def _section(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    """A mapping whose keys are what is written, so `1: first` maps the text 1.

    Raises ConfigError for two equal keys, of which PyYAML would keep the last in silence.
    """
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"line {line}: a list or a section cannot be a key.")
        if key.value in lines and key.tag != "tag:yaml.org,2002:merge":
            raise ConfigError(
                f"line {line}: the key {key.value!r} stands twice in one section, "
                f"first in line {lines[key.value]}."
            )
        lines[key.value] = line
    loader.flatten_mapping(node)
    return {key.value: loader.construct_object(value, deep=True) for key, value in node.value}


_Loader.add_constructor("tag:yaml.org,2002:map", _section)


def parse_yaml(text: str, where: str) -> Any:
    """The YAML value in `text`. Raises ConfigError naming `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{where}, {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: {error.problem or 'this is no YAML'}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "reason", "it is nested too deeply")
        raise ConfigError(f"{where} is no YAML: {reason}.") from None


def override(tree: dict[str, Any], text: str) -> None:
    """Sets one `key.path=value` in the nested mapping, the value read as YAML.

    Raises ConfigError if it is not of that form, or leads through a value or an unknown step.
    """
    path, separator, value = text.partition("=")
    parts = path.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"{text!r} is no override; write key.path=value.")
    steps = tree.get("steps")
    if parts[0] == "steps" and len(parts) > 2 and isinstance(steps, dict) and parts[1] not in steps:
        names = [str(name) for name in cast(dict[Any, Any], steps)]
        raise ConfigError(
            f"{path} sets an option of the step {parts[1]!r}, which does not exist"
            f"{hint(parts[1], names)} The steps: {', '.join(names)}."
        )
    section = tree
    for index, key in enumerate(parts[:-1]):
        inner: Any = section.get(key)
        if inner is None:
            inner = section[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{path} leads through {'.'.join(parts[: index + 1])}, which is a value and not "
                "a section of keys."
            )
        section = cast(dict[str, Any], inner)
    section[parts[-1]] = parse_yaml(value, path)
