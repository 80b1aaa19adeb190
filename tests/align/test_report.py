"""The report page, read back as a browser would: from a run folder made here, with no network."""

from __future__ import annotations

import base64
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from run_folders import EVALUATION, HOSTILE, make_run, report_card, write_lines, write_object

from align.report import (
    counts,
    disagreements,
    judge_table,
    policy_table,
    report_failure,
    write_report,
)
from align.report_samples import first_and_last, side_by_side
from align.summary import (
    WinRate,
    duration,
    headline_metrics,
    number,
    read_run,
    rewind,
    short,
    win_rates,
)

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a browser would load and show; fails on tags that do not close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def images(self) -> dict[str, str]:
        return {
            str(attributes["alt"]): str(attributes["src"])
            for tag, attributes in self.tags
            if tag == "img"
        }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(make_run(tmp_path_factory.mktemp("run"))))


def test_page_loads_nothing(page: Page):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert not {name for name in attributes if name.startswith("on")}
        assert str(attributes.get("src", "data:")).startswith("data:")
        assert str(attributes.get("href", "#")).startswith("#")
    style = page.source.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def test_links_lead_to_sections_that_exist(page: Page):
    ids = {attributes.get("id") for _, attributes in page.tags}
    links = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "a"}
    assert {"result", "data", "step-ppo", "step-evaluate"} <= links <= ids


def test_headline_numbers_and_verdicts(page: Page):
    result = page.text.split("Pipeline Step Kind")[0]
    assert "gold prefers ppo to sft on 91 % of the held-out prompts" in result
    assert "(95 % interval 88 to 94 %)" in result
    assert "gold ppo vs sft 0.91 [0.88, 0.94] better" in result
    assert "reward dpo vs sft 0.52 [0.45, 0.59] no clear difference" in result
    assert "reward ppo vs sft 0.31 [0.25, 0.37] worse" in result
    forest = next(uri for alt, uri in page.images().items() if alt.startswith("Win rates"))
    assert {"ppo vs sft", "dpo vs sft", "gold", "reward"} <= svg_words(forest)


def test_the_headline_is_of_the_best_policy(tmp_path: Path):
    """Not of the one that the config names first, nor of another judge."""
    folder = make_run(tmp_path)
    path = folder / "evaluate/artifact.json"
    artifact = json.loads(path.read_text(encoding="utf-8"))
    artifact["metrics"] = {
        "evaluate/reward/win_rate/dpo_vs_sft": 0.99,
        "evaluate/gold/win_rate/dpo_vs_sft": 0.83,
        "evaluate/gold/win_rate/ppo_vs_sft": 0.93,
        "evaluate/gold/win_rate/ppo_vs_sft_low": 0.9,
    }
    write_object(path, artifact)
    assert "gold prefers ppo to sft on 93 %" in Page(write_report(folder)).text


def svg_words(uri: str) -> set[str]:
    """The text of a figure, which must be well-formed XML."""
    root = ElementTree.fromstring(base64.b64decode(uri.partition("base64,")[2]))
    return {(node.text or "").strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}


def test_pipeline_table_tells_time_rows_and_what_was_reused(page: Page):
    assert "took 8 min 32 s" in page.text
    assert "Started 21 September 2026, 14:13 UTC" in page.text  # 1 790 000 001
    assert "sft sft cached 40 s 1,000 (10 quarantined) loss 1.8 base, data.labels" in page.text
    assert "ppo ppo ran 5 min 12 s 1,000 (10 quarantined) kl 7.3, score 2.1" in page.text


def with_memory(folder: Path, sizes: dict[str, dict[str, float]]) -> str:
    """The text of a page of steps that held so many MiB."""
    make_run(folder)
    for step, held in sizes.items():
        path = folder / step / "artifact.json"
        record = json.loads(path.read_text())
        record["metrics"] |= {f"memory/{name}": size * 2**20 for name, size in held.items()}
        write_object(path, record)
    return Page(write_report(folder)).text


