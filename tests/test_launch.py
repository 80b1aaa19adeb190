"""The scripts for the launchers, started as the launchers start them: by path, from anywhere."""

from __future__ import annotations

import importlib.machinery
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import launch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"pipeline": None, "sft": "sft", "reward": "reward", "dpo": "dpo", "ppo": "ppo"}
CONFIG = """
name: small
output_dir: {folder}/runs
data:
  pairs: {{path: "builtin:demonstrations"}}
steps:
  sft: {{kind: sft, data: pairs}}
"""
SAYS_WHAT_IT_GOT = """
import json, os
class StepError(RuntimeError): pass
class Pipeline:
    def __init__(self, config): self.config = config
    def run(self, **selection):
        del selection["command"]
        print(json.dumps([self.config.seed, selection, os.environ.get("LOCAL_RANK")]))
        return {"name": "small", "seconds": 1.0, "steps": {}}
def main_process(): return False
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with a configuration and a pipeline that says what it was asked."""
    (tmp_path / "small.yaml").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "pipeline_for_test.py").write_text(SAYS_WHAT_IT_GOT)
    # Runs at the start of every Python below this folder's PYTHONPATH.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, pipeline_for_test\nsys.modules['align.pipeline'] = pipeline_for_test\n"
    )
    return tmp_path


def start(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in {"LOCAL_RANK", "RANK"}}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / f"{script}.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_asks_for_its_kind(script: str, elsewhere: Path):
    done = start(script, elsewhere, "--config", "small.yaml", "seed=3", "--local_rank=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [3, {"until_kind": SCRIPTS[script]}, "1"]


def test_every_script_is_tested():
    assert {path.stem for path in (ROOT / "launch").glob("*.py")} == {"__init__", *SCRIPTS}


def test_an_error_is_a_sentence_and_the_exit_code_says_whose_it_is(elsewhere: Path):
    done = start("ppo", elsewhere, "--config", "small.yaml", "sed=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sed is not a known key; did you mean 'seed'?")
    assert done.stderr.count("\n") == 1


def test_the_traceback_comes_with_debug(elsewhere: Path):
    done = start("ppo", elsewhere, "--debug", "--config", "small.yaml", "sed=3")
    assert done.returncode == 2
    assert done.stderr.startswith("Traceback")
    assert "ConfigError: sed is not a known key" in done.stderr


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """(config, selection) of each run, with a pipeline that runs nothing."""
    runs: list[tuple[Any, dict[str, Any]]] = []

    class Pipeline:
        def __init__(self, config: Any):
            self.config = config

        def run(self, **selection: Any) -> dict[str, Any]:
            runs.append((self.config, selection))
            return {"name": "small", "seconds": 1.0, "steps": {}}

    fake = types.ModuleType("align.pipeline")
    fake.__dict__.update(Pipeline=Pipeline, main_process=lambda: False)
    monkeypatch.setitem(sys.modules, "align.pipeline", fake)
    return runs


def test_a_relative_configuration_is_the_working_directory_s_or_else_the_repository_s(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root, here = tmp_path / "root", tmp_path / "here"
    for folder, seed in ((root, 1), (here, 2)):
        (folder / "configs").mkdir(parents=True)
        text = CONFIG.format(folder=tmp_path) + f"seed: {seed}\n"
        (folder / "configs" / "small.yaml").write_text(text)
    (root / "configs" / "zero.json").write_text("{}")
    monkeypatch.setattr(launch, "ROOT", root)
    monkeypatch.chdir(here)
    assert launch.main(["--config", "configs/small.yaml"]) == 0
    (here / "configs" / "small.yaml").unlink()
    arguments = ["deepspeed=configs/zero.json", "--config", "configs/small.yaml"]
    assert launch.main(arguments, until_kind="ppo") == 0
    assert [config.seed for config, _ in asked] == [2, 1]
    assert asked[1][0].deepspeed == str(root / "configs" / "zero.json")


@pytest.mark.parametrize("option", ["--local_rank=1", "--local-rank=1"])
def test_the_launcher_s_rank_is_taken_unless_the_environment_has_one(
    option: str, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "small.yaml").write_text(CONFIG.format(folder=tmp_path))
    arguments = ["--config", str(tmp_path / "small.yaml"), option]
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launch.main(arguments) == 0
    assert os.environ["LOCAL_RANK"] == "0"
    monkeypatch.delenv("LOCAL_RANK")
    assert launch.main(arguments) == 0
    assert os.environ["LOCAL_RANK"] == "1"
    assert len(asked) == 2


def test_an_option_cannot_be_shortened(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        launch.main(["--conf", "x.yaml"])
    assert caught.value.code == 2
    assert "the following arguments are required: --config" in capsys.readouterr().err


def test_a_missing_configuration_is_named_as_it_was_written(capsys: pytest.CaptureFixture[str]):
    assert launch.main(["--config", "none.yaml"]) == 2
    assert capsys.readouterr().err == "none.yaml: there is no such file.\n"


def test_no_script_shadows_a_library():
    """`deepspeed launch/x.py` puts launch/ first on sys.path."""
    elsewhere = [path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "launch")]
    shadowing = [
        script
        for script in SCRIPTS
        if script in sys.stdlib_module_names
        or importlib.machinery.PathFinder.find_spec(script, elsewhere) is not None
    ]
    assert shadowing == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_settings_leave_to_the_engine_what_is_its_own(stage: int):
    settings = json.loads((ROOT / "configs" / "deepspeed" / f"zero{stage}.json").read_text())
    assert settings["zero_optimization"]["stage"] == stage
    # torch's AdamW is passed in, which ZeRO refuses without being told to allow it.
    assert settings["zero_allow_untested_optimizer"] is True
    assert not {"optimizer", "scheduler"} & set(settings)
    for option in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_clipping"):
        assert settings[option] == "auto"
    # The default of 5e8 elements holds a whole small model, and ZeRO then saves nothing.
    assert settings["zero_optimization"]["reduce_bucket_size"] <= 1_000_000
