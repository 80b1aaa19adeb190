"""The metric modules for Hugging Face `evaluate`, and the numbers behind them, by hand.

No network: the modules are loaded from the folder, with caches in a temporary one.
"""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from by_path import load_module

from align import metrics
from align.metrics.replies import distinct_n, win_rate
from align.ppo_metrics import describe
from reward_models.calibration import (
    brier,
    expected_calibration_error,
    mean,
    named,
    reward_accuracy,
)
from reward_models.report_card import Judged, report_card

SCORES = np.random.default_rng(0).normal(size=(2, 40)).round(1)  # with a few ties
WEIGHTS = np.tile([1.0, 0.5, 0.5, 2.0], 10)
PROMPTS = np.arange(40) // 2


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `evaluate` writes goes here, not into the user's home."""
    import evaluate

    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", folder / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder / "metrics")
        patch.setattr(sys, "path", list(sys.path))
        yield folder


# --- the numbers ---------------------------------------------------------------------------------


def test_win_rate_by_hand():
    """2 > 0 wins, 1 = 1 is half a win, 0 < 3 loses, 5 > 4 wins: 2.5 / 4."""
    found = win_rate(np.array([2.0, 1, 0, 5]), np.array([0.0, 1, 3, 4]), seed=0)
    assert found.value == pytest.approx(0.625, abs=1e-12)
    assert 0 <= found.low < 0.625 < found.high <= 1


def test_win_rates_of_two_policies_sum_to_one():
    """What is a win for one is a defeat for the other, and a tie half for both; the draws are the
    same, so that the ends of the intervals change places."""
    ours, theirs = win_rate(*SCORES, seed=3), win_rate(*SCORES[::-1], seed=3)
    assert ours.value + theirs.value == pytest.approx(1, abs=1e-12)
    assert ours.low + theirs.high == pytest.approx(1, abs=1e-12)
    assert (SCORES[0] == SCORES[1]).any()
    assert win_rate(*SCORES, seed=4).low != ours.low or win_rate(*SCORES, seed=5).low != ours.low


def test_the_interval_of_a_win_rate_is_that_of_a_share():
    """500 wins of 1,000: 0.5 -+ 1.96 sqrt(.25 / 1000) = [.469, .531], to a resolution of .001."""
    policy = np.tile([1.0, -1.0], 500)
    found = win_rate(policy, np.zeros(1000), seed=0, resamples=4000)
    assert (found.low, found.high) == pytest.approx((0.469, 0.531), abs=0.004)


def test_a_few_wins_in_a_row_are_not_certain():
    """Wilson's interval of 5 wins of 5: from 5 / (5 + 1.96²) = .565518 to 1; every bootstrap sample
    of five wins is five wins. Of a single prompt nothing is known: 1 / (1 + 1.96²) = .206549."""
    five, one = (win_rate(np.ones(n), np.zeros(n), seed=0) for n in (5, 1))
    assert (five.value, five.low, five.high) == pytest.approx((1, 0.565518, 1), abs=1e-5)
    assert (one.value, one.low, one.high) == pytest.approx((1, 0.206549, 1), abs=1e-5)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, 4 / 8),  # a b c a | a b d c: a b c d
        (2, 5 / 6),  # ab bc ca | ab bd dc: ab twice
        (3, 4 / 4),
        (4, 2 / 2),
        (5, 0.0),  # no reply is as long
    ],
)
def test_distinct_n_by_hand(n: int, expected: float):
    words = ["a b c a", "a  b\nd c"]
    tokens = [(1, 2, 3, 1), [1, 2, 4, 3]]
    assert distinct_n(words, n) == distinct_n(tokens, n) == pytest.approx(expected, abs=1e-12)
    assert distinct_n(words[::-1], n) == distinct_n(words, n)


def test_no_n_gram_reaches_into_the_next_reply():
    """ab | ab: one bigram of two. In one text, ab ba ab would be two of three."""
    assert distinct_n(["a b", "a b"], 2) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3, abs=1e-12)


def test_ppo_counts_as_the_metric_does():
    """Replies 1 2 3 and 1 2: bigrams 12 23 12, two different ones of three."""
    samples = [
        SimpleNamespace(group=SimpleNamespace(completions=(ids,))) for ids in [(1, 2, 3), (1, 2)]
    ]
    ones = torch.ones(2, 3)
    rollout: Any = SimpleNamespace(
        samples=samples, kl=ones[:, 0], logprobs=ones, reference=ones, mask=ones.bool(),
        scores=ones[:, 0], score_parts={}, ended=ones[:, 0], values=None,
    )  # fmt: skip
    found = describe(rollout, ones, None)["response/distinct_2"]
    assert found == pytest.approx(2 / 3, abs=1e-12)