def test_what_each_step_held_is_a_table(page: Page, tmp_path: Path):
    """On a CPU the parts are added up, 12 + 1 + 2 MiB; on a GPU there is a peak, 2,048 MiB."""
    assert "Memory on a device" not in page.text
    trained = {"parameters": 12.0, "gradients": 1.0, "optimizer": 2.0}
    text = with_memory(tmp_path / "cpu", {"sft": trained, "ppo": {"parameters": 20.5}})
    assert (
        "Memory on a device Step Weights Gradients Optimiser states Together "
        "sft 12.0 MiB 1.0 MiB 2.0 MiB 15.0 MiB ppo 20.5 MiB – – 20.5 MiB Activations are not in it"
    ) in text
    text = with_memory(
        tmp_path / "gpu", {"sft": {**trained, "peak": 2048.0}, "evaluate": {"peak": 300.0}}
    )
    assert (
        "Step Weights Gradients Optimiser states Peak sft 12.0 MiB 1.0 MiB 2.0 MiB 2.0 GiB "
        "evaluate – – – 300.0 MiB The peak is the most"
    ) in text


def test_curves_show_first_and_last_value_and_name_their_lines(page: Page):
    images = page.images()
    assert "KL to the reference: 0.073 → 7.3" in images
    assert "Margin: 0.025 → 1" in images
    score = next(uri for alt, uri in images.items() if alt.startswith("Score and reward"))
    assert {"score", "reward", "iteration"} <= svg_words(score)
    clip = next(uri for alt, uri in images.items() if alt.startswith("Clip fraction"))
    assert {"policy", "value"} <= svg_words(clip)


def test_metric_without_a_number_gives_no_chart(page: Page):
    assert not any("Explained variance" in alt for alt in page.images())


def test_data_accounts_for_every_row(page: Page):
    assert "2,431 rows in, 2,400 out, 31 quarantined, from labels.csv read as pairs" in page.text
    assert "empty answer 20 same answers 11" in page.text
    assert "A 1,201 B 1,100 tie 99" in page.text
    assert "31 rows name no annotator." in page.text


def test_samples_show_gains_first_and_losses_too(page: Page):
    assert "higher on 15 prompts, lower on 4 and equal on 1" in page.text
    shown = page.text.split("The same prompt, before and after")[1].split("after ")[1:]
    # Gains 1.5 … 1.0; then of the ten left (0.0 … 0.9) the middle two; then the losses.
    assert [int(text.split()[0]) for text in shown] == [19, 18, 17, 16, 15, 14, 9, 8, 0, 1, 2, 3]
    assert page.text.index("Largest gains") < page.text.index("before 19")


def test_worst_mistakes_and_how_to_run_again(page: Page):
    mistakes = page.text.split("Its worst mistakes")[1]
    assert "people chose -1.5 It flows. people rejected 2.25 No." in mistakes
    assert "align run configs/rivers.yaml seed=3" in page.text
    assert "torch 2.13.0, transformers 5.23.0" in page.text
    assert "seed: 3" in page.text


def test_the_report_card_says_what_its_numbers_say(page: Page):
    """3 of 4 right; the longer answer wins 2 and loses 1 of 4, half of the equal pair: .625, so
    that the model is .125 above it. Nobody would call that clear, of four pairs."""
    card = page.text.split("Report card")[1].split("Its worst mistakes")[0]
    assert "Accuracy 0.75 [" in card and "on 4 held-out pairs of 4 prompts" in card
    assert "Length alone 0.62 [" in card and "always the longer answer" in card
    assert "Above length alone 0.12 [" in card
    assert "is not clearly better than always taking the longer answer" in card
    assert "1 pair that people found equal, 20 % of all" in card
    assert "could not learn 64 pairs by heart: after 200 steps" in card
    assert "Two people who judged the same pair agree in 1.00 [0.21, 1.00]" in card  # Wilson's
    images = page.images()
    assert "Reliability: ECE" in " ".join(images)
    scores = next(uri for alt, uri in images.items() if alt.startswith("Scores: 1.25 and 0.00"))
    assert {"chosen", "rejected", "training"} <= svg_words(scores)
    length = next(uri for alt, uri in images.items() if alt.startswith("Accuracy by length"))
    assert {"model", "length"} <= svg_words(length)


