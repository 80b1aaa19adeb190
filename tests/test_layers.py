"""Imports run against the flow of data, in one direction, and the light modules stay light."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "preference_data": set[str](),
    "reward_models": {"preference_data"},
    "align": {"preference_data", "reward_models"},
    "launch": {"align"},
}
DRAWERS = {"utils", "common", "helpers", "misc"}
HEAVY = {
    "torch", "transformers", "peft", "evaluate", "deepspeed", "trl", "datasets", "accelerate",
}  # fmt: skip


def modules(root: Path) -> dict[str, Path]:
    """Every module of the four packages, by its dotted name."""
    found: dict[str, Path] = {}
    for package in MAY_IMPORT:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> Iterator[tuple[str, bool]]:
    """(module of ours, whether only for types) of each import, also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            inner = [f"{stem}.{alias.name}" for alias in node.names]
            targets = [target if target in known else stem for target in inner]
        for target in targets:
            if target.split(".")[0] in MAY_IMPORT:
                yield target, id(node) in typing_only


def violations(root: Path) -> list[str]:
    """What is wrong with the imports of the packages below `root`, a line each."""
    found = modules(root)
    wrong: list[str] = []
    graph: dict[str, set[str]] = {name: set() for name in found}
    for name, path in found.items():
        package = name.split(".")[0]
        for target, typing_only in imported(name, path, set(found)):
            other = target.split(".")[0]
            if other != package and other not in MAY_IMPORT[package]:
                wrong.append(f"{name} imports {target}")
            stages = all(module.startswith("align.stages.") for module in (name, target))
            if stages and name != target:
                wrong.append(f"the stage {name} imports the stage {target}")
            if not typing_only:
                graph[name].add(target)
        if path.stem in DRAWERS or path.parent.name in DRAWERS:
            wrong.append(f"{name} is a drawer")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        wrong.append(f"cycle: {' <- '.join(error.args[1])}")
    return wrong


def test_the_packages_keep_their_layers():
    assert set(MAY_IMPORT) <= {name for name in modules(ROOT) if "." not in name}
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("files", "wrong"),
    [
        ({"preference_data/a.py": "import align.b", "align/b.py": ""}, "preference_data.a imports align.b"),
        ({"reward_models/a.py": "def f():\n    from align import b", "align/b.py": ""}, "reward_models.a imports align.b"),
        ({"launch/a.py": "import reward_models"}, "launch.a imports reward_models"),
        ({"align/stages/a.py": "from align.stages import b", "align/stages/b.py": ""}, "the stage align.stages.a imports the stage align.stages.b"),
        ({"align/stages/a.py": "from .b import x", "align/stages/b.py": ""}, "the stage align.stages.a imports the stage align.stages.b"),
        ({"align/a.py": "from align import b", "align/b.py": "def f():\n    from align.a import x"}, "cycle: align.b <- align.a <- align.b"),
        ({"align/utils.py": ""}, "align.utils is a drawer"),
        ({"align/misc/a.py": ""}, "align.misc.a is a drawer"),
    ],
)  # fmt: skip
def test_a_broken_layer_is_seen(tmp_path: Path, files: dict[str, str], wrong: str):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    [line] = violations(tmp_path)
    if wrong.startswith("cycle"):  # it may be told from either end
        assert line.startswith("cycle") and set(line.split()) == set(wrong.split())
    else:
        assert line == wrong


def test_an_import_for_types_alone_closes_no_cycle(tmp_path: Path):
    (tmp_path / "align").mkdir()
    (tmp_path / "align/a.py").write_text("from align import b")
    (tmp_path / "align/b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from align.a import x"
    )
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    "module",
    ["align", "align.config", "align.cli", "align.pipeline", "launch", "preference_data.records"],
)
def test_light_modules_import_nothing_heavy(module: str):
    code = f"import sys, {module}\nprint(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
