"""The figure of score and judge, and the doctor's findings on the page."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from align.report import write_report
from align.report_ppo import gains, over_optimisation


def tent(lines: int = 41) -> list[dict[str, Any]]:
    """A score that rises by 0.1 an iteration, a judge that rises to iteration 21 and falls, and a
    KL so that d = 0.1, 0.2, 0.3 and so on."""
    return [
        {
            "step": i,
            "objective/kl": (i / 10) ** 2,
            "objective/score": i / 10,
            "judge/score": 3 - abs(i - 21) / 10,
        }
        for i in range(1, lines + 1)
    ]


def words(uri: str) -> set[str]:
    root = ElementTree.fromstring(base64.b64decode(uri.partition("base64,")[2]))
    return {(node.text or "").strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}


def test_gains_are_shares_of_the_largest_running_mean():
    """From 1 to a last mean of (5 + 5 + 5 + 5 + 5) / 5: the scale is 4."""
    found = gains("score", [0.0] * 8, [1, 3, 3, 5, 5, 5, 5, 5])
    assert found.values == [0, 0.5, 0.5, 1, 1, 1, 1, 1]
    assert found.label == "score 1 → 5"
    assert found.curve == []


def test_the_curve_goes_through_points_of_gaos_form():
    """Gains of d (2 - 0.8 log d), 1 at their start; the curve is 0 at 0 and passes through them."""
    d = [0.1 * i for i in range(31)]
    values = [1 + x * (2 - 0.8 * math.log(x)) if x else 1.0 for x in d]
    found = gains("judge", d, values)
    assert found.curve[0] == pytest.approx((0, 0), abs=1e-9)
    by_distance = {round(x, 6): y for x, y in found.curve}
    for x, y in list(zip(d, found.values, strict=True))[1:]:
        assert by_distance[round(x, 6)] == pytest.approx(y, abs=1e-6)


def test_the_figure_names_the_iteration_where_they_part():
    found = over_optimisation(tent())
    assert found is not None and found.parted_at == 21
    assert "They part at iteration 21, at a KL of 4.41 nats" in found.words
    assert {"iteration 21", "score 0.1 → 3.9", "judge 1 → 1.2"} <= words(found.uri)


def test_the_figure_says_that_they_do_not_part():
    found = over_optimisation(tent(20))
    assert found is not None and found.parted_at is None
    assert found.words.endswith("They do not part: where the score rises, the judge does not "
                                "clearly fall.")  # fmt: skip
    assert not any(word.startswith("iteration") for word in words(found.uri))


def test_there_is_no_figure_without_a_judge_or_from_a_few_lines():
    assert over_optimisation([{"step": 1, "objective/kl": 0.0}] * 30) is None
    assert over_optimisation(tent(5)) is None
    assert over_optimisation([{**row, "judge/score": None} for row in tent()]) is None


def test_the_page_has_the_figure_and_the_findings(tmp_path: Path):
    folder = tmp_path / "ppo"
    folder.mkdir()
    steps = {"ppo": {"kind": "ppo"}}
    (tmp_path / "run.json").write_text(json.dumps({"name": "far", "config": {"steps": steps}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tent()))
    finding = {"name": "same_replies", "step": 12, "until": 20, "text": "<b>so</b>; raise it."}
    (folder / "findings.json").write_text(json.dumps({"findings": [finding]}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    said = "ppo, iterations 12 to 20: same replies: &lt;b&gt;so&lt;/b&gt;; raise it."
    assert page.index("<h2>Result</h2>") < page.index(said) < page.index("<h2>Pipeline</h2>")
    assert 'alt="Over-optimisation: score 0.1 → 3.9; judge 1 → 1.2. They part at' in page
    assert "Judge: 1 → 1" in page