@pytest.mark.parametrize("card", [{"format": 99}, {"format": 1, "side": "held-out"}, {}])
def test_a_card_of_another_form_is_left_out(tmp_path: Path, card: dict[str, Any]):
    folder = make_run(tmp_path)
    write_object(folder / "reward/report_card.json", card)
    assert "Report card" not in Page(write_report(folder)).text


def test_long_answers_are_folded(tmp_path: Path):
    folder = make_run(tmp_path)
    pair = {"chosen": "x" * 701, "rejected": "No.", "chosen_score": 0, "rejected_score": 1}
    write_lines(folder / "reward/samples.jsonl", [{"prompt": "p", **pair}])
    text = Page(write_report(folder)).text
    assert "x" * 600 + " … All 701 characters " + "x" * 701 in text


def test_text_from_data_is_escaped(tmp_path: Path):
    folder = make_run(tmp_path, prompt=HOSTILE)
    imported = json.loads((folder / "data/labels/import.json").read_text())
    imported["by_annotator"] = {HOSTILE: 3}
    imported["notes"] = [HOSTILE]
    write_object(folder / "data/labels/import.json", imported)
    write_object(folder / "reward/report_card.json", report_card(who=HOSTILE))
    page = Page(write_report(folder))
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    # Shown as it was written: 12 prompts side by side, a mistake, ppo samples, annotator, note, and
    # the annotator in the report card.
    assert page.text.count("<script>alert(1)</script>") == 12 + 1 + 2 + 1 + 1 + 1


def test_names_are_escaped_too(tmp_path: Path):
    """Of the run, a data folder and a step; and what the configuration and the command say."""
    name = '"><img src=x onerror=alert(3)>'
    folder = make_run(tmp_path)
    (folder / "data/labels").rename(folder / "data" / name)
    (folder / "sft").rename(folder / name)
    record = json.loads((folder / "run.json").read_text())
    steps = {name if step == "sft" else step: s for step, s in record["config"]["steps"].items()}
    config = {**record["config"], "steps": steps, "data": {name: {"path": HOSTILE}}}
    write_object(folder / "run.json", {"name": HOSTILE, "command": HOSTILE, "config": config})
    page = Page(write_report(folder))
    assert not {"script", "link"} & {tag for tag, _ in page.tags}
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert all(str(attributes["src"]).startswith("data:") for tag, attributes in page.tags
               if tag == "img")  # fmt: skip
    # Title, heading, command, the path in the configuration; the names, among others, in the graph.
    assert page.text.count("<script>alert(1)</script>") == 4
    assert page.text.count(name) > 6


