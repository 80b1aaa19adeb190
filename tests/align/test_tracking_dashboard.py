"""`align dashboard`: which panels there are, and what is said where it cannot be saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from align.config import ConfigError
from align.tracking.dashboard import Logged, Panel, layout_of, place_of, read_logged


def make_run(folder: Path, wandb: Any = None, logged: bool = True) -> Path:
    """A run of which ppo has logged a line and a sample, and dpo nothing yet."""
    steps = {"ppo": {"kind": "ppo"}, "dpo": {"kind": "dpo"}}
    config = {"tracking": {"wandb": wandb}, "steps": steps}
    (folder / "ppo").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"name": "mine", "config": config}))
    if logged:
        line = {"step": 1, "time": 2.0, "objective/kl": 0.5, "train/loss": 1.0, "odd": 3.0}
        (folder / "ppo" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (folder / "ppo" / "samples.jsonl").write_text('{"prompt": "p"}\n')
        (folder / "ppo" / "alerts.jsonl").write_text('{"title": "t"}\n')
    return folder


def test_only_what_was_logged_is_drawn(tmp_path: Path):
    logged = read_logged(make_run(tmp_path / "run"))
    assert (logged.name, logged.tables) == ("mine", ("samples",))
    assert {part.name: (part.is_open, list(part.panels)) for part in layout_of(logged)} == {
        "Policy optimisation": (True, [Panel("KL to the reference", ("objective/kl",))]),
        "Training": (True, [Panel("Loss", ("train/loss",))]),
        "Tables": (True, [Panel("samples", ("samples",), "table")]),
        "odd": (False, [Panel("odd", ("odd",))]),
    }


def test_what_is_measured_once_is_a_bar_and_bounds_are_no_win_rates():
    names = ("evaluate/gold/win_rate/a_vs_b", "evaluate/gold/win_rate/a_vs_b_low", "objective/kl")
    logged = Logged("mine", {"evaluate": names[:2], "ppo": names[2:]}, ())
    panels = {panel.title: panel for part in layout_of(logged) for panel in part.panels}
    assert panels["Win rate"] == Panel("Win rate", names[:1], "bar")
    assert panels[names[1]] == Panel(names[1], names[1:2], "bar")
    assert panels["KL to the reference"].kind == "line"


def test_the_project_is_the_configurations_or_must_be_said():
    logged = Logged("mine", {}, (), {"project": "hh", "entity": None})
    assert place_of(logged, None, None) == (None, "hh")
    assert place_of(logged, "us", "other") == ("us", "other")
    with pytest.raises(ConfigError, match=r"no tracking\.wandb\.project; name one with --project"):
        place_of(Logged("mine", {}, ()), None, None)


def test_the_specification_is_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("wandb_workspaces")
    run = make_run(tmp_path / "run", {"project": "hh"})
    assert main(["dashboard", str(run), "--print"]) == 0
    section = json.loads(capsys.readouterr().out)["section"]
    bank = section["panelBankConfig"]["sections"]
    assert [part["name"] for part in bank] == ["Policy optimisation", "Training", "Tables", "odd"]
    (kl,) = bank[0]["panels"]
    assert (kl["config"]["xAxis"], kl["config"]["metrics"]) == ("step", ["objective/kl"])
    assert section["settings"]["shouldAutoGeneratePanels"] is False
    assert "mine" in json.dumps(section["runSets"][0]["filters"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["gone"], "there is no such folder"),
        (["."], "no run folder: it holds no run.json"),
        (["empty"], "no step has logged anything yet"),
        (["run"], "saving a dashboard needs a W&B key"),
        (["other"], "name one with --project"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    pytest.importorskip("wandb_workspaces")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    make_run(tmp_path / "run", {"project": "hh"})
    make_run(tmp_path / "empty", {"project": "hh"}, logged=False)
    make_run(tmp_path / "other")
    assert main(["dashboard", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said


def test_it_is_saved_where_the_key_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With a key, what would be sent goes to its own entity; the address is printed."""
    pytest.importorskip("wandb_workspaces")
    import wandb
    from wandb_workspaces.workspaces.interface import Workspace

    class Api:
        default_entity = "ada"

    saved: list[Any] = []
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb, "Api", Api)
    monkeypatch.setattr(Workspace, "save", lambda self: saved.append(self) or self)
    monkeypatch.setattr(Workspace, "url", "https://example.org/ada/hh")
    run = make_run(tmp_path / "run", {"project": "hh"})
    assert main(["dashboard", str(run)]) == 0
    assert [(one.entity, one.project, one.name) for one in saved] == [("ada", "hh", "mine")]
    assert "https://example.org/ada/hh" in capsys.readouterr().out
