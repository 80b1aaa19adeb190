"""OpenAssistant's conversations: flat messages, one a row, or whole trees, one a row.

https://huggingface.co/datasets/OpenAssistant/oasst1. The replies to one message are ranked against
each other, 0 = best, by several people together; some have no rank, and ranks may have gaps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

from preference_data.quarantine import Rejected, RowFault, SetAside
from preference_data.records import Demonstration, Judgement, Message, Prompt, Response
from preference_data.sources.carriers.files import Reading
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import short_text_of, text_of
from preference_data.sources.readers.ratings import rank_of, tie_of, without_twins

T = TypeVar("T")
Rows = Iterator[Row | Rejected]


def recognises(values: Mapping[str, object]) -> bool:
    """A message of a tree, or a tree with its messages nested under "prompt"."""
    flat = {"message_id", "parent_id", "role", "text", "message_tree_id"} <= values.keys()
    return flat or _is_tree(values)


def read_judgements(rows: Rows, reading: Reading) -> Iterator[tuple[Judgement, ...] | Rejected]:
    """One judgement for the replies to one message, of which at least two are ranked.

    In a flat file the first of them carries it, and the others give an empty tuple; messages
    that are ranked against no other are set aside. A tree gives all its judgements at once. The
    file's messages are held in memory, since a parent may stand anywhere.
    """
    return _read(rows, _judgements)


def read_demonstrations(
    rows: Rows, reading: Reading
) -> Iterator[tuple[Demonstration, ...] | Rejected]:
    """Every reply that is not ranked below another, after the thread that it answers."""
    return _read(rows, _demonstrations)


def read_prompts(rows: Rows, reading: Reading) -> Iterator[tuple[Prompt, ...] | Rejected]:
    """Every message of a prompter, after the thread before it."""
    return _read(rows, _prompts)


@dataclass(frozen=True, slots=True)
class _Post:
    """One message where it stands. `rank` counts from 1."""

    id: str
    parent: str | None
    message: Message
    rank: int | None
    deleted: bool
    spam: bool
    model: str | None
    row: Row


class _Forest:
    """The messages of a file or a tree, and who replied to whom."""

    def __init__(self, posts: Iterable[_Post]) -> None:
        self._posts: dict[str, _Post] = {}
        self._replies: dict[str, list[_Post]] = defaultdict(list)
        self._judged: dict[str, tuple[Judgement, ...] | RowFault] = {}
        for post in posts:
            if self._posts.setdefault(post.id, post) is post and post.parent is not None:
                self._replies[post.parent].append(post)

    def known(self, post: _Post) -> _Post:
        """Raises RowFault if another row brought a message of this id before."""
        first = self._posts[post.id]
        if first.row is not post.row:
            raise RowFault(
                "duplicate_message", f"message_id {post.id!r} was in row {first.row.row} already."
            )
        return first

    def thread(self, post: _Post) -> tuple[Message, ...]:
        """From the first message to this one. Raises RowFault if one of them is not there."""
        messages, seen = [post.message], {post.id}
        while post.parent is not None:
            if post.parent not in self._posts or post.parent in seen:
                raise RowFault(
                    "parent_missing", f"parent_id {post.parent!r} leads to no earlier message."
                )
            post = self._posts[post.parent]
            seen.add(post.id)
            messages.append(post.message)
        return tuple(reversed(messages))

    def ranked_with(self, post: _Post) -> list[_Post]:
        """The replies that this one is ranked with, itself among them; [] if there are none.

        A reply without a rank stands with them, unless it was deleted.
        """
        if post.message.role != "assistant" or post.parent is None:
            return []
        siblings = [
            reply
            for reply in self._replies[post.parent]
            if reply.message.role == "assistant" and (reply.rank or not reply.deleted)
        ]
        ranked = sum(reply.rank is not None for reply in siblings)
        return siblings if ranked > 1 and post in siblings else []

    def judged(self, siblings: list[_Post]) -> tuple[Judgement, ...]:
        """Raises RowFault, for each of the siblings alike, if they cannot be judged."""
        parent = siblings[0].parent or ""
        if parent not in self._judged:
            try:
                self._judged[parent] = self._judge(siblings)
            except RowFault as fault:
                self._judged[parent] = fault
            except ValueError as error:
                self._judged[parent] = RowFault("invalid_record", str(error))
        found = self._judged[parent]
        if isinstance(found, RowFault):
            raise RowFault(found.reason, found.detail)
        return found

    def _judge(self, siblings: list[_Post]) -> tuple[Judgement, ...]:
        prompt = Prompt(self.thread(siblings[0])[:-1])
        ranks = tuple(post.rank for post in siblings)
        sources = [post.row.source("oasst") for post in siblings]
        judgement = Judgement(
            prompt,
            tuple(_response(post) for post in siblings),
            ranks,
            outcome=tie_of(ranks),
            annotator_kind="human_aggregate",
            group=siblings[0].parent,
            source=sources[0],
        )
        return without_twins(judgement, sources)


def _judgements(forest: _Forest, post: _Post) -> tuple[Judgement, ...]:
    siblings = forest.ranked_with(post)
    if not siblings:
        raise _set_aside(post, "no_ranking", "is ranked against no other reply")
    judgements = forest.judged(siblings)
    return judgements if siblings[0] is post else ()


def _demonstrations(forest: _Forest, post: _Post) -> tuple[Demonstration, ...]:
    if post.message.role != "assistant":
        raise _set_aside(post, "no_answer", "is a prompter's")
    if post.deleted or post.spam:
        raise _set_aside(post, "not_accepted", "was deleted or failed its review")
    if post.rank not in (None, 1):
        raise _set_aside(post, "ranked_lower", "is ranked below another reply")
    return (Demonstration(Prompt(forest.thread(post)[:-1]), _response(post)),)


def _prompts(forest: _Forest, post: _Post) -> tuple[Prompt, ...]:
    if post.message.role != "user":
        raise _set_aside(post, "no_prompt", "is an assistant's")
    if post.deleted or post.spam:
        raise _set_aside(post, "not_accepted", "was deleted or failed its review")
    if not post.message.content.strip():
        raise RowFault("empty_prompt", "text is empty.")
    return (Prompt(forest.thread(post)),)


def _set_aside(post: _Post, reason: str, why: str) -> SetAside:
    return SetAside(reason, f"the message {post.id} {why}.")


def _response(post: _Post) -> Response:
    if not post.message.content.strip():
        raise RowFault("empty_response", f"the text of message {post.id} is empty.")
    return Response((post.message,), post.model)


def _read(
    rows: Rows, convert: Callable[[_Forest, _Post], tuple[T, ...]]
) -> Iterator[tuple[T, ...] | Rejected]:
    found = list(rows)
    forest = _Forest(_readable_posts(found))

    def records(row: Row) -> tuple[T, ...]:
        if _is_tree(row.values):
            return _of_tree(row, convert)
        return convert(forest, forest.known(_post(row, row.values)))

    return convert_rows(iter(found), records)


def _readable_posts(rows: Iterable[Row | Rejected]) -> Iterator[_Post]:
    for row in rows:
        if isinstance(row, Row) and not _is_tree(row.values):
            try:
                yield _post(row, row.values)
            except (RowFault, ValueError):
                continue  # rejected when its own turn comes


def _of_tree(row: Row, convert: Callable[[_Forest, _Post], tuple[T, ...]]) -> tuple[T, ...]:
    posts = list(_tree_posts(row))
    forest = _Forest(posts)
    records: list[T] = []
    reasons: list[SetAside] = []
    for post in posts:
        try:
            records += convert(forest, post)
        except SetAside as reason:
            reasons.append(reason)
    if not records and reasons:
        raise SetAside(reasons[-1].reason, f"no message of the tree counts: {reasons[-1].detail}")
    return tuple(records)


def _tree_posts(row: Row) -> Iterator[_Post]:
    waiting: list[tuple[object, str | None]] = [(row.values["prompt"], None)]
    while waiting:
        node, parent = waiting.pop()
        if not isinstance(node, dict):
            raise RowFault("wrong_type", "a reply of the tree is not an object.")
        values = cast(dict[str, object], node)
        post = _post(row, {**values, "parent_id": parent})
        yield post
        replies = values.get("replies") or []
        if not isinstance(replies, list):
            raise RowFault("wrong_type", f"the replies to message {post.id} are not a list.")
        waiting += [(reply, post.id) for reply in reversed(cast(list[object], replies))]


def _is_tree(values: Mapping[str, object]) -> bool:
    prompt = values.get("prompt")
    return "message_tree_id" in values and isinstance(prompt, dict) and "replies" in prompt


def _post(row: Row, values: Mapping[str, object]) -> _Post:
    id = short_text_of(values, "message_id")
    if id is None:
        raise RowFault("message_id_missing", "message_id is empty.")
    role = values.get("role")
    if role not in ("prompter", "assistant"):
        raise RowFault("role_unknown", f"role is {role!r}, not prompter or assistant.")
    text = text_of(values, "text")
    return _Post(
        id=id,
        parent=short_text_of(values, "parent_id"),
        message=Message("user" if role == "prompter" else "assistant", text),
        rank=rank_of(values, "rank", best=0),
        deleted=values.get("deleted") is True,
        spam=values.get("review_result") is False,
        model=short_text_of(values, "model_name"),
        row=row,
    )