def test_same_folder_gives_the_same_bytes_and_no_global_style(tmp_path: Path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    first = write_report(make_run(tmp_path)).read_bytes()
    assert write_report(tmp_path).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_empty_folder_gives_a_page(tmp_path: Path):
    page = Page(write_report(tmp_path / "nothing"))
    assert "This folder holds no step." in page.text
    assert "No evaluation has a result" in page.text


def test_unfinished_run_says_what_is_missing(tmp_path: Path):
    folder = make_run(tmp_path)
    for gone in ("summary.json", "ppo/artifact.json", "evaluate/artifact.json"):
        (folder / gone).unlink()
    (folder / "evaluate/samples.jsonl").unlink()
    (folder / "evaluate").rmdir()
    page = Page(write_report(folder))
    assert "This run is not finished: no result yet from ppo, evaluate." in page.text
    assert "ppo ppo unfinished" in page.text and "evaluate evaluate not run" in page.text
    assert "KL to the reference: 0.073 → 7.3" in page.images()


def test_a_run_that_failed_says_where_and_why(tmp_path: Path):
    folder = make_run(tmp_path)
    (folder / "ppo/artifact.json").unlink()
    report_failure(folder, "ppo", RuntimeError(f"step ppo failed: {HOSTILE}"))
    page = Page(folder / "report.html")
    assert f"This run failed in ppo: {HOSTILE}" in page.text
    assert "ppo ppo failed" in page.text
    assert "no result yet from ppo." in page.text
    assert json.loads((folder / "run.json").read_text())["command"].startswith("align run")
    assert "ppo, failed" in page.source  # in the drawing, too


def test_a_step_that_was_done_since_did_not_fail(tmp_path: Path):
    folder = make_run(tmp_path)
    report_failure(folder, "ppo", RuntimeError("step ppo failed"))
    assert "failed" not in Page(folder / "report.html").text


def test_what_an_earlier_run_made_of_a_step_is_no_result(tmp_path: Path):
    """The summary still tells the win rates of an evaluation whose artifact is gone."""
    folder = make_run(tmp_path)
    (folder / "evaluate/artifact.json").unlink()
    page = Page(write_report(folder))
    assert "No evaluation has a result yet" in page.text
    assert "gold prefers" not in page.text


def test_broken_files_are_named_and_the_rest_is_shown(tmp_path: Path):
    folder = make_run(tmp_path)
    (folder / "reward/artifact.json").write_text("{")
    with (folder / "ppo/metrics.jsonl").open("a") as file:
        file.write('{"step": 101, "objective/kl": NaN}\n{"step": 102, "obje')
    page = Page(write_report(folder))
    assert "reward/artifact.json is no readable JSON object." in page.text
    assert "ppo/metrics.jsonl: 1 of 102 lines unreadable." in page.text
    assert "KL to the reference: 0.073 → 7.3" in page.images()


@pytest.mark.parametrize("name", ["run.json", "summary.json", "sft/artifact.json"])
def test_any_shape_of_json_gives_a_page(tmp_path: Path, name: str):
    folder = make_run(tmp_path)
    write_object(folder / name, {"steps": [1], "config": "text", "metrics": [], "rows": 3,
                                 "seconds": "soon", "versions": None})  # fmt: skip
    Page(write_report(folder))


def test_completion_that_is_no_utf8_is_shown_with_a_question_mark(tmp_path: Path):
    folder = make_run(tmp_path)
    (folder / "ppo/samples.jsonl").write_text(
        '{"step": 1, "prompt": "p", "completion": "a\\ud800b"}'
    )
    assert "a?b" in Page(write_report(folder)).text


# --- the parts -----------------------------------------------------------------------------------


def test_rewind_keeps_the_run_that_counts():
    """Steps 1 2 3 4, killed, resumed from the checkpoint at 2: the second 3 and 4 replace them."""
    lines = [{"step": s, "v": v} for s, v in [(1, 1), (2, 2), (3, 3), (4, 4), (3, 30), (4, 40)]]
    assert [line["v"] for line in rewind(lines)] == [1, 2, 30, 40]
    # Two lines of one step (training, then evaluation) are both kept.
    assert len(rewind([{"step": 5, "a": 1}, {"step": 5, "b": 1}])) == 2


def test_side_by_side_takes_the_baseline_from_the_configuration(tmp_path: Path):
    step = next(step for step in read_run(make_run(tmp_path)).steps if step.name == "evaluate")
    compared = side_by_side(step)
    assert compared is not None
    best = compared.groups[0][1][0]
    assert list(best.answers) == ["sft", "ppo"]  # although ppo comes first in the file
    assert best.gain == pytest.approx(1.5) and best.best == "ppo"
    worst = compared.groups[-1][1][0]
    assert worst.gain == pytest.approx(-0.4) and worst.best == "sft"


def test_side_by_side_averages_several_policies(tmp_path: Path):
    """Gain = mean(1.0, 0.4) - 0.5 = 0.2 by the only judge, whatever its name."""
    scores = {"sft": 0.5, "ppo": 1.0, "dpo": 0.4}
    write_lines(
        tmp_path / "evaluate/samples.jsonl",
        [{"prompt": "p", "policy": p, "completion": "c", "rm": s} for p, s in scores.items()],
    )
    write_object(tmp_path / "run.json", {"config": {"steps": {"evaluate": {"kind": "evaluate"}}}})
    compared = side_by_side(read_run(tmp_path).steps[0])
    assert compared is not None and compared.judge == "rm" and compared.baseline == "sft"
    assert compared.groups[0][1][0].gain == pytest.approx(0.2)


def test_an_evaluation_tells_policies_and_judges_apart(tmp_path: Path):
    """`accuracy` is no policy, and a policy may be called `reward`."""
    metrics = {
        "evaluate/gold/score/reward": 1.5, "evaluate/kl/reward": 4.0, "evaluate/kl/sft": 0.0,
        "evaluate/rm/accuracy": 0.8, "evaluate/rm/accuracy_low": 0.7,
        "evaluate/rm/accuracy_high": 0.9, "evaluate/rm/gold_correlation": 0.5,
        "evaluate/gold/win_rate/reward_vs_sft": 0.6,
    }  # fmt: skip
    write_object(tmp_path / "evaluate/artifact.json", {"kind": "evaluate", "metrics": metrics})
    step = read_run(tmp_path).steps[0]
    assert policy_table(step) == (
        ["kl", "gold score"], {"sft": {"kl": 0.0}, "reward": {"gold score": 1.5, "kl": 4.0}},
    )  # fmt: skip
    assert judge_table(step) == [
        ("rm", "accuracy", "0.8 [0.7, 0.9]"), ("rm", "gold correlation", "0.5"),
    ]  # fmt: skip


def test_counts_lose_nothing():
    found = counts({str(i): i for i in range(1, 21)}, limit=5)
    assert [name for name, _, _ in found] == ["20", "19", "18", "17", "16 others"]
    assert sum(count for _, count, _ in found) == 210
    assert [share for _, _, share in found] == [1, 0.95, 0.9, 0.85, None]


def test_disagreement_with_gold_is_named():
    def rate(judge: str, policy: str, low: float) -> WinRate:
        return WinRate(judge, policy, "sft", low + 0.05, low, low + 0.1)

    rates = [rate("gold", "ppo", 0.46), rate("gold", "dpo", 0.7), rate("rm", "ppo", 0.8)]
    remarks = disagreements([*rates, rate("rm", "dpo", 0.8)])
    assert len(remarks) == 1 and remarks[0].startswith("rm prefers ppo to sft, but gold does not")
    assert disagreements([rate("rm", "ppo", 0.8)]) == []  # nothing to disagree with


def test_steps_are_found_without_a_configuration(tmp_path: Path):
    folder = make_run(tmp_path)
    (folder / "run.json").unlink()
    (folder / "summary.json").unlink()
    assert {step.name: step.state for step in read_run(folder).steps} == dict.fromkeys(
        ["sft", "reward", "dpo", "ppo", "evaluate"], "ran"
    )


def test_first_and_last_samples_are_not_picked():
    rows = [{"step": s, "i": i} for s in (1, 2, 9) for i in range(4)]
    found = first_and_last(rows, each=2)
    assert [(end, [row["i"] for row in shown]) for end, shown in found] == [
        (1, [0, 1]), (9, [0, 1]),
    ]  # fmt: skip
    assert first_and_last([{"i": 1}]) == [(None, [{"i": 1}])] and first_and_last([]) == []


def test_headlines():
    assert headline_metrics("ppo", {"objective/kl": 7.31, "objective/score": 2.1}) == (
        "kl 7.3, score 2.1"
    )
    assert headline_metrics("reward", {"reward/accuracy": 0.861}) == "accuracy 0.86"
    assert headline_metrics("evaluate", EVALUATION).startswith("gold ppo_vs_sft 0.91 [0.88, 0.94];")
    assert headline_metrics("export", {"tensors": 3}) == ""


def test_win_rates_put_gold_first_and_keep_a_policy_called_low():
    metrics = {
        "evaluate/judges/len.py:score/win_rate/a_vs_b": 0.6,
        "evaluate/gold/win_rate/a_vs_b_low": 0.7,
    }
    rates = win_rates(metrics)
    assert [(r.judge, r.policy, r.baseline, r.low) for r in rates] == [
        ("gold", "a", "b_low", None),
        ("judges/len.py:score", "a", "b", None),
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(4.21, "4.2 s"), (59.7, "1 min 0 s"), (192, "3 min 12 s"), (7500, "2 h 5 min"), (None, "–")],
)
def test_duration(seconds: float | None, words: str):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "precise", "brief"),
    [(0.0312, "0.0312", "0.03"), (12345.6, "12,346", "12,346"), (2.0, "2", "2.0"),
     (123.4, "123", "123"), (1e-4, "0.0001", "1.0e-04"), (math.nan, "–", "–")],
)  # fmt: skip
def test_numbers(value: float, precise: str, brief: str):
    assert (number(value), short(value)) == (precise, brief)
