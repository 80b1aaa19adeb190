"""The report's drawing of the pipeline: what was made from what, how long it took, what was reused.

Data sources, the base and the steps are boxes in layers, each behind all that it stands on. An
arrow that a longer way already implies is left out (transitive reduction), and arrows over several
layers keep to places of their own, in an order that crosses few others (Sugiyama et al. 1981).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from align.summary import Row, RunRecord, duration, is_number, mapping_or_empty, number
from preference_data.counts import counted

WIDTH, HEIGHT = 126, 64
"""Pixels of a box"""
SWEEPS = 8
"""Times that the layers are put in order anew."""
STEPS_IN = ("init", "policy", "policies", "baseline", "reward", "judge", "judges", "ensemble")
SOURCES_IN = ("data", "preferences")
"""Options that name steps, and those that name data sources."""

Edge = tuple[str, str]
Layers = list[list[str]]


@dataclass(frozen=True)
class Node:
    """A box: a data source (`data.NAME`), the base, or a step."""

    id: str
    name: str
    state: str
    """`ran`, `cached`, `failed`, `unfinished` or `not run`; `data` and `base` for these."""
    says: str
    took: str
    """Its second and its third line"""
    link: bool
    """Whether the page has a section on it"""


@dataclass(frozen=True)
class Box:
    """A node in its place; pixels of the upper left corner."""

    node: Node
    x: float
    y: float


@dataclass(frozen=True)
class Drawing:
    """Boxes, and arrows as the data of SVG paths."""

    width: float
    height: float
    boxes: list[Box]
    arrows: list[str]
    words: str
    """The same for those who do not see it."""
    box: tuple[int, int] = (WIDTH, HEIGHT)


def drawings(run: RunRecord) -> tuple[Drawing, Drawing] | None:
    """The pipeline from left to right, for wide screens, and from top to bottom, for narrow ones.

    None for a run without a step.
    """
    nodes, edges = graph(run)
    if not run.steps:
        return None
    layers, ways = ordered(layered(list(nodes), edges), edges)
    words = "; ".join(
        ", ".join(filter(None, [node.name, node.says, node.took])) for node in nodes.values()
    )
    across, down = (_drawn(nodes, layers, ways, words, across) for across in (True, False))
    return across, down


# --- what stands on what -------------------------------------------------------------------------


def graph(run: RunRecord) -> tuple[dict[str, Node], list[Edge]]:
    """Nodes by id, each behind what it is made from, and the arrows that no other way implies."""
    inputs = {step.name: made_from(step.artifact, step.settings, run) for step in run.steps}
    used = {name for names in inputs.values() for name in names}
    sources = [*run.ground, *(f"data.{name}" for name in mapping_or_empty(run.config.get("data")))]
    ids = [name for name in dict.fromkeys(["base", *sources]) if name in used]
    nodes = {name: _source(name, run) for name in ids}
    for step in run.steps:
        took = duration(step.seconds) if step.done and step.seconds is not None else ""
        link = step.state != "not run"
        nodes[step.name] = Node(step.name, step.name, step.state, step.state, took, link)
    edges = [(a, b) for b, names in inputs.items() for a in names if a in nodes]
    return nodes, reduced(list(nodes), edges)


def made_from(artifact: Row, settings: Row, run: RunRecord) -> list[str]:
    """Names of what a step stands on: as its artifact says, or else its settings."""
    if artifact:
        return list(mapping_or_empty(artifact.get("inputs")))
    steps = {"base", *(step.name for step in run.steps)}
    sources = mapping_or_empty(run.config.get("data"))
    found = [name for name in _named(settings, STEPS_IN) if name in steps]
    found += [f"data.{name}" for name in _named(settings, SOURCES_IN) if name in sources]
    return list(dict.fromkeys(found))


def _named(value: Any, options: Sequence[str], inside: bool = False) -> Iterator[str]:
    """Every text below one of the options."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _named(inner, options, inside or key in options)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, options, inside)
    elif inside and isinstance(value, str):
        yield value


def _source(name: str, run: RunRecord) -> Node:
    artifact = mapping_or_empty(run.ground.get(name))
    seconds = artifact.get("seconds")
    took = duration(seconds) if is_number(seconds) else ""
    if name == "base":
        model = str(mapping_or_empty(run.config.get("base")).get("model") or "")
        return Node(name, name, "base", model.rstrip("/").rpartition("/")[2], took, False)
    source = name.removeprefix("data.")
    rows = mapping_or_empty(artifact.get("rows")).get("out")
    says = counted(rows, "row", number(rows)) if is_number(rows) else "not read"
    return Node(name, source, "data", says, took, source in run.data)


