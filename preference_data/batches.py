"""The one layout of tokens: groups (a prompt and its completions) packed into rows, no padding.

A group's prompt is laid out once and each completion after it. A completion attends to the prompt
and to itself; its positions continue from the prompt. Groups share rows up to a token budget, so
neither padding nor a repeated prompt is computed. What a token may see is in
`preference_data.attention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, fields

import torch
from torch import Tensor

UNUSED = -1
EVEN_LENGTH = 1536
"""Length of a row at which attention costs about as much as all else, in a model of width 256: the
wider the model, the longer."""


@dataclass(frozen=True)
class Group:
    """Ids of a prompt and of its K completions."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a group needs a prompt of at least one token")
        if not self.completions or not all(self.completions):
            raise ValueError("a group needs completions of at least one token each")

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass(frozen=True)
class PackedBatch:
    """Axes: S rows of T tokens; B sequences (completions in the order they were given); N tokens
    of completions, sequence by sequence. Flat indices address the S * T tokens."""

    input_ids: Tensor
    """[S, T]"""
    position_ids: Tensor
    """[S, T] place in the own conversation"""
    group: Tensor
    """[S, T] which group the token belongs to, UNUSED at the end of a row"""
    branch: Tensor
    """[S, T] 0 = prompt, 1..K = completion"""
    targets: Tensor
    """[N] ids of the completions' tokens"""
    predict_at: Tensor
    """[N] flat index of the token before, whose hidden state predicts the target"""
    sequence: Tensor
    """[N] sequence of the target, 0..B-1"""
    offset: Tensor
    """[N] place of the target in its completion, from 0"""
    last_at: Tensor
    """[B] flat index of the sequence's last token"""

    def __post_init__(self) -> None:
        if self.input_ids.shape != self.group.shape or self.input_ids.ndim != 2:
            raise ValueError(f"input_ids {tuple(self.input_ids.shape)} is no [S, T] like group")
        if self.targets.shape != self.predict_at.shape:
            raise ValueError("targets and predict_at differ in length")

    @property
    def sequences(self) -> int:
        return self.last_at.numel()

    @property
    def tokens(self) -> int:
        """Tokens that are computed and count."""
        return int((self.group != UNUSED).sum())

    def table(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """[N] values of completion tokens laid out as [B, R]."""
        longest = int(self.offset.max()) + 1
        out = values.new_full((self.sequences, longest), fill)
        out[self.sequence, self.offset] = values
        return out

    def sums(self, values: Tensor) -> Tensor:
        """[N] values of completion tokens summed by sequence: [B]."""
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def pack(groups: Sequence[Group], row_tokens: int | None = None) -> PackedBatch:
    """Lays `groups` out in rows of at most `row_tokens`, or of the longest group if that is more;
    by default of a length at which few tokens are unused and attention is cheap.

    First-fit decreasing; sequences keep the order of the groups. Raises ValueError without groups.
    """
    if not groups:
        raise ValueError("there is nothing to pack")
    rows = _cheapest_rows(groups) if row_tokens is None else _rows(groups, row_tokens)
    length = max(sum(len(groups[index]) for index in row) for row in rows)
    layout = {
        name: torch.full((len(rows), length), fill, dtype=torch.long)
        for name, fill in (("input_ids", 0), ("position_ids", 0), ("group", UNUSED), ("branch", 0))
    }
    first = _first_sequences(groups)
    placed: list[_Placed] = []
    for row, members in enumerate(rows):
        start = 0
        for member in members:
            group = groups[member]
            end = start + len(group)
            layout["input_ids"][row, start:end] = torch.tensor(
                [*group.prompt, *(token for ids in group.completions for token in ids)]
            )
            layout["group"][row, start:end] = member
            depth = len(group.prompt)
            layout["position_ids"][row, start : start + depth] = torch.arange(depth)
            last_of_prompt = row * length + start + depth - 1
            at = start + depth
            for k, ids in enumerate(group.completions):
                stop = at + len(ids)
                layout["position_ids"][row, at:stop] = torch.arange(depth, depth + len(ids))
                layout["branch"][row, at:stop] = k + 1
                flat = row * length + at
                placed.append(_Placed(first[member] + k, ids, last_of_prompt, flat))
                at = stop
            start = end
    return PackedBatch(**layout, **_targets(placed))


@dataclass(frozen=True)
class _Placed:
    """Where a completion was laid: flat indices of the prompt's last token and of its first."""

    sequence: int
    ids: tuple[int, ...]
    prompt_end: int
    start: int


def _targets(placed: list[_Placed]) -> dict[str, Tensor]:
    placed = sorted(placed, key=lambda one: one.sequence)
    predictors = [
        at for one in placed
        for at in (one.prompt_end, *range(one.start, one.start + len(one.ids) - 1))
    ]  # fmt: skip
    return {
        "targets": torch.tensor([token for one in placed for token in one.ids]),
        "predict_at": torch.tensor(predictors),
        "sequence": torch.tensor([one.sequence for one in placed for _ in one.ids]),
        "offset": torch.tensor([place for one in placed for place in range(len(one.ids))]),
        "last_at": torch.tensor([one.start + len(one.ids) - 1 for one in placed]),
    }


def _first_sequences(groups: Sequence[Group]) -> list[int]:
    first, count = [], 0
    for group in groups:
        first.append(count)
        count += len(group.completions)
    return first


def _rows(groups: Sequence[Group], row_tokens: int) -> list[list[int]]:
    """Indices of groups by row: first-fit decreasing."""
    limit = max(row_tokens, *(len(group) for group in groups))
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(groups)), key=lambda index: -len(groups[index])):
        need = len(groups[index])
        for row, free in enumerate(room):
            if need <= free:
                rows[row].append(index)
                room[row] -= need
                break
        else:
            rows.append([index])
            room.append(limit - need)
    return rows