def test_reward_accuracy_by_hand():
    """Margins 1, -2, 0, 3 with weights 1, 1, 1, 1/2: (1 + 0 + 1/2 + 1/2) / 3.5 = 4/7."""
    margins, weights = np.array([1.0, -2, 0, 3]), np.array([1.0, 1, 1, 0.5])
    found = reward_accuracy(margins, weights, np.arange(4), seed=0)
    assert found.value == pytest.approx(4 / 7, abs=1e-12)
    mirrored = reward_accuracy(-margins, weights, np.arange(4), seed=0)
    assert mirrored.value == pytest.approx(3 / 7, abs=1e-12)


def test_a_ranking_counts_as_one_judgement():
    """Six pairs of one ranking, all right, with 1/6 each, and a pair that is wrong: one of two
    judgements. Counting pairs would say 6/7."""
    margins, weights = np.array([1.0] * 6 + [-1.0]), np.array([1 / 6] * 6 + [1.0])
    clusters = np.array([0] * 6 + [1])
    assert reward_accuracy(margins, weights, clusters, 0).value == pytest.approx(0.5, abs=1e-12)


def test_the_report_card_measures_the_same():
    """Accuracy with its interval, ECE and Brier of a card are those of the modules."""
    chosen, rejected = SCORES
    judged = Judged(
        scores=SCORES.T.ravel(), lengths=np.ones(80), prompts=np.repeat(PROMPTS, 2),
        better=np.arange(0, 80, 2), worse=np.arange(1, 80, 2), weights=WEIGHTS, labels=np.ones(40),
        ties=np.zeros((0, 2), dtype=int),
    )  # fmt: skip
    card = report_card(judged, judged, seed=7)
    accuracy = metrics.load("reward_accuracy").compute(
        predictions=chosen, references=rejected, weights=WEIGHTS, clusters=PROMPTS, seed=7
    )
    assert list(accuracy.values()) == pytest.approx(list(card["accuracy"].values()), abs=1e-12)
    probability = 1 / (1 + np.exp(rejected - chosen))
    found = metrics.load("calibration_error").compute(
        predictions=probability, references=np.ones(40), weights=WEIGHTS
    )
    expected = {name: card["calibration"]["before"][name] for name in ("ece", "brier")}
    assert found == pytest.approx(expected, abs=1e-12)


# --- the modules ---------------------------------------------------------------------------------

CHANCE, HAPPENED = np.linspace(0.05, 0.95, 40), np.tile([0.0, 1.0, 1.0, 0.25], 10)
TEXTS = ["so it is", "so it was", "it is so"]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, float]]] = {
    "win_rate": (
        {"predictions": SCORES[0], "references": SCORES[1]},
        {"seed": 2, "resamples": 50},
        named("win_rate", win_rate(*SCORES, seed=2, resamples=50)),
    ),
    "reward_accuracy": (
        {"predictions": SCORES[0], "references": SCORES[1]},
        {"seed": 2},
        named(
            "reward_accuracy",
            reward_accuracy(SCORES[0] - SCORES[1], np.ones(40), np.arange(40), seed=2),
        ),
    ),
    "calibration_error": (
        {"predictions": CHANCE, "references": HAPPENED},
        {"bins": 5},
        {
            "ece": expected_calibration_error(CHANCE, np.ones(40), HAPPENED, 5),
            "brier": brier(CHANCE, HAPPENED, np.ones(40)),
        },
    ),
    "distinct_n": ({"predictions": TEXTS}, {"n": 1}, {"distinct_1": 4 / 9}),
}  # fmt: skip
"""By metric: what is added, what is given to `compute`, and what comes out."""


def test_every_folder_is_a_metric_with_a_case():
    folders = {path.parent.name for path in Path(metrics.__file__).parent.glob("*/*.py")}
    assert folders == set(metrics.NAMES) == set(CASES)


