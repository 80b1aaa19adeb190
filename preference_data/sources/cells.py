"""One value of a row as text, a prompt or a response, or the reason why it cannot be.

A value is text (also in JSON) or a list of messages `{"role", "content"}`; text is taken verbatim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from preference_data.quarantine import RowFault
from preference_data.records import Message, Prompt, Response


def text_of(values: Mapping[str, object], name: str) -> str:
    """The text, "" where the row has none. Raises RowFault for a value of another type."""
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowFault("wrong_type", f"{name} is {_shown(value)}, not text.")
    return value


def short_text_of(values: Mapping[str, object], name: str | None) -> str | None:
    """An id or a remark, without the space around it; None where blank or not mapped."""
    value = values.get(name) if name is not None else None
    if value is None:
        return None
    if not isinstance(value, str | int):
        raise RowFault("wrong_type", f"{name} is {_shown(value)}, not text or a whole number.")
    return str(value).strip() or None


def prompt_of(values: Mapping[str, object], name: str, system: str = "") -> Prompt:
    """With the `system` message before it, unless that is blank.

    Raises RowFault if the prompt is missing, blank, or neither text nor messages.
    """
    value = values.get(name)
    if isinstance(value, list):
        messages = messages_of(cast(list[object], value), name)
    else:
        messages = (Message("user", text_of(values, name)),)
    if not messages or not messages[-1].content.strip():
        raise RowFault("empty_prompt", f"{name} is empty.")
    if system.strip():
        messages = (Message("system", system), *messages)
    return Prompt(messages)


def response_of(values: Mapping[str, object], name: str) -> Response:
    """Raises RowFault if the response is missing, blank, or neither text nor messages."""
    value = values.get(name)
    if isinstance(value, list):
        response = Response(messages_of(cast(list[object], value), name))
    else:
        response = Response.from_text(text_of(values, name))
    if not response.messages[-1].content.strip():
        raise RowFault("empty_response", f"{name} is empty.")
    return response


def messages_of(value: list[object], name: str) -> tuple[Message, ...]:
    """Raises RowFault for anything but a list of `{"role", "content"}` with text in both."""
    messages: list[Message] = []
    for item in value:
        turn = _object(item)
        role, content = turn.get("role"), turn.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise RowFault(
                "bad_messages",
                f"{name} holds {_shown(item)}, not a message with a role of system, user or "
                "assistant and a text content.",
            )
        messages.append(Message(role, content))
    return tuple(messages)


def _object(value: object) -> dict[str, object]:
    return cast(dict[str, object], value) if isinstance(value, dict) else {}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
