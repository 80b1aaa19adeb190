"""What of the pages is made from the code when the documentation is built.

A page says where: a line `% generated: configuration` is replaced by every key of the configuration
(from its JSON schema), `% generated: command line` by every command of `align` (from Typer), and
`% generated: formats` by every format of labellers' files.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    get_args,
    get_origin,
    get_type_hints,
)

from align.config import json_schema

if TYPE_CHECKING:
    from sphinx.application import Sphinx

Schema = Mapping[str, Any]

# --- the configuration ----------------------------------------------------------------------------


class Section(NamedTuple):
    """A part of the configuration file: where it stands, and the definition of its keys."""

    path: str
    """`steps.NAME.train.kl`; empty for the top of the file."""
    kinds: tuple[str, ...]
    """The kinds of step that have it."""
    name: str
    """Of the definition, as in the schema."""

    @property
    def title(self) -> str:
        where = f"`{self.path}`" if self.path else "The top of the file"
        return f"{where} of {' and '.join(self.kinds)}" if self.kinds else where


def anchor_of(name: str) -> str:
    """Where the definition stands on the page."""
    return f"config-{name.lower().replace('_', '-')}"


ANYWHERE = {
    "FunctionReward": "A reward that is a function",
    "ModelReward": "A reward that is a model of another run",
    "ServiceReward": "A reward that is a service",
    "EnsembleReward": "A reward that is an ensemble",
    "WeightedReward": "A part of a weighted sum",
}
"""Definitions that may stand wherever a reward or a judge is named, and their headings."""


def configuration() -> str:
    """Every key of the configuration, as a page's Markdown."""
    schema = json_schema()
    definitions: Mapping[str, Schema] = {"Config": schema, **schema["$defs"]}
    return "\n".join(_section(section, definitions) for section in sections(definitions))


def sections(definitions: Mapping[str, Schema]) -> list[Section]:
    """Every definition once, in the order of the file; those of rewards at the end."""
    found: dict[str, Section] = {}
    for section in _walk(Section("", (), "Config"), definitions, frozenset(ANYWHERE)):
        known = found.setdefault(section.name, section)
        kinds = tuple(dict.fromkeys((*known.kinds, *section.kinds)))
        found[section.name] = known._replace(kinds=kinds)
    for name in ANYWHERE:
        for section in _walk(Section("", (), name), definitions, frozenset(found)):
            found.setdefault(section.name, section)
    return list(found.values())


def _walk(
    section: Section, definitions: Mapping[str, Schema], above: frozenset[str]
) -> Iterator[Section]:
    """The section and those below it, wherever they stand; none of those `above`."""
    yield section
    for key, prop in definitions[section.name].get("properties", {}).items():
        for name, more in _references(prop):
            if name in above or "properties" not in definitions[name]:
                continue
            path = ".".join(part for part in (section.path, key + more) if part)
            kind = _kind(definitions[name])
            below = Section(path, (kind,) if kind else section.kinds, name)
            yield from _walk(below, definitions, above | {section.name})


def _references(prop: Schema) -> Iterator[tuple[str, str]]:
    """(definition, what comes between the key and its keys) of all that a value may be."""
    if "$ref" in prop:
        yield prop["$ref"].rpartition("/")[2], ""
    for branch in (*prop.get("anyOf", ()), *prop.get("oneOf", ())):
        yield from _references(branch)
    if isinstance(prop.get("additionalProperties"), dict):
        for name, more in _references(prop["additionalProperties"]):
            yield name, f".NAME{more}"
    if isinstance(prop.get("items"), dict):
        for name, more in _references(prop["items"]):
            yield name, f"[]{more}"


def _kind(definition: Schema) -> str | None:
    return definition.get("properties", {}).get("kind", {}).get("const")


def _section(section: Section, definitions: Mapping[str, Schema]) -> str:
    definition = definitions[section.name]
    title = ANYWHERE.get(section.name, section.title)
    lines = [f"({anchor_of(section.name)})=", "", f"## {title}", ""]
    if section.name != "Config" and "description" in definition:
        lines += [_flowed(definition["description"]), ""]
    required = definition.get("required", ())
    for key, prop in definition["properties"].items():
        lines += _entry(section, key, prop, key in required, definitions)
    return "\n".join(lines)


def _entry(
    section: Section, key: str, prop: Schema, required: bool, definitions: Mapping[str, Schema]
) -> list[str]:
    path = f"{section.path}.{key}" if section.path else key
    anchor = f"{anchor_of(section.name)}-{key.replace('_', '-')}"
    facts = [_type(prop, definitions)]
    if required:
        facts.append("required")
    elif "default" in prop:
        default = json.dumps(prop["default"], ensure_ascii=False)
        if default != "{}" and not default.startswith('{"'):
            facts.append(f"default `{default}`")
    meaning = _flowed(prop.get("description") or _of_sections(prop, definitions))
    lines = [f"`{path}`{{#{anchor}}}", f": {'; '.join(facts)}."]
    return [*lines, *([f"  {meaning}"] if meaning else []), ""]


def _of_sections(prop: Schema, definitions: Mapping[str, Schema]) -> str:
    """What the section says of itself, for a key that says nothing."""
    found = (definitions[name].get("description", "") for name, _ in _references(prop))
    return next(found, "").partition("\n\n")[0]