@pytest.mark.parametrize("name", metrics.NAMES)
def test_a_module_gives_the_number_of_its_function(name: str):
    """At once, in batches, one by one, and loaded from a path by evaluate itself."""
    import evaluate

    inputs, options, expected = CASES[name]
    module = evaluate.load(str(metrics.path(name)))
    assert module.name == name
    assert module.compute(**inputs, **options) == pytest.approx(expected, abs=1e-12)
    for part in (slice(2), slice(2, None)):
        module.add_batch(**{key: values[part] for key, values in inputs.items()})
    assert module.compute(**options) == pytest.approx(expected, abs=1e-12)
    for i in range(len(inputs["predictions"])):
        module.add(**{key.removesuffix("s"): values[i] for key, values in inputs.items()})
    assert module.compute(**options) == pytest.approx(expected, abs=1e-12)
    loaded = metrics.load(name, keep_in_memory=True)
    assert loaded.compute(**inputs, **options) == pytest.approx(expected, abs=1e-12)


def test_tensors_are_lists_of_numbers():
    """2 > 1 and 1 = 1: three quarters."""
    scores = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 1.0])
    found = metrics.load("win_rate").compute(predictions=scores[0], references=scores[1])
    assert found["win_rate"] == 0.75


@pytest.mark.parametrize(
    "replies", [[[1, 2], [1, 2, 3]], [["a", "b"], ["a", "b", "c"]], ["a b", "a b c"]]
)
def test_replies_are_texts_or_tokens(replies: list[Any]):
    """ab | ab bc: two of three."""
    found = metrics.load("distinct_n").compute(predictions=replies)
    assert found == pytest.approx({"distinct_2": 2 / 3}, abs=1e-12)


@pytest.mark.parametrize("prompts", [PROMPTS, [f"Question {number}" for number in PROMPTS]])
def test_weights_and_prompts_may_be_added_with_the_scores(prompts: Any):
    """The configuration "weighted" gives what `compute` with the same weights does."""
    scores = {"predictions": SCORES[0], "references": SCORES[1]}
    expected = metrics.load("reward_accuracy").compute(**scores, weights=WEIGHTS, clusters=PROMPTS)
    module = metrics.load("reward_accuracy", "weighted")
    for i, (chosen, rejected) in enumerate(SCORES.T):
        module.add(prediction=chosen, reference=rejected, weights=WEIGHTS[i], clusters=prompts[i])
    assert module.compute() == pytest.approx(expected, abs=1e-12)
    assert expected["reward_accuracy"] == pytest.approx(
        mean((SCORES[0] > SCORES[1]) + 0.5 * (SCORES[0] == SCORES[1]), WEIGHTS), abs=1e-12
    )
    events = {"predictions": CHANCE, "references": HAPPENED}
    found = metrics.load("calibration_error", "weighted").compute(**events, weights=WEIGHTS)
    plain = metrics.load("calibration_error").compute(**events, weights=WEIGHTS)
    assert found == pytest.approx(plain, abs=1e-12)
    assert found != pytest.approx(metrics.load("calibration_error").compute(**events), abs=1e-6)


def test_modules_combine():
    """Those that read the same inputs, with options that all of them know."""
    import evaluate

    names = ["win_rate", "reward_accuracy"]
    both = evaluate.combine([str(metrics.path(name)) for name in names])
    inputs = CASES["win_rate"][0]
    found = both.compute(**inputs, seed=2)
    expected = {
        key: value
        for name in names
        for key, value in metrics.load(name).compute(**inputs, seed=2).items()
    }
    assert found == pytest.approx(expected, abs=1e-12)


RANK = """
import json, sys
import numpy as np
from align import metrics

rank, folder = int(sys.argv[1]), sys.argv[2]
cases = json.load(open(folder + "/cases.json"))
found = {}
for case in cases:
    module = metrics.load(
        *case["load"], num_process=2, process_id=rank, experiment_id="ours", cache_dir=folder
    )
    module.add_batch(**{key: values[rank] for key, values in case["inputs"].items()})
    found[case["load"][0]] = module.compute(**case["options"])
json.dump(found, open(f"{folder}/rank_{rank}.json", "w"))
"""


@pytest.mark.slow
def test_two_processes_give_the_number_of_all(tmp_path: Path):
    """Each adds a part, the first gets what one process with all of it gets, the other None."""
    cases = []
    expected = {}
    for name, (inputs, options, _) in CASES.items():
        load, given = [name], dict(inputs)
        if name == "reward_accuracy":
            load, given = [name, "weighted"], given | {"weights": WEIGHTS, "clusters": PROMPTS}
        expected[name] = metrics.load(*load).compute(**given, **options)
        parts = {k: [list(v)[:1], list(v)[1:]] for k, v in given.items()}
        plain = json.loads(json.dumps(parts, default=lambda number: number.item()))
        cases.append({"load": load, "inputs": plain, "options": options})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    for name in metrics.NAMES:
        assert first[name] == pytest.approx(expected[name], abs=1e-12), name
    assert set(second.values()) == {None}


