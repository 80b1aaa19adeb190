"""The drawing of the pipeline: what it shows, and where it puts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.artifacts import write_json
from align.report_graph import drawings, graph, layered, made_from, ordered, reduced
from align.summary import read_run

STEPS: dict[str, Any] = {
    "sft": {"kind": "sft", "data": "texts"},
    "reward": {"kind": "reward", "data": "labels", "init": "sft"},
    "dpo": {"kind": "dpo", "data": "labels", "policy": "sft"},
    "ppo": {
        "kind": "ppo", "data": "prompts", "policy": "sft",
        "reward": [{"reward": {"ensemble": ["reward", {"url": "gold"}]}, "weight": 1.0}],
        "train": {"advantage": "dpo", "ptx": {"data": "texts"}},
    },
    "evaluate": {
        "kind": "evaluate", "data": "prompts", "policies": ["ppo", "dpo"], "baseline": "sft",
        "judges": ["gold", "reward"],
    },
}  # fmt: skip


def run(folder: Path, **artifacts: Any) -> Any:
    """A run of STEPS, of which nothing ran but what has an artifact."""
    sources = {name: {"path": "x"} for name in ("texts", "labels", "prompts", "unused")}
    config = {"base": {"model": "some/model"}, "data": sources, "steps": STEPS}
    write_json(folder / "run.json", {"name": "r", "config": config})
    for name, artifact in artifacts.items():
        write_json(folder / name.replace(".", "/") / "artifact.json", artifact)
    return read_run(folder)


def test_what_a_step_will_stand_on_is_read_from_its_settings(tmp_path: Path):
    """`dpo` is an option's value in ppo, not a step that it stands on; gold is nothing's name."""
    found = run(tmp_path)
    by_name = {step.name: made_from(step.artifact, step.settings, found) for step in found.steps}
    assert by_name == {
        "sft": ["data.texts"],
        "reward": ["sft", "data.labels"],
        "dpo": ["sft", "data.labels"],
        "ppo": ["sft", "reward", "data.prompts", "data.texts"],
        "evaluate": ["ppo", "dpo", "sft", "reward", "data.prompts"],
    }


def test_what_an_artifact_says_it_stands_on_comes_first(tmp_path: Path):
    found = run(tmp_path, sft={"kind": "sft", "inputs": {"base": "0", "data.labels": "1"}})
    step = found.steps[0]
    assert made_from(step.artifact, step.settings, found) == ["base", "data.labels"]


def test_arrows_that_a_longer_way_implies_are_left_out(tmp_path: Path):
    """sft→ppo is implied by sft→reward→ppo, sft→evaluate and reward→evaluate by the way over ppo,
    prompts→evaluate by prompts→ppo→evaluate, texts→ppo by the way over sft."""
    nodes, edges = graph(run(tmp_path))
    assert list(nodes) == ["data.texts", "data.labels", "data.prompts", *STEPS]
    assert set(edges) == {
        ("data.texts", "sft"), ("sft", "reward"), ("data.labels", "reward"), ("sft", "dpo"),
        ("data.labels", "dpo"), ("reward", "ppo"), ("data.prompts", "ppo"), ("ppo", "evaluate"),
        ("dpo", "evaluate"),
    }  # fmt: skip


def test_an_arrow_back_is_not_drawn():
    assert reduced(["a", "b"], [("a", "b"), ("b", "a"), ("a", "b")]) == [("a", "b")]


def test_a_step_is_behind_what_it_stands_on_and_a_source_right_before_its_use():
    edges = [("base", "sft"), ("sft", "rm"), ("labels", "rm"), ("rm", "ppo"), ("prompts", "ppo")]
    ids = ["base", "labels", "prompts", "sft", "rm", "ppo", "lonely"]
    assert layered(ids, edges) == {
        "base": 0, "sft": 1, "labels": 1, "rm": 2, "prompts": 2, "ppo": 3, "lonely": 0,
    }  # fmt: skip


def test_an_arrow_over_several_layers_has_places_of_its_own():
    """a→d passes layers 1 and 2; the two ways cross nowhere, in whatever order they are given."""
    layer = {"a": 0, "b": 1, "c": 2, "d": 3}
    edges = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]
    for given in (edges, edges[::-1]):
        layers, ways = ordered(layer, given)
        assert ways[("a", "d")] == ["a", "a→d:1", "a→d:2", "d"]
        assert {len(names) for names in layers} == {1, 2}
        assert layers[1].index("b") == layers[2].index("c")


def test_crossings_are_undone():
    """a→y and b→x, listed as a b and x y: drawn so that neither crosses the other."""
    layers, _ = ordered({"a": 0, "b": 0, "x": 1, "y": 1}, [("a", "y"), ("b", "x")])
    assert (layers[0].index("a") < layers[0].index("b")) == (
        layers[1].index("y") < layers[1].index("x")
    )


@pytest.mark.parametrize("across", [True, False])
def test_boxes_do_not_overlap_and_lie_within(tmp_path: Path, across: bool):
    found = drawings(run(tmp_path))
    assert found is not None
    drawing = found[0 if across else 1]
    width, height = drawing.box
    for i, box in enumerate(drawing.boxes):
        assert 0 <= box.x <= drawing.width - width and 0 <= box.y <= drawing.height - height
        for other in drawing.boxes[:i]:
            assert abs(box.x - other.x) >= width or abs(box.y - other.y) >= height
    place = {box.node.id: box.x if across else box.y for box in drawing.boxes}
    assert place["sft"] < place["reward"] == place["dpo"] < place["ppo"] < place["evaluate"]
    assert len(drawing.arrows) == 9


def test_boxes_say_state_time_and_rows(tmp_path: Path):
    made = {"kind": "data", "seconds": 0.2, "rows": {"in": 3000, "out": 2900}}
    step = {"kind": "sft", "seconds": 75.0, "inputs": {"base": "0", "data.texts": "1"}}
    found = run(tmp_path, sft=step, **{"data.texts": made})
    (tmp_path / "reward").mkdir()
    nodes, _ = graph(read_run(tmp_path))
    said = {name: (node.state, node.says, node.took) for name, node in nodes.items()}
    assert said["sft"] == ("ran", "ran", "1 min 15 s")
    assert said["reward"] == ("unfinished", "unfinished", "")
    assert said["ppo"] == ("not run", "not run", "")
    assert said["data.texts"] == ("data", "2,900 rows", "0.2 s")
    assert said["data.labels"] == ("data", "not read", "")
    assert said["base"] == ("base", "model", "")
    assert nodes["sft"].link and not nodes["ppo"].link
    drawn = drawings(found)
    assert drawn is not None and "sft, ran, 1 min 15 s" in drawn[0].words


def test_a_folder_without_a_step_has_no_drawing(tmp_path: Path):
    assert drawings(read_run(tmp_path)) is None
