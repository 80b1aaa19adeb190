"""The command line: what it asks of the library, what it prints, and how it fails."""

# ruff: noqa: E501 - a case of a table stays in one line
from __future__ import annotations

import errno
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import align
from align.artifacts import Artifact, Rows
from align.cli import main
from align.cli_options import find_device
from align.config import ConfigError, json_schema

CONFIG = """
name: small
output_dir: {folder}/run
data:
  pairs: {{path: "builtin:demonstrations"}}
  labels: {{path: "builtin:labels"}}
steps:
  sft: {{kind: sft, data: pairs}}
  reward: {{kind: reward, data: labels, init: sft}}
"""


def step(kind: str, cached: bool = False, **metrics: float) -> dict[str, Any]:
    rows = {"in": 1200, "out": 1100, "quarantined": 100}
    return {"kind": kind, "seconds": 75.0, "cached": cached, "rows": rows, "metrics": metrics}


class FakePipeline:
    """Stands for align.pipeline.Pipeline: notes what it is asked and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, dict[str, Any]]] = []
        self.steps: dict[str, Any] = {}
        self.plan_rows: list[dict[str, Any]] = []
        self.error: BaseException | None = None
        self.is_main = True

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        outer = self

        class Pipeline:
            def __init__(self, config: Any):
                self.config = config

            def run(self, **selection: Any) -> dict[str, Any]:
                outer.asked.append((self.config, selection))
                if outer.error is not None:
                    raise outer.error
                return {"name": "small", "seconds": 80.0, "steps": outer.steps}

            def plan(self) -> list[dict[str, Any]]:
                return outer.plan_rows

        class StepError(RuntimeError):
            pass

        module = types.ModuleType("align.pipeline")
        module.__dict__.update(
            Pipeline=Pipeline, StepError=StepError, main_process=lambda: outer.is_main
        )
        self.StepError = StepError
        monkeypatch.setitem(sys.modules, "align.pipeline", module)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return str(path)


def lines(text: str) -> list[str]:
    """The lines with runs of spaces as one."""
    return [" ".join(line.split()) for line in text.splitlines()]


# --- run and plan --------------------------------------------------------------------------------


def test_run_passes_the_selection_and_the_overrides_on(
    pipeline: FakePipeline, config: str, monkeypatch: pytest.MonkeyPatch
):
    arguments = ["run", config, "seed=3", "--force", "sft", "lora.r=4", "--force", "reward"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/align", *arguments[:1], "my config.yaml"])
    assert main(arguments) == 0
    [(settings, selection)] = pipeline.asked
    assert (settings.seed, settings.lora.r) == (3, 4)
    assert selection == {
        "only": None,
        "start_from": None,
        "force": ("sft", "reward"),
        "command": "align run 'my config.yaml'",
    }


@pytest.mark.parametrize(("option", "name"), [("--only", "only"), ("--from", "start_from")])
def test_run_starts_where_it_is_told(pipeline: FakePipeline, config: str, option: str, name: str):
    assert main(["run", config, option, "reward"]) == 0
    assert pipeline.asked[0][1][name] == "reward"


def test_run_ends_with_the_table_and_the_report(
    pipeline: FakePipeline, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    judged = {"evaluate/gold/win_rate/ppo_vs_sft": 0.71}
    judged |= {f"{name}_{end}": v for name in judged for end, v in (("low", 0.66), ("high", 0.76))}
    pipeline.steps = {
        "sft": step("sft", cached=True, **{"train/loss": 1.25}),
        "reward": step("reward", **{"reward/accuracy": 0.86}),
        "ppo": step("ppo", **{"objective/kl": 7.31, "objective/score": 2.1, "time/score": 4.0}),
        "evaluate": step("evaluate", **judged),
        "export": {**step("export"), "rows": None},
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").touch()
    assert main(["run", config]) == 0
    assert lines(capsys.readouterr().out) == [
        "step kind time cached rows result",
        "sft sft 1 min 15 s yes 1,100 of 1,200 loss 1.2",
        "reward reward 1 min 15 s 1,100 of 1,200 accuracy 0.86",
        "ppo ppo 1 min 15 s 1,100 of 1,200 kl 7.3, score 2.1",
        "evaluate evaluate 1 min 15 s 1,100 of 1,200 gold ppo_vs_sft 0.71 [0.66, 0.76]",
        "export export 1 min 15 s",
        f"Report: {tmp_path / 'run' / 'report.html'}",
    ]


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (1, "Nothing to do: the step is done."),
        (3, "Nothing to do: all 3 steps are done."),
    ],
)
def test_a_run_that_was_done_already_says_so(
    pipeline: FakePipeline, config: str, capsys: pytest.CaptureFixture[str], count: int, says: str
):
    pipeline.steps = {f"sft{i}": step("sft", cached=True) for i in range(count)}
    assert main(["run", config]) == 0
    assert lines(capsys.readouterr().out)[-1] == says
    pipeline.steps["sft0"]["cached"] = False
    assert main(["run", config]) == 0
    assert "Nothing to do" not in capsys.readouterr().out


def test_only_the_main_process_prints(
    pipeline: FakePipeline, config: str, capsys: pytest.CaptureFixture[str]
):
    pipeline.steps = {"sft": step("sft")}
    pipeline.is_main = False
    assert main(["run", config]) == 0
    assert capsys.readouterr() == ("", "")


def test_plan_says_what_would_run_and_why(
    pipeline: FakePipeline, config: str, capsys: pytest.CaptureFixture[str]
):
    pipeline.plan_rows = [
        {"name": "sft", "kind": "sft", "state": "done", "reason": "", "rows": 1500},
        {
            "name": "reward",
            "kind": "reward",
            "state": "run",
            "reason": "sft will run",
            "rows": None,
        },
    ]
    assert main(["plan", config, "seed=3"]) == 0
    assert lines(capsys.readouterr().out)[:4] == [
        "step kind state rows why",
        "sft sft done 1,500",
        "reward reward run sft will run",
        "1 of 2 would run.",
    ]
    del pipeline.plan_rows[1]
    assert main(["plan", config]) == 0
    assert "Nothing to do: all is done." in lines(capsys.readouterr().out)


def test_plan_loads_no_torch(config: str):
    code = (
        "import sys\nfrom align.cli import main\n"
        f"code = main(['plan', {config!r}])\n"
        "sys.exit(code or (9 if 'torch' in sys.modules or 'transformers' in sys.modules else 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    planned = [line.split()[:3] for line in done.stdout.splitlines()]
    assert ["sft", "sft", "run"] in planned and ["reward", "reward", "run"] in planned


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'CONFIG'. See `align --help`."),
        (["run", "none.yaml"], "none.yaml: there is no such file."),
        (["run", "CONFIG", "sed"], "'sed' is no override; write key.path=value."),
        (["run", "CONFIG", "lora.r=0"], "lora.r is 0: it must be more than 0."),
        (["run", "CONFIG", "--only", "rewrad"], "--only names the step 'rewrad', which does not exist; did you mean 'reward'? The steps: sft, reward."),
        (["run", "CONFIG", "--from", "ppo"], "--from names the step 'ppo', which does not exist. The steps: sft, reward."),
        (["run", "CONFIG", "--force", "stf"], "--force names the step 'stf', which does not exist; did you mean 'sft'? The steps: sft, reward."),
        (["run", "CONFIG", "--only", "sft", "--from", "sft"], "--only and --from exclude each other; leave one out."),
        (["inspect", "none"], "none: there is no such folder."),
        (["score", "none", "--prompt", "a", "--completion", "b"], "none: there is no such folder."),
        (["score", "none", "--prompt", "a"], "Give either a FILE with --output, or --prompt with one or more --completion."),
        (["score", "none", "a.csv", "--prompt", "a"], "Give either a FILE with --output, or --prompt with one or more --completion."),
        (["score", "none", "--completion", "a"], "Give either a FILE with --output, or --prompt with one or more --completion."),
        (["score", "none", "a.csv"], "--output names the table to write; give it with FILE."),
        (["score", "none", "--prompt", "a", "--completion", "b", "--column", "c"], "--column has no effect with --prompt; leave it out."),
        (["score", "none", "none.csv", "--output", "out.csv"], "There is no file none.csv (looked for {cwd}/none.csv)."),
        (["chat", "none"], "none: there is no such folder."),
        (["chat", "CONFIG"], "CONFIG is a file, not a folder."),
        (["inspect", "CONFIG"], "CONFIG is a file, not a folder."),
        (["score", "CONFIG", "--prompt", "a", "--completion", "b"], "CONFIG is a file, not a folder."),
        (["import", "none.csv", "--output", "CONFIG"], "--output: CONFIG is a file; an import writes a folder."),
        (["export", "none", "out"], "none: there is no such folder."),
        (["report", "none"], "none is no run folder: it holds no run.json."),
        (["import", "none.csv", "--output", "out", "--mapping", "none.yaml"], "none.yaml: there is no such file."),
    ],
)  # fmt: skip
def test_the_user_s_mistake_is_a_sentence_and_code_2(
    arguments: list[str], message: str, config: str, capsys: pytest.CaptureFixture[str]
):
    assert main([config if word == "CONFIG" else word for word in arguments]) == 2
    said = message.replace("{cwd}", str(Path.cwd()))
    said = said.replace("CONFIG is", f"{config} is")
    assert capsys.readouterr() == ("", said + "\n")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rnu"], ["No such command 'rnu'", "See `align --help`."]),
        (["run", "CONFIG", "--ony", "sft"], ["No such option: --ony", "See `align --help`."]),
        (["import", "a.csv", "--output", "o", "--kind", "x"], ["'--kind'", "'x' is not one of 'preferences', 'demonstrations', 'prompts', 'text'"]),
        (["import", "a.csv", "--output", "o", "--max-quarantined", "2"], ["max_quarantined is a share between 0 and 1, not 2.0."]),
        (["import", "a.csv", "--output", "o", "--limit", "0"], ["limit is a number of rows from 1 up, not 0."]),
        (["inspect", "a", "--rows", "x"], ["'--rows'", "integer"]),
        (["import", "none.csv", "--output", "OUT"], ["none.csv"]),
    ],
)  # fmt: skip
def test_usage_and_data_errors_are_one_line_and_code_2(
    arguments: list[str], parts: list[str], config: str, tmp_path: Path, capsys: Any
):
    places = {"CONFIG": config, "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/model.safetensors"), 1, "No space left while writing runs/a/model.safetensors; free some and run again."),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left; free some and run again."),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 1, "runs/a: Permission denied."),
        (KeyboardInterrupt(), 130, "Interrupted; run the same command again to go on."),
        (TypeError("boom."), 1, "TypeError: boom. Run it again with --debug for the traceback."),
    ],
)  # fmt: skip
def test_the_run_s_failure_is_a_sentence_and_its_code(
    pipeline: FakePipeline, config: str, error: BaseException, code: int, message: str, capsys: Any
):
    pipeline.error = error
    assert main(["run", config]) == code
    assert capsys.readouterr() == ("", message + "\n")


def test_only_a_run_says_that_it_goes_on(tmp_path: Path, monkeypatch: Any, capsys: Any):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("align.cli_data.show_folder", interrupted)
    assert main(["inspect", str(tmp_path)]) == 130
    assert capsys.readouterr() == ("", "Interrupted.\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "--device nonsense is no device; write cpu, cuda or cuda:0."),
        ("cuda:77", "--device cuda:77 cannot be used here: "),
    ],
)
def test_a_device_that_is_not_there_is_the_user_s_mistake(name: str, message: str):
    with pytest.raises(ConfigError) as raised:
        find_device(name)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
    assert find_device("cpu") == "cpu"


def test_a_failed_step_speaks_for_itself(pipeline: FakePipeline, config: str, capsys: Any):
    pipeline.error = pipeline.StepError("step sft failed: the loss is not finite at step 7.")
    assert main(["run", config]) == 1
    assert capsys.readouterr() == ("", "step sft failed: the loss is not finite at step 7.\n")


def test_the_traceback_comes_with_debug(pipeline: FakePipeline, config: str, capsys: Any):
    pipeline.error = TypeError("boom")
    assert main(["run", config, "--debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("TypeError: boom.\n")


# --- data ----------------------------------------------------------------------------------------

LABELS = """question,a,b,winner,who
What is 2+2?,4,5,1,ann
What is 3+3?,6,7,1,bob
What is 4+4?,9,8,2,ann
What is 5+5?,10,11,?,ann
"""


@pytest.fixture
def imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, str]:
    """A data folder made by `align import`, and what that printed."""
    (tmp_path / "labels.csv").write_text(LABELS)
    (tmp_path / "columns.yaml").write_text(
        "prompt: question\nresponses: [a, b]\nlabel: winner\nannotator: who\n"
        "labels: {1: first, 2: second}\n"
    )
    folder = tmp_path / "data"
    code = main(
        ["import", str(tmp_path / "labels.csv"), "--output", str(folder), "--mapping",
         str(tmp_path / "columns.yaml"), "--max-quarantined", "0.5"]
    )  # fmt: skip
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return folder, captured.out


def test_import_counts_rows_by_reason_label_and_annotator(imported: tuple[Path, str]):
    folder, printed = imported
    report = json.loads((folder / "import.json").read_text())
    assert (report["rows_in"], report["rows_out"], report["rows_quarantined"]) == (4, 3, 1)
    [reason] = report["by_reason"]
    table = lines(printed)
    assert table[0].startswith("4 rows in, 3 out, 1 quarantined (")
    for line in (
        "quarantined because rows",
        f"{reason} 1",
        "first 2",
        "second 1",
        "ann 2",
        "bob 1",
    ):
        assert line in table
    assert table.index("first 2") < table.index("second 1") < table.index("ann 2")


def test_inspect_shows_the_counts_and_the_first_rows(imported: tuple[Path, str], capsys: Any):
    folder, printed = imported
    assert main(["inspect", str(folder), "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(printed)
    assert "judgements.jsonl, row 2" in shown and "row 3" not in shown
    assert "What is 2+2?" in shown and "What is 4+4?" not in shown


def test_inspect_shows_the_facts_and_samples_of_a_step(tmp_path: Path, capsys: Any):
    Artifact(
        name="ppo", kind="ppo", path=tmp_path, fingerprint="abc", inputs={"sft": "1", "reward": "2"},
        base="some/base", seconds=75.0, rows=Rows(10, 9, 1), metrics={"objective/kl": 7.31},
        seed=17, versions={"torch": "2.13.0"},
    ).save()  # fmt: skip
    (tmp_path / "samples.jsonl").write_text('{"prompt": "hi [bold]", "score": 0.5, "note": null}\n')
    assert main(["inspect", str(tmp_path)]) == 0
    assert lines(capsys.readouterr().out) == [
        "step ppo",
        "kind ppo",
        "base some/base",
        "fingerprint abc",
        "made from sft, reward",
        "seed 17",
        "time 1 min 15 s",
        "rows 9 of 10",
        "versions torch 2.13.0",
        "objective/kl 7.3",
        "",
        "samples.jsonl, row 1",
        "prompt: hi [bold]",
        "score: 0.5",
    ]


def test_inspect_shows_the_table_of_a_run(tmp_path: Path, capsys: Any):
    summary = {"name": "small", "seconds": 1.0, "steps": {"sft": step("sft")}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert main(["inspect", str(tmp_path)]) == 0
    assert lines(capsys.readouterr().out)[1] == "sft sft 1 min 15 s 1,100 of 1,200"


def test_inspect_says_nothing_of_what_there_is_to_do(tmp_path: Path, capsys: Any):
    summary = {"name": "small", "seconds": 1.0, "steps": {"sft": step("sft", cached=True)}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert main(["inspect", str(tmp_path)]) == 0
    assert "Nothing to do" not in capsys.readouterr().out


def test_inspect_refuses_any_other_folder(tmp_path: Path, capsys: Any):
    assert main(["inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} is no data folder, step or finished run: it holds neither import.json, "
        "artifact.json nor summary.json.\n"
    )


def test_inspect_reports_the_quality_of_judgements(imported: tuple[Path, str], capsys: Any):
    """Three decided judgements, the first answer listed wins two; each pair has equal lengths."""
    folder, _ = imported
    assert main(["inspect", str(folder), "--rows", "0"]) == 0
    shown = lines(capsys.readouterr().out)
    assert "that put a response above another 3" in shown
    # (2/3 + 1.9207/3 ± 1.95996 · √(2/27 + 0.9604/9)) / 2.2805
    assert "the first response wins 66.7 % 20.8 to 93.9" in shown
    start = shown.index("Findings")
    assert shown[start + 1] == "warning: 1 of 4 rows could not be used (label_unknown 1)."
    assert shown[start + 2].startswith("Read quarantine.jsonl")
    assert shown[-1] != "" and not shown[-1].startswith("Page")


def test_inspect_writes_the_quality_page_where_it_is_told(
    imported: tuple[Path, str], tmp_path: Path, capsys: Any
):
    folder, _ = imported
    page = tmp_path / "pages" / "quality.html"
    assert main(["inspect", str(folder), "--html", str(page)]) == 0
    assert lines(capsys.readouterr().out)[-1] == f"Page: {page}"
    assert "1 of 4 rows could not be used" in page.read_text(encoding="utf-8")
    page.write_text("work")
    assert main(["inspect", str(folder), "--html", str(page)]) == 2
    assert capsys.readouterr().err == f"--html: {page} is there already; --force replaces it.\n"
    assert page.read_text() == "work"
    assert main(["inspect", str(folder), "--html", str(page), "--force"]) == 0
    assert "1 of 4 rows could not be used" in page.read_text(encoding="utf-8")


def test_inspect_prints_the_quality_as_json_alone(imported: tuple[Path, str], capsys: Any):
    folder, _ = imported
    assert main(["inspect", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["counts"]["judgements"], report["imported"]["rows_in"]) == (3, 4)
    assert report["truncation"] is None


def test_inspect_counts_what_is_too_long_for_a_base(
    imported: tuple[Path, str], tiny_folder: Path, capsys: Any
):
    folder, _ = imported
    base = ["--base", str(tiny_folder)]
    assert main(["inspect", str(folder), *base, "--max-length", "1", "--json"]) == 0
    lost = json.loads(capsys.readouterr().out)["truncation"]
    assert (lost["judgements"], lost["too_long"], lost["answer_lost"]) == (3, 3, 3)
    longest = str(lost["longest"])
    assert main(["inspect", str(folder), *base, "--max-length", longest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncation"]["too_long"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-length", "9"], "--base and --max-length go together; give both or neither."),
        (["--base", "x"], "--base and --max-length go together; give both or neither."),
        (["--force"], "--force has no effect without --html; leave it out."),
        (["--json"], "FOLDER holds no judgements, so that there is no quality to report."),
        (["--html", "x"], "FOLDER holds no judgements, so that there is no quality to report."),
    ],
)
def test_inspect_says_which_options_do_not_fit(
    tmp_path: Path, options: list[str], message: str, capsys: Any
):
    assert main(["inspect", str(tmp_path), *options]) == 2
    assert capsys.readouterr() == ("", message.replace("FOLDER", str(tmp_path)) + "\n")


# --- models --------------------------------------------------------------------------------------


def test_export_calls_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    calls: list[Any] = []
    module = types.ModuleType("align.stages.export")
    module.__dict__["export_folder"] = lambda *arguments: calls.append(arguments)
    monkeypatch.setitem(sys.modules, "align.stages.export", module)
    assert main(["export", str(tmp_path), str(tmp_path / "out"), "--merge"]) == 0
    assert calls == [(tmp_path, tmp_path / "out", True, None)]
    assert capsys.readouterr().out == f"Exported: {tmp_path / 'out'}\n"


def test_report_is_written_into_the_run(tmp_path: Path, capsys: Any):
    (tmp_path / "run.json").write_text('{"name": "small", "config": {}, "command": "align run"}')
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Report: {tmp_path / 'report.html'}\n"
    assert "small" in (tmp_path / "report.html").read_text()


# --- the rest ------------------------------------------------------------------------------------


def test_schema_is_the_configuration_s(capsys: Any):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


def test_version(capsys: Any):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"align {align.__version__}\n"


def test_help_names_every_command(capsys: Any):
    assert main([]) == 0
    shown = lines(capsys.readouterr().out)
    names = [
        "run",
        "plan",
        "import",
        "convert",
        "inspect",
        "score",
        "serve-reward",
        "benchmark",
        "select",
        "chat",
        "export",
        "report",
        "compare",
        "dashboard",
        "schema",
    ]
    commands = shown[shown.index("Commands:") + 1 :]
    assert [line.split()[0] for line in commands if line] == names


def test_the_package_offers_the_pipeline_and_nothing_that_it_has_not(pipeline: FakePipeline):
    assert align.Pipeline is sys.modules["align.pipeline"].Pipeline
    with pytest.raises(AttributeError, match="module 'align' has no attribute 'Pipline'"):
        align.Pipline  # noqa: B018


# --- convert -------------------------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A data folder: a training pair, a test pair, and a strong pair without a side."""
    lines = ["p,x,y,A,train,0.2", "q,x,y,B,test,0.9", "r,x,y,A,,0.9"]
    table = "\n".join(["prompt,response_a,response_b,label,split,strength", *lines, ""])
    (tmp_path / "labels.csv").write_text(table)
    command = ["import", str(tmp_path / "labels.csv"), "--output", str(tmp_path / "data")]
    assert main(command) == 0
    return tmp_path / "data"