def _cheapest_rows(groups: Sequence[Group]) -> list[list[int]]:
    """`_rows` for the best of some limits. A token costs as much as its row is long in attention,
    and a constant elsewhere."""
    longest = max(map(len, groups))

    def cost(rows: list[list[int]]) -> float:
        length = max(sum(len(groups[index]) for index in row) for row in rows)
        return len(rows) * length * (1 + length / EVEN_LENGTH)

    limits = (longest, *(int(longest * share) for share in (1.25, 1.5, 2.0, 3.0)))
    return min((_rows(groups, limit) for limit in limits), key=cost)


def distinct(groups: Sequence[Group]) -> tuple[list[Group], list[int]]:
    """Every different conversation of `groups` once, as groups of one completion with those of a
    prompt side by side; and for each sequence of `groups`, in order, its place among them."""
    by_prompt: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for group in groups:
        by_prompt.setdefault(group.prompt, {}).update(dict.fromkeys(group.completions))
    single = [Group(prompt, (ids,)) for prompt, found in by_prompt.items() for ids in found]
    places = {(one.prompt, one.completions[0]): place for place, one in enumerate(single)}
    return single, [places[group.prompt, ids] for group in groups for ids in group.completions]


def join_prompts(groups: Sequence[Group], tokens: int = 512) -> list[Group]:
    """Neighbours of one prompt as groups of at most `tokens` (or one of them); the sequences keep
    their order. Beyond some length, attention costs more than the prompt."""
    joined: list[Group] = []
    for group in groups:
        before = joined[-1] if joined else None
        more = sum(map(len, group.completions))
        if before and before.prompt == group.prompt and len(before) + more <= tokens:
            joined[-1] = Group(group.prompt, before.completions + group.completions)
        else:
            joined.append(group)
    return joined


def split_by_tokens(groups: Sequence[Sized], tokens: int) -> Iterator[list[int]]:
    """Indices of consecutive groups (or prompts) that together hold at most `tokens` (or one)."""
    return split_by_sizes(list(map(len, groups)), tokens)


def split_by_sizes(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Indices of consecutive sizes whose sum is at most `most` (or of one)."""
    part: list[int] = []
    held = 0
    for index, size in enumerate(sizes):
        if part and held + size > most:
            yield part
            part, held = [], 0
        part.append(index)
        held += size
    if part:
        yield part


def split_evenly(groups: Sequence[Group], tokens: int, parts: int) -> list[list[int]]:
    """Indices of groups in the least multiple of `parts` that holds at most `tokens` (or one
    group) each: the longest group goes to the lightest part. Some are empty if groups are few.

    The result depends on nothing but these arguments, so any number of ranks that shares them
    computes the same batches.
    """
    order = sorted(range(len(groups)), key=lambda index: -len(groups[index]))
    for count in range(parts, len(groups) + parts, parts):
        split: list[list[int]] = [[] for _ in range(count)]
        held = [0] * count
        for index in order:
            lightest = held.index(min(held))
            split[lightest].append(index)
            held[lightest] += len(groups[index])
        if all(size <= tokens or len(part) == 1 for part, size in zip(split, held, strict=True)):
            break
    return split