def reduced(ids: Sequence[str], edges: Sequence[Edge]) -> list[Edge]:
    """The edges without those that a longer way implies; `ids` are in an order of the making."""
    place = {name: i for i, name in enumerate(ids)}
    forward = [(a, b) for a, b in dict.fromkeys(edges) if place[a] < place[b]]
    after: dict[str, set[str]] = {name: set() for name in ids}
    for name in reversed(ids):
        for a, b in forward:
            if a == name:
                after[name] |= {b} | after[b]
    return [
        (a, b)
        for a, b in forward
        if not any(b in after[c] for d, c in forward if d == a and c != b)
    ]


# --- where it is drawn ---------------------------------------------------------------------------


def layered(ids: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The layer of each node: a step behind all it stands on, a source right before its first use.

    `ids` are in an order of the making.
    """
    into = {name: [a for a, b in edges if b == name] for name in ids}
    out = {name: [b for a, b in edges if a == name] for name in ids}
    layer: dict[str, int] = {}
    for name in ids:
        layer[name] = 1 + max((layer[a] for a in into[name]), default=-1)
    for name in ids:
        if not into[name] and out[name]:
            layer[name] = min(layer[b] for b in out[name]) - 1
    return layer


def ordered(
    layer: Mapping[str, int], edges: Sequence[Edge]
) -> tuple[Layers, dict[Edge, list[str]]]:
    """The layers in an order with few crossings, and the way of each edge through them.

    An edge over several layers has a place of its own in those between, named `a→b:layer`.
    """
    layers: Layers = [[] for _ in range(1 + max(layer.values(), default=0))]
    for name, place in layer.items():
        layers[place].append(name)
    ways: dict[Edge, list[str]] = {}
    for a, b in edges:
        between = range(layer[a] + 1, layer[b])
        stops = [f"{a}→{b}:{place}" for place in between]
        for place, stop in zip(between, stops, strict=True):
            layers[place].append(stop)
        ways[(a, b)] = [a, *stops, b]
    links = [link for way in ways.values() for link in pairwise(way)]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        order = range(1, len(layers)) if down else range(len(layers) - 2, -1, -1)
        for place in order:
            before = layers[place - 1 if down else place + 1]
            layers[place] = _by_neighbours(layers[place], before, links)
    return layers, ways


def _by_neighbours(names: list[str], before: list[str], links: Sequence[Edge]) -> list[str]:
    """Sorted by the mean place of each one's neighbours in the layer before; stable."""
    places = {name: i - (len(before) - 1) / 2 for i, name in enumerate(before)}
    own = {name: i - (len(names) - 1) / 2 for i, name in enumerate(names)}

    def mean(name: str) -> float:
        near = [places[a] for a, b in links if b == name and a in places]
        near += [places[b] for a, b in links if a == name and b in places]
        return sum(near) / len(near) if near else own[name]

    return sorted(names, key=mean)


def _drawn(
    nodes: Mapping[str, Node], layers: Layers, ways: Mapping[Edge, list[str]], words: str,
    across: bool,
) -> Drawing:  # fmt: skip
    """`across`: layers are columns; otherwise they are rows."""
    size, gap, aside = ((WIDTH, HEIGHT), 16, 24) if across else ((HEIGHT, WIDTH), 30, 10)
    step = (size[0] + gap, size[1] + aside)
    most = max(map(len, layers))
    corner: dict[str, tuple[float, float]] = {}  # along the flow, and beside it
    for place, names in enumerate(layers):
        for i, name in enumerate(names):
            corner[name] = (place * step[0], (i + (most - len(names)) / 2) * step[1])
    arrows = [_arrow([corner[stop] for stop in way], size, across) for way in ways.values()]
    extent = (len(layers) * step[0] - gap, most * step[1] - aside)
    width, height = extent if across else extent[::-1]
    boxes = [
        Box(nodes[name], *(spot if across else spot[::-1]))
        for name, spot in corner.items()
        if name in nodes
    ]
    return Drawing(width, height, boxes, arrows, words)


def _arrow(stops: Sequence[tuple[float, float]], size: tuple[float, float], across: bool) -> str:
    """From the end of the first box to the start of the last, straight through what is between."""
    middle = size[1] / 2
    points: list[tuple[float, float]] = []
    for i, (along, beside) in enumerate(stops):
        if i > 0:
            points.append((along - (3 if i == len(stops) - 1 else 0), beside + middle))
        if i < len(stops) - 1:
            points.append((along + size[0], beside + middle))
    path = _pair("M", [points[0]], across)
    for (a, b), (c, d) in pairwise(points):
        half = (a + c) / 2
        path += (
            _pair("C", [(half, b), (half, d), (c, d)], across)
            if b != d
            else _pair("L", [(c, d)], across)
        )
    return path


def _pair(letter: str, points: Sequence[tuple[float, float]], across: bool) -> str:
    return letter + " ".join(f"{a:g} {b:g}" if across else f"{b:g} {a:g}" for a, b in points)
