"""One value of a row as text, a prompt, a response, a number, …, or the reason why it cannot be.

A value is text (also in JSON) or a list of messages `{"role", "content"}`; text is taken verbatim.
Numbers may be written as text, as every CSV file does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from math import inf, nan
from typing import cast

from preference_data.quarantine import RowFault, SetAside
from preference_data.records import Message, Prompt, Response

EXCEL_CELL = 32_767
"""Characters of a cell; Excel cuts longer text there."""


def text_of(values: Mapping[str, object], name: str) -> str:
    """The text, "" where the row has none. Raises RowFault for a value of another type."""
    return as_text(values.get(name), name)


def short_text_of(values: Mapping[str, object], name: str | None) -> str | None:
    """An id or a remark, without the space around it; None where blank or not mapped."""
    return as_short_text(values.get(name), name) if name is not None else None


def prompt_of(values: Mapping[str, object], name: str, system: str = "") -> Prompt:
    """With the `system` message before it, unless that is blank.

    Raises RowFault if the prompt is missing, blank, or neither text nor messages.
    """
    return as_prompt(values.get(name), name, system)


def response_of(values: Mapping[str, object], name: str) -> Response:
    """Raises RowFault if the response is missing, blank, or neither text nor messages."""
    return as_response(values.get(name), name)


def as_text(value: object, name: str) -> str:
    """The same of a value that was looked up already, as below; `name` is for the reason."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"{name} is {shown(value)}, not text.")
    return value


def as_short_text(value: object, name: str) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if value is None:
        return None
    # pandas writes 3.0 into a column of ids that has blanks; beyond 2**53 it rounds them.
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise RowFault("wrong_type", f"{name} is {shown(value)}, not text or a whole number.")
    return str(value)


def as_prompt(value: object, name: str, system: str = "") -> Prompt:
    if isinstance(value, list):
        messages = messages_of(cast(list[object], value), name)
    else:
        messages = (Message("user", as_text(value, name)),)
    if not messages or _is_blank(messages[-1].content):
        raise RowFault("empty_prompt", f"{name} is empty.")
    if system and not system.isspace():
        messages = (Message("system", system), *messages)
    return Prompt(messages)


def as_response(value: object, name: str, model: str | None = None) -> Response:
    if isinstance(value, list):
        messages = messages_of(cast(list[object], value), name)
        if not messages:
            raise RowFault("empty_response", f"{name} is empty.")
    else:
        messages = (Message("assistant", as_text(value, name)),)
    if _is_blank(messages[-1].content):
        raise RowFault("empty_response", f"{name} is empty.")
    return Response(messages, model)


def messages_of(value: list[object], name: str) -> tuple[Message, ...]:
    """Raises RowFault for anything but a list of `{"role", "content"}` with text in both."""
    messages: list[Message] = []
    for item in value:
        turn = _object(item)
        role, content = turn.get("role"), turn.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise RowFault(
                "bad_messages",
                f"{name} holds {shown(item)}, not a message with a role of system, user or "
                "assistant and a text content.",
            )
        messages.append(Message(role, content))
    return tuple(messages)


def as_number(
    value: object,
    name: str,
    reason: str,
    what: str,
    lowest: float = -inf,
    highest: float = inf,
) -> float | None:
    """A finite number, None where blank. Raises RowFault(`reason`) that it is not `what`."""
    if isinstance(value, str):
        if not value or value.isspace():
            return None
        # float() takes 1_000, too, which is no number in any table.
        number = _float(value) if "_" not in value else nan
    elif value is None:
        return None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        number = _float(value)
    else:
        number = nan
    # No comparison holds for nan.
    if not lowest <= number <= highest or number in (inf, -inf):
        raise RowFault(reason, f"{name} is {shown(value)}, not {what}.")
    return number


def as_rank(value: object, name: str) -> int | None:
    """A whole number from 1 up, None where blank. Raises RowFault for anything else."""
    if value is None:
        return None
    text = str(value).strip()
    if text in _USUAL_RANKS:
        return _USUAL_RANKS[text]
    # pandas writes 1.0 into a column that has blanks.
    match = re.fullmatch(r"0*([1-9][0-9]{0,8})(\.0*)?", text, re.ASCII)
    if match is None:
        raise RowFault("rank_invalid", f"{name} is {text!r}, not a whole number from 1 (best) up.")
    return int(match.group(1))


def as_flag(value: object, name: str) -> bool:
    """A ticked box. Raises RowFault for anything but 1 or 0, true or false, or a blank."""
    flag = _FLAGS.get(str(value).strip().casefold() if value is not None else "")
    if flag is None:
        raise RowFault("flag_invalid", f"{name} is {shown(value)}, not 0 or 1.")
    return flag


def as_date(value: object, name: str, format: str | None = None) -> str | None:
    """A date as ISO 8601, verbatim where it is; otherwise of a `format` of strptime's."""
    text = as_short_text(value, name)
    date = _iso_date(text, format) if text is not None else None
    if text is not None and date is None:
        wanted = f"a date in the format {format!r}" if format else "an ISO 8601 date"
        raise RowFault(
            "date_invalid",
            f"{name} is {shown(value)}, not {wanted}; columns.created_at can name its format.",
        )
    return date


def as_word(value: object, name: str) -> str | None:
    """One of a few values, as text: JSON's true as "true", 1.0 as "1"; None where blank."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return as_short_text(value, name)


def as_label(value: object, name: str) -> str:
    """The same of a label. Raises SetAside where it is blank: nobody judged the row."""
    label = as_word(value, name)
    if label is None:
        raise SetAside("label_missing", f"{name} is empty.")
    return label


def plain_label(label: str) -> str:
    """What labels are compared by: no case, spaces as "_", and 1.0 (as pandas writes) as 1."""
    plain = label.strip().casefold().replace(" ", "_")
    if _NUMBER.fullmatch(plain):
        plain = plain.removeprefix("+")
        plain = plain.rstrip("0").removesuffix(".") if "." in plain else plain
    return plain


def is_blank(value: object) -> bool:
    """No value, or text that is nothing but space."""
    return value is None or (isinstance(value, str) and _is_blank(value))


def shown(value: object) -> str:
    """A value in a sentence, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_USUAL_RANKS: dict[str, int | None] = {"": None, **{str(rank): rank for rank in range(1, 10)}}
_FLAGS = {
    "1": True, "1.0": True, "true": True,
    "0": False, "0.0": False, "false": False, "": False,
}  # fmt: skip
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?", re.ASCII)
_EXACT = 2**53


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def _float(value: str | float) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return nan


def _iso_date(text: str, format: str | None) -> str | None:
    try:
        if format is not None:
            return datetime.strptime(text, format).isoformat()
        datetime.fromisoformat(text)
    except ValueError:
        return None
    return text if text.isascii() else None


def _object(value: object) -> dict[str, object]:
    return cast(dict[str, object], value) if isinstance(value, dict) else {}