def _flowed(text: str) -> str:
    """A docstring as one paragraph of Markdown, in which braces and stars mean themselves."""
    return re.sub(r"(?<=\w)\*(?=\w)", r"\\*", " ".join(text.split()))


TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}
BOUNDS = (("exclusiveMinimum", "above"), ("minimum", "at least"), ("exclusiveMaximum", "below"),
          ("maximum", "at most"), ("minItems", "items: at least"))  # fmt: skip


def _type(prop: Schema, definitions: Mapping[str, Schema]) -> str:
    """What a value may be, in words; sections of keys as links to where they stand."""
    if "$ref" in prop:
        name = prop["$ref"].rpartition("/")[2]
        if "properties" not in definitions[name]:
            return _type(definitions[name], definitions)
        text = _kind(definitions[name]) or "a section of keys"
        return f"[{text}](#{anchor_of(name)})"
    branches = (*prop.get("anyOf", ()), *prop.get("oneOf", ()))
    if branches:
        return " or ".join(dict.fromkeys(_type(branch, definitions) for branch in branches))
    if "const" in prop:
        return f"`{prop['const']}`"
    if "enum" in prop:
        return "one of " + ", ".join(f"`{value}`" for value in prop["enum"])
    if prop.get("type") == "array":
        inner = prop.get("items") or {"anyOf": prop.get("prefixItems", ())}
        return f"a list of: {_type(inner, definitions)}" if inner else "a list"
    if prop.get("type") == "object":
        values = prop.get("additionalProperties")
        inner = f", each {_type(values, definitions)}" if isinstance(values, dict) else ""
        return f"names{inner}" if inner else "a section"
    bounds = [f"{words} {prop[bound]:g}" for bound, words in BOUNDS if bound in prop]
    return " ".join([TYPES.get(prop.get("type", ""), "any value"), ", ".join(bounds)]).strip()


# --- the command line -----------------------------------------------------------------------------


def commands() -> Mapping[str, Any]:
    """The commands of `align` by name, as click sees them, in the order of `align --help`."""
    import typer

    from align.cli import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def command_line() -> str:
    """Every command with its arguments and options, as a page's Markdown."""
    return "\n".join(_command(name, command) for name, command in commands().items())


def _command(name: str, command: Any) -> str:
    from align.cli import COMMANDS

    types = {
        parameter: get_args(hint)[0] if get_origin(hint) is Annotated else hint
        for parameter, hint in get_type_hints(COMMANDS[name], include_extras=True).items()
    }
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    usage = " ".join(["align", name, *(_usage(one) for one in arguments), "[OPTIONS]"])
    lines = [f"(command-{name})=", "", f"## align {name}", "", _flowed(command.help or ""), ""]
    lines += ["```text", usage, "```", ""]
    for one in arguments:
        lines += [f"`{_usage(one)}`", f": {_flowed(one.help or 'As its name says.')}", ""]
    for one in options:
        flags = ", ".join((*one.opts, *one.secondary_opts))
        value = "" if one.is_flag else f" {_value(types.get(one.name, str))}"
        lines += [f"`{flags}{value}`", f": {_facts(one)}", ""]
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    name = (argument.metavar or argument.name.upper()).strip("[]")
    text = f"{name} …" if argument.nargs == -1 else name
    return text if argument.required else f"[{text}]"


VALUES = {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "PATH"}


def _value(hint: Any) -> str:
    """What stands behind an option: its choices, or what kind of value."""
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    inner = next((one for one in get_args(hint) if one is not NoneType), None)
    return VALUES.get(hint, "VALUE") if inner is None else _value(inner)


def _facts(option: Any) -> str:
    said = [_flowed(option.help or "")]
    if option.required:
        said.append("Required.")
    elif not option.is_flag and option.default not in (None, (), []):
        said.append(f"Default: `{option.default}`.")
    return " ".join(part for part in said if part)


# --- the formats ----------------------------------------------------------------------------------

NOT_RECOGNISED = {
    "table": "A table of your own, in any columns: a prompt, its answers, what was said of them.",
    "demonstrations": "A prompt and an answer to it, or messages.",
    "prompts": "Prompts, as text or messages.",
    "text": "Documents.",
}
"""What everything is read as that no format recognises, by kind."""


def formats() -> str:
    """Every format with what it is, what recognises it and what it may be read as, as a table."""
    from preference_data.sources import FORMATS

    lines = ["| `format` | what it is | a row has | read as |", "|---|---|---|---|"]
    for name, found in FORMATS.items():
        what, recognised = NOT_RECOGNISED.get(name, ""), ""
        if found.recognises is not None:
            module = sys.modules[found.recognises.__module__]
            what = _flowed((module.__doc__ or "").partition("\n\n")[0])
            recognised = _flowed((found.recognises.__doc__ or "").partition("\n\n")[0])
        kinds = ", ".join(found.readers) + ("; takes `columns`" if found.uses_columns else "")
        lines.append(f"| `{name}` | {what} | {recognised} | {kinds} |")
    return "\n".join(lines)


# --- Sphinx ---------------------------------------------------------------------------------------

GENERATED = {"configuration": configuration, "command line": command_line, "formats": formats}


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts what is generated in the place of its line."""
    for name, write in GENERATED.items():
        line = f"\n% generated: {name}\n"
        if line in source[0]:
            source[0] = source[0].replace(line, f"\n{write()}\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