# --- where they are loaded from ------------------------------------------------------------------


@pytest.mark.parametrize("name", metrics.NAMES)
def test_a_module_says_what_it_is_and_its_example_is_right(name: str):
    module = metrics.load(name)
    assert len(module.description) > 200 and module.citation.strip().startswith("@")
    example = doctest.DocTestParser().get_doctest(module.inputs_description, {}, name, None, 0)
    assert example.examples
    assert doctest.DocTestRunner(verbose=False).run(example).failed == 0


def test_a_folder_may_be_copied_away(tmp_path: Path):
    """A module stands on what is installed, not on the folder around it."""
    import evaluate

    shutil.copytree(metrics.path("win_rate"), tmp_path / "win_rate")
    inputs, options, expected = CASES["win_rate"]
    found = evaluate.load(str(tmp_path / "win_rate")).compute(**inputs, **options)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", metrics.NAMES)
def test_without_the_toolkit_a_module_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    """As `evaluate` would load it where no `align` is; its own sentence, not that of evaluate's
    scanner, which names the package of the import."""
    monkeypatch.setitem(sys.modules, "align.metrics.inputs", None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"^{name} is a part of align-toolkit and needs it installed"
    ):
        load_module(metrics.path(name) / f"{name}.py")


def test_nothing_is_imported_before_a_metric_is_loaded():
    code = "import sys\nfrom align import metrics\nprint({'evaluate', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- mistakes ------------------------------------------------------------------------------------


def load(name: str, *config: str) -> Callable[..., Any]:
    return lambda *scores, **options: metrics.load(name, *config, keep_in_memory=True).compute(
        predictions=scores[0], references=scores[-1], **options
    )


MISTAKES: dict[str, Callable[[], Any]] = {
    "predictions[1] is nan: it must be finite.": lambda: load("win_rate")(
        [1.0, float("nan")], [0.0, 0.0]
    ),
    "references[0] is inf: it must be finite.": lambda: load("reward_accuracy")(
        [1.0], [float("inf")]
    ),
    "predictions must be a list of numbers with at least one in it.": lambda: load("win_rate")([]),
    "predictions[1] is 1.5: it must be between 0 and 1.": lambda: load("calibration_error")(
        [0.5, 1.5], [1, 1]
    ),
    "references[0] is -1: it must be between 0 and 1.": lambda: load("calibration_error")(
        [0.5], [-1]
    ),
    "weights[1] is -2: it must be finite and at least 0.": lambda: load("reward_accuracy")(
        [1, 1], weights=[1, -2]
    ),
    "weights are all 0: one at least must be above.": lambda: load("reward_accuracy")(
        [1, 1], weights=[0, 0]
    ),
    "There are 1 weights for 2 predictions.": lambda: load("reward_accuracy")([1, 1], weights=[1]),
    "There are 3 clusters for 2 predictions.": lambda: load("reward_accuracy")(
        [1, 1], clusters=[1, 2, 3]
    ),
    "bins is 0: it must be 1 or more.": lambda: load("calibration_error")([0.5], [1], bins=0),
    "resamples is 0: it must be 1 or more.": lambda: load("win_rate")([1], [0], resamples=0),
    "n is 0: it must be 1 or more.": lambda: load("distinct_n")(["a b"], n=0),
    "win_rate has no configuration 'weighted'; choose from default.": lambda: metrics.load(
        "win_rate", "weighted"
    ),
    "reward_accuracy has no configuration 'soft'; choose from default, weighted.": (
        lambda: metrics.load("reward_accuracy", "soft")
    ),
    "There is no metric 'winrate'; the metrics: calibration_error, distinct_n, reward_accuracy, "
    "win_rate.": lambda: metrics.path("winrate"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_named(message: str):
    with pytest.raises(ValueError) as error:
        MISTAKES[message]()
    assert str(error.value) == message


def test_a_module_works_on_after_a_mistake():
    """What was refused is gone: the next numbers are those of their own inputs."""
    module = metrics.load("win_rate")
    with pytest.raises(ValueError, match="must be finite"):
        module.compute(predictions=[float("nan")], references=[0.0])
    assert module.compute(predictions=[2.0, 1.0], references=[1.0, 1.0])["win_rate"] == 0.75