def converted(folder: Path, *options: str) -> list[dict[str, Any]]:
    output = folder / "rows.jsonl"
    assert main(["convert", str(folder), str(output), "--force", *options]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_convert_marks_what_is_held_out_and_says_so(judged: Path, capsys: Any):
    capsys.readouterr()
    assert [row["split"] for row in converted(judged)] == ["train", "test", None]
    assert capsys.readouterr().out.splitlines() == [
        f"3 rows: {judged / 'rows.jsonl'}",
        "1 of them is held out: their column split says test or validation. --split train leaves "
        "them out.",
    ]
    assert [row["split"] for row in converted(judged, "--split", "train")] == ["train", None]
    assert [row["split"] for row in converted(judged, "--split", "test")] == ["test"]
    assert "held out" not in capsys.readouterr().out


def test_convert_replaces_a_file_only_where_that_is_said(judged: Path, capsys: Any):
    """Those of the data folder itself not even then."""
    output, own = judged / "rows.jsonl", judged / "judgements.jsonl"
    output.write_text("work")
    before = own.read_bytes()
    capsys.readouterr()
    assert main(["convert", str(judged), str(output)]) == 2
    assert capsys.readouterr().err == f"OUTPUT: {output} is there already; --force replaces it.\n"
    assert main(["convert", str(judged), str(own), "--force"]) == 2
    assert capsys.readouterr().err == (
        f"OUTPUT: {own} is the data folder's own; name another file.\n"
    )
    assert (output.read_text(), own.read_bytes()) == ("work", before)
    assert len(converted(judged)) == 3


def test_import_replaces_an_earlier_one_only_where_that_is_said(
    judged: Path, tmp_path: Path, capsys: Any
):
    command = ["import", str(tmp_path / "labels.csv"), "--output", str(judged)]
    before = (judged / "judgements.jsonl").read_bytes()
    (tmp_path / "labels.csv").write_text("prompt,response_a,response_b,label\np,x,y,A\n")
    capsys.readouterr()
    assert main(command) == 2
    there = judged / "import.json"
    assert capsys.readouterr().err == f"--output: {there} is there already; --force replaces it.\n"
    assert (judged / "judgements.jsonl").read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert capsys.readouterr().out.startswith("1 row in, 1 out, 0 quarantined")


def test_an_import_that_failed_can_be_repeated(tmp_path: Path):
    (tmp_path / "labels.csv").write_text("prompt,response_a,response_b,label\np,x,y,C\n")
    command = ["import", str(tmp_path / "labels.csv"), "--output", str(tmp_path / "data")]
    assert main(command) == 2
    (tmp_path / "labels.csv").write_text("prompt,response_a,response_b,label\np,x,y,A\n")
    assert main(command) == 0


def test_convert_leaves_out_what_is_weaker(judged: Path):
    rows = converted(judged, "--min-strength", "0.5")
    assert [row["prompt"][0]["content"] for row in rows] == ["q", "r"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "--seed draws for --max-pairs-per-prompt; give both, or leave it out."),
        (
            ["--view", "listwise", "--min-strength", "0.5"],
            "min_strength has no effect on listwise, only on preference.",
        ),
        (
            ["--view", "openai"],
            "Some judgements are held out, and the rows of openai have no column to say so. Leave "
            "them out with --split train, or take them with --split all.",
        ),
    ],
)
def test_convert_refuses_what_would_have_no_effect_or_not_be_seen(
    judged: Path, options: list[str], message: str, capsys: Any
):
    capsys.readouterr()
    assert main(["convert", str(judged), str(judged / "rows.jsonl"), *options]) == 2
    assert capsys.readouterr() == ("", message + "\n")
    assert not (judged / "rows.jsonl").exists()
