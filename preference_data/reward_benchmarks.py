"""Benchmarks of reward models, as published or as a file of your own: rows to items.

An item is a prompt with its completions, of which some are known to be right. The layouts:

- `rewardbench` (https://huggingface.co/datasets/allenai/reward-bench, split `filtered`): `prompt`,
  `chosen` and `rejected` as text, the models that wrote them, `subset` (one of 23) and `id`.
- `rewardbench2` (https://huggingface.co/datasets/allenai/reward-bench-2): `prompt`, the lists
  `chosen` and `rejected`, `num_correct`, `subset` and `id`; the ids of the subset Ties are `ref:N`
  (one right answer) and `tied:N` (several), where the same N belongs together.
- `rm_bench` (https://huggingface.co/datasets/THU-KEG/RM-Bench): `prompt`, three `chosen` and three
  `rejected` (concise, detailed as plain text, detailed as markdown), `domain` and `id`.
- `llmbar` (https://github.com/princeton-nlp/LLMBar): `input`, `output_1`, `output_2` and `label`,
  the number of the better one; the subset is the folder of a `dataset.json`.
- `pairs`: `prompt`, `chosen`, `rejected` and, if there is one, `subset` and `id`; CSV, JSON, JSONL
  or Parquet. Without a prompt, chosen and rejected are two conversations that share it.

Prompts are text or lists of messages.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from preference_data.quarantine import DataError, Rejected, RowFault, reasons_in_words
from preference_data.records import Prompt, Response
from preference_data.sources.carriers import CARRIERS, read_rows
from preference_data.sources.carriers.files import Reading, data_suffix, find_files
from preference_data.sources.carriers.rows import Row, convert_rows
from preference_data.sources.cells import as_word, prompt_of, response_of, short_text_of, shown
from preference_data.sources.columns.headers import check_columns
from preference_data.sources.readers import trl

LayoutName = Literal["rewardbench", "rewardbench2", "rm_bench", "llmbar", "pairs"]

TIES = "Ties"
STYLES = ("concise", "detailed_plain", "detailed_markdown")
"""RM-Bench's styles, in the order of its lists."""
SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": (
        "alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med",
    ),
    "Chat Hard": (
        "mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut", "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous", "refusals-offensive", "xstest-should-refuse",
        "xstest-should-respond", "donotanswer",
    ),
    "Reasoning": (
        "math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust",
    ),
}  # fmt: skip
"""RewardBench's sections and their subsets (arXiv:2403.13787, table 1)."""

_HUB_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w./-]+))?", re.ASCII)
_TIE_ID = re.compile(r"(?:ref|tied):[0-9]+", re.ASCII)
# Of a folder, only these files are the benchmark where there are any: beside them lie its parts
# (RM-Bench), the rows before filtering (RewardBench) and what evaluators answered (LLMBar).
_WHOLE = (
    re.compile(r"total_dataset\.json"),
    re.compile(r"filtered[.-].*"),
    re.compile(r"dataset\.json"),
)


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt with K completions, of which some are right.

    Raises ValueError unless one is right and one is wrong.
    """

    prompt: Prompt
    completions: tuple[Response, ...]
    right: tuple[bool, ...]
    """Aligned to `completions`."""
    subset: str
    id: str
    group: str
    """Items of one subset and group are judged, and drawn in a bootstrap, together."""

    def __post_init__(self) -> None:
        if len(self.completions) != len(self.right):
            raise ValueError(f"{len(self.completions)} completions have {len(self.right)} marks.")
        if not any(self.right) or all(self.right):
            raise ValueError("An item needs a right and a wrong completion.")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What was read: `rows` = `items` + `rejected` + those that `limit` left out."""

    layout: LayoutName
    source: str
    files: tuple[str, ...]
    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...]
    rows: int
    limit: int | None
    notes: tuple[str, ...]

    def by_reason(self) -> Counter[str]:
        """How many rows were rejected, by reason."""
        return Counter(fault.reason for fault in self.rejected)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a row becomes an item, and whether a row looks like one of this layout."""

    convert: Callable[[Row], Item]
    recognises: Callable[[Mapping[str, object]], bool]


def read_benchmark(source: str, layout: str = "auto", limit: int | None = None) -> Benchmark:
    """The items of a file, a folder, a glob, or a data set of the hub, `owner/name[@revision]`.

    `layout` is one of LAYOUTS, or "auto" for what the first row looks like. `limit` keeps the first
    so many items (or groups of them) of each subset: published files are sorted by subset. The hub
    is asked only where there is no such path. Rows that cannot be used are kept with their reason.

    Raises DataError if the data cannot be read, no row can be used, or the layout is unknown or not
    recognised.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is a number of items from 1 up, not {limit}.")
    reading = Reading()
    files = _files(source, reading)
    name = _layout(source, files, layout)
    items: list[Item] = []
    rejected: list[Rejected] = []
    convert = LAYOUTS[name].convert
    for found in convert_rows(read_rows(files, reading), lambda row: (convert(row),)):
        if isinstance(found, Rejected):
            rejected.append(found)
        else:
            items += found
    if not items:
        reasons = reasons_in_words(Counter(fault.reason for fault in rejected))
        raise DataError(
            f"No row of {source} can be used as {name} ({reasons}); the first: {rejected[0].detail}"
        )
    if limit is not None:
        reading.note(f"Of each subset, the first {limit} alone.")
    return Benchmark(
        layout=name,
        source=source,
        files=tuple(str(file) for file in files),
        items=tuple(items if limit is None else _first_of_each(items, limit)),
        rejected=tuple(rejected),
        rows=len(items) + len(rejected),
        limit=limit,
        notes=tuple(reading.notes),
    )


