"""The documentation runs: its commands, its Python, its configurations, and its own making.

What stands below a command is what it prints, where `…` is anything.
What the pages' remarks mean is in docs_pages.py.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import docs_pages as docs
import pytest

from align.cli import COMMANDS, main
from align.config import Columns, build_config
from align.config_yaml import parse_yaml

# --- what is run ----------------------------------------------------------------------------------


def call(command: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error. `align` is called here, imported once."""
    words = shlex.split(command)
    if words[0] != "align":
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-c", command],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words[1:])
    return code, out.getvalue(), err.getvalue()


NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def shape(text: str, numbers: bool) -> str:
    """The text with one space for many and, without `numbers`, # for each of them and each time."""
    if numbers:
        return " ".join(text.split())
    text = " ".join(NUMBER.sub("#", text).split())
    return re.sub(r"(?:# (?:h|min) )*# (?:h|min|s)\b", "# s", text)


def prints(expected: str, found: str, numbers: bool) -> bool:
    pattern = ".*".join(re.escape(shape(part, numbers)) for part in expected.split("…"))
    return re.fullmatch(pattern, shape(found, numbers), re.DOTALL) is not None


def test_what_is_printed_is_compared():
    """But for `…`, white space, and numbers that vary, the text is the same."""
    assert prints("a  1\n…\nz 2", "a 1\nb\n\nz 2\n", numbers=True)
    assert not prints("a 1", "a 2", numbers=True)
    assert prints("loss 0.5 in 1 min 3 s", "loss 1e-3 in 4.2 s", numbers=False)
    assert not prints("loss 0.5", "lost 0.5", numbers=False)
    assert not prints("a …", "b a 1", numbers=True)


def runs(block: Any) -> None:
    ends = re.match(r"ends with (\d+)", block.remark)
    for command, expected in docs.commands_of(block):
        code, out, err = call(command)
        assert code == int(ends[1] if ends else 0), f"{block.place}: {command}\n{err}"
        if expected.strip():
            found = err if ends else out
            same = prints(expected, found, numbers=not block.remark.startswith("numbers vary"))
            assert same, f"{block.place}: {command} printed\n{found}"


@pytest.mark.slow
@pytest.mark.parametrize("page", docs.PAGES)
def test_what_a_page_shows_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    """From the first block to the last, in one folder that holds what the page writes there.
    Warnings are recorded: on the command line they are shown, and are no errors."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in docs.blocks(page):
        if block.caption:
            Path(block.caption).write_text(block.text, encoding="utf-8")
        elif block.language == "console" and block.is_run:
            runs(block)
        elif block.language == "python" and block.is_run:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, block.place, "exec"), names)


# --- what is not run ------------------------------------------------------------------------------

PROGRAMS = {
    "accelerate", "align", "curl", "deepspeed", "kubectl", "pip", "pytest", "python", "sbatch",
    "sphinx-build", "tensorboard", "torchrun", "wandb",
}  # fmt: skip


@pytest.mark.parametrize("block", docs.every("console"), ids=lambda block: block.place)
def test_commands_exist_with_their_options(block: Any):
    for command, _ in docs.commands_of(block):
        words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
        parses(words, block)


def parses(words: list[str], block: Any) -> None:
    if "&&" in words:
        at = words.index("&&")
        parses(words[:at], block)
        parses(words[at + 1 :], block)
        return
    assert words[0] in PROGRAMS or block.is_run, f"{block.place}: {words[0]}"
    for word in words:
        path = word.rpartition("=")[2]
        if path.startswith(("configs/", "launch/", "tests/")):
            assert (docs.ROOT / path).exists(), f"{block.place}: {path}"
    script = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    if words[0] == "align" and words[1] in COMMANDS:
        docs.load("reference_pages").commands()[words[1]].make_context(words[1], words[2:])
    elif words[0] == "align":
        assert words[1:] in (["--help"], ["--version"]), block.place
    elif words[0] == "pip":
        extras = tomllib.loads((docs.ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"\.\[(\w+)\]", " ".join(words)):
            assert extra in extras["optional-dependencies"], block.place
    elif script is not None and words[script].startswith("launch/"):
        import launch

        launch._parser().parse_intermixed_args(words[script + 1 :])
    elif script is not None and words[script].startswith("tests/"):
        source = (docs.ROOT / words[script]).read_text(encoding="utf-8")
        for option in (word for word in words[script:] if word.startswith("--")):
            assert f'"{option}"' in source, f"{block.place}: {option}"


# --- configurations -------------------------------------------------------------------------------


def merged(tree: Any, part: Any) -> Any:
    """`part` put over `tree`; what it sets to null or of another kind is replaced whole."""
    if not isinstance(tree, dict) or not isinstance(part, dict):
        return part
    if "kind" in part:  # a step of its own
        return part
    return {**tree, **{key: merged(tree.get(key), value) for key, value in part.items()}}


def put(tree: dict[str, Any], path: str, part: Any) -> dict[str, Any]:
    if not path:
        return merged(tree, part)
    first, _, rest = path.partition(".")
    return {**tree, first: put(tree.get(first, {}), rest, part)}


@pytest.mark.parametrize("block", docs.every("yaml"), ids=lambda block: block.place)
def test_every_configuration_loads(block: Any):
    tree = parse_yaml(block.text, block.place)
    if block.remark == "mapping":
        assert Columns(**tree)
        return
    if "steps" in tree and "name" in tree:
        assert build_config(tree)
        return
    whole = next(
        found
        for one in docs.blocks(block.page)
        if one.language == "yaml" and "name" in (found := parse_yaml(one.text, one.place))
    )
    assert block.remark == "part of the file" or block.remark.startswith("part of "), block.place
    path = "" if block.remark == "part of the file" else block.remark.removeprefix("part of ")
    assert build_config(put(copy.deepcopy(whole), path, tree))


@pytest.mark.parametrize("block", docs.every("json"), ids=lambda block: block.place)
def test_json_is_json(block: Any):
    assert json.loads(block.text)


@pytest.mark.parametrize("block", docs.every("python"), ids=lambda block: block.place)
def test_python_compiles(block: Any):
    compile(block.text, block.place, "exec")


# --- the build ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d",
         str(tmp_path / "doctrees"), str(docs.DOCS), str(tmp_path / "html")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "configuration.html").read_text(encoding="utf-8")
    assert 'id="config-kl-coefficient"' in page