def _first_of_each(items: Iterable[Item], limit: int) -> list[Item]:
    taken: defaultdict[str, set[str]] = defaultdict(set)
    kept: list[Item] = []
    for item in items:
        groups = taken[item.subset]
        if len(groups) < limit:
            groups.add(item.group)
        if item.group in groups:
            kept.append(item)
    return kept


# --- where the files are --------------------------------------------------------------------------


def _files(source: str, reading: Reading) -> list[Path]:
    match = _HUB_ID.fullmatch(source)
    if match is None or data_suffix(Path(source)) in CARRIERS or Path(source).expanduser().exists():
        return _whole(find_files(source), source, reading)
    folder = _downloaded(match[1], match[2])
    try:
        return _whole(find_files(folder), source, reading)
    except DataError:
        raise DataError(
            f"The data set {source} of the hub holds no data files. Fetch the data from where it "
            "is kept, and give its folder."
        ) from None


def _whole(files: Sequence[Path], source: str, reading: Reading) -> list[Path]:
    if len(files) > 1:
        for pattern in _WHOLE:
            whole = [f for f in files if pattern.fullmatch(f.name.removesuffix(".gz"))]
            if whole and len(whole) < len(files):
                names = ", ".join(sorted({file.name for file in whole})[:5])
                reading.note(f"Of the {len(files)} files of {source}, {names} alone was read.")
            if whole:
                return whole
    return list(files)


def _downloaded(repository: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}{end}" for suffix in CARRIERS if suffix != ".txt" for end in ("", ".gz")]
    try:
        return snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=patterns
        )
    except (OSError, ValueError) as error:  # what the hub's client raises are kinds of these
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"{repository} is no path here, and the hub does not give such a data set: {reason}"
        ) from None


def _layout(source: str, files: Sequence[Path], layout: str) -> LayoutName:
    if layout in LAYOUTS:
        return cast(LayoutName, layout)
    names = ", ".join(LAYOUTS)
    if layout != "auto":
        raise DataError(f"{layout!r} is no layout of a benchmark; there are auto, {names}.")
    # A few broken rows may open a file.
    first = next((row for row in read_rows(files, Reading()) if isinstance(row, Row)), None)
    if first is None:
        raise DataError(f"{source} holds no row that can be read.")
    for name, known in LAYOUTS.items():
        if known.recognises(first.values):
            return name
    columns = ", ".join(map(str, first.values))
    raise DataError(
        f"{source} looks like none of the benchmarks {names}: its first row has {columns}. A file "
        "of your own needs prompt, chosen and rejected."
    )


# --- rows -----------------------------------------------------------------------------------------


def _item(
    row: Row,
    prompt: Prompt,
    completions: Sequence[Response],
    right: Sequence[bool],
    subset: str,
    group: str | None = None,
) -> Item:
    id = short_text_of(row.values, "id") or f"{Path(row.file).name}:{row.row}"
    # Rows may share an id without belonging together.
    group = group or f"{row.file}:{row.row}"
    return Item(prompt, tuple(completions), tuple(right), subset, id, group)


def _subset(row: Row, name: str = "subset") -> str:
    subset = short_text_of(row.values, name)
    if subset is None:
        raise RowFault("no_subset", f"{name} is empty.")
    return subset


def _completion(value: object, name: str) -> Response:
    """Text may be empty here: it is what a model has answered."""
    if isinstance(value, str):
        return Response.from_text(value)
    return response_of({name: value}, name)


def _completions(row: Row, name: str) -> list[Response]:
    value = row.values.get(name)
    if not isinstance(value, list) or not value:
        raise RowFault("no_list", f"{name} is {shown(value)}, not a list of completions.")
    return [_completion(one, name) for one in cast(list[object], value)]


def _rewardbench(row: Row) -> Item:
    check_columns(row, "prompt", "chosen", "rejected", "subset")
    pair = [_completion(row.values[name], name) for name in ("chosen", "rejected")]
    return _item(row, prompt_of(row.values, "prompt"), pair, (True, False), _subset(row))


def _rewardbench2(row: Row) -> Item:
    check_columns(row, "prompt", "chosen", "rejected", "subset")
    chosen, rejected = _completions(row, "chosen"), _completions(row, "rejected")
    count = row.values.get("num_correct")
    if count is not None and count != len(chosen):
        raise RowFault("count_differs", f"num_correct is {count!r}, but {len(chosen)} are chosen.")
    subset, group = _subset(row), None
    if subset.casefold() == TIES.casefold():
        subset, group = TIES, _tie_group(row, len(chosen))
    right = [True] * len(chosen) + [False] * len(rejected)
    return _item(row, prompt_of(row.values, "prompt"), chosen + rejected, right, subset, group)


def _tie_group(row: Row, chosen: int) -> str:
    id = short_text_of(row.values, "id") or ""
    if _TIE_ID.fullmatch(id) is None:
        raise RowFault("id_invalid", f"the id of a row of {TIES} is {id!r}, not ref:N or tied:N.")
    if (kind := id.partition(":")[0]) == "tied" and chosen < 2:
        raise RowFault("tied_alone", f"{id} has one right answer, so that nothing is tied.")
    if kind == "ref" and chosen > 1:
        raise RowFault("ref_tied", f"{id} has {chosen} right answers, and a reference has one.")
    return id.partition(":")[2]


def _rm_bench(row: Row) -> Item:
    check_columns(row, "prompt", "chosen", "rejected", "domain")
    chosen, rejected = _completions(row, "chosen"), _completions(row, "rejected")
    k = len(STYLES)
    if len(chosen) != k or len(rejected) != k:
        raise RowFault(
            "styles_missing",
            f"there are {len(chosen)} chosen and {len(rejected)} rejected answers, not {k} of each "
            f"({', '.join(STYLES)}).",
        )
    right = [True] * k + [False] * k
    prompt, domain = prompt_of(row.values, "prompt"), _subset(row, "domain")
    return _item(row, prompt, chosen + rejected, right, domain)


def _llmbar(row: Row) -> Item:
    check_columns(row, "input", "output_1", "output_2", "label")
    label = as_word(row.values["label"], "label")
    if label not in ("1", "2"):
        raise RowFault("label_unknown", f"label is {label!r}, not 1 or 2.")
    outputs = [_completion(row.values[name], name) for name in ("output_1", "output_2")]
    file = Path(row.file.removesuffix(".gz"))
    subset = short_text_of(row.values, "subset") or (
        file.parent.name if file.stem == "dataset" else file.stem
    )
    right = (label == "1", label == "2")
    return _item(row, prompt_of(row.values, "input"), outputs, right, subset or "all")


def _pairs(row: Row) -> Item:
    subset = short_text_of(row.values, "subset") or "all"
    if "prompt" in row.values and isinstance(row.values.get("chosen"), str):
        check_columns(row, "chosen", "rejected")
        pair = [_completion(row.values[name], name) for name in ("chosen", "rejected")]
        return _item(row, prompt_of(row.values, "prompt"), pair, (True, False), subset)
    found = trl.judgement(row)
    return _item(row, found.prompt, found.responses, (True, False), subset)


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in cast(list[object], value))


# The first that recognises a row is meant: the last takes what the others have more to say about.
LAYOUTS: dict[LayoutName, Layout] = {
    "rewardbench": Layout(
        _rewardbench,
        lambda values: (
            {"prompt", "chosen", "rejected"} <= values.keys()
            and not isinstance(values["chosen"], list)
            and any(values.get("subset") in subsets for subsets in SECTIONS.values())
        ),
    ),
    "rm_bench": Layout(
        _rm_bench,
        lambda values: "domain" in values and _is_list_of_text(values.get("chosen")),
    ),
    "rewardbench2": Layout(
        _rewardbench2,
        lambda values: "subset" in values and _is_list_of_text(values.get("chosen")),
    ),
    "llmbar": Layout(
        _llmbar, lambda values: {"input", "output_1", "output_2", "label"} <= values.keys()
    ),
    "pairs": Layout(_pairs, lambda values: {"chosen", "rejected"} <= values.keys()),
}
