"""The DPO step on a very small model: its losses, the reference kept on disk, the alarm."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import TWO_LAYERS, world_of

from align import dpo_losses, reference_cache
from align.config import Base, ConfigError, DPOTrain, Lora, build_config
from align.displacement import DisplacementAlarm, displaced, remark
from align.engine import Engine
from align.pipeline import Pipeline
from align.rankings import PairIndex
from align.reference_cache import FOLDER
from align.roles import Roles
from align.stages import dpo
from preference_data.batches import Group, pack
from preference_data.quarantine import DataError

TRAIN = {"max_steps": 3, "train_batch_size": 8, "learning_rate": 1e-2, "max_length": 96}


def tree(folder: Path, **steps: Mapping[str, Any]) -> dict[str, Any]:
    """A run of DPO steps alone, each on the base, with these settings of `train`."""
    return {
        "name": "dpo",
        "output_dir": str(folder),
        "base": {"architecture": dict(TWO_LAYERS)},
        "lora": {"r": 4, "alpha": 8, "dropout": 0.2},
        "near_duplicates": None,
        "world": world_of(30, items=40),
        "data": {"labels": {"path": "builtin:labels", "test_fraction": 0.3}},
        "steps": {
            name: {"kind": "dpo", "data": "labels", "train": {**TRAIN, **train}}
            for name, train in steps.items()
        },
    }


def run(folder: Path, **steps: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The metrics of each step of a run."""
    summary = Pipeline(build_config(tree(folder, **steps))).run()
    return {name: step["metrics"] for name, step in summary["steps"].items()}


def without_speed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "train/tokens_per_second"}


def lines(folder: Path, step: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / step / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups each pass without gradient went over, in order."""
    seen: list[int] = []
    real = dpo.packed_tokens

    def counted(groups: Any, *rest: Any) -> Any:
        seen.append(len(groups))
        return real(groups, *rest)

    monkeypatch.setattr(dpo, "packed_tokens", counted)
    return seen


# --- the reference --------------------------------------------------------------------------------


def test_the_reference_is_computed_once_for_all_steps_and_runs(tmp_path: Path, passes: list[int]):
    """A second step with another beta, and a third in a later run, pass over the held-out side
    alone (under the policy), and get the numbers that they get with a reference of their own."""
    folder = tmp_path / "run"
    run(folder, first={"beta": 0.1}, second={"beta": 0.5})
    whole, *held_out = passes
    assert whole > held_out[0] > 0
    assert held_out == [held_out[0]] * 2
    [file] = (folder / FOLDER).iterdir()
    written = file.stat().st_mtime_ns
    passes.clear()
    later = run(folder, first={"beta": 0.1}, second={"beta": 0.5}, third={"loss": "hinge"})
    assert passes == held_out[:1]
    assert file.stat().st_mtime_ns == written
    passes.clear()
    alone = run(tmp_path / "alone", third={"loss": "hinge"}, second={"beta": 0.5})
    assert passes == [whole, *held_out]
    for step in ("second", "third"):
        assert without_speed(later[step]) == without_speed(alone[step])


def test_before_its_first_update_the_policy_is_the_reference(tmp_path: Path):
    """At a learning rate of next to nothing the held-out log-ratios are 0."""
    metrics = run(tmp_path / "run", only={"learning_rate": 1e-12})["only"]
    for name in ("margin", "chosen_reward", "chosen_logratio", "rejected_logratio", "displacement"):
        assert metrics[f"dpo/{name}"] == pytest.approx(0, abs=1e-5)


def test_the_reference_has_no_dropout(
    make_roles: Callable[..., Roles], shake: Callable[..., None], tmp_path: Path
):
    """An adapter that was trained, with a dropout that would move every log-probability; summed
    over tokens by hand."""
    roles = make_roles(Lora(r=4, alpha=8, dropout=0.5))
    roles.add("policy", fresh=True, trainable=True)
    shake(roles.parameters_of("policy"))
    roles.train()
    groups = [Group((260, 5), ((7, 8, 9), (10, 1))), Group((11,), ((12,), (13, 14)))]
    context: Any = SimpleNamespace(
        step=SimpleNamespace(train=DPOTrain(), policy="base"),
        config=SimpleNamespace(output_dir=str(tmp_path), base=Base()),
        engine=Engine(),
        weights_of=lambda step: None,
    )
    rows: Any = [SimpleNamespace(group=group) for group in groups]
    found = dpo._reference(context, roles, rows)
    assert found is not None
    with torch.no_grad():
        for group, sums in zip(groups, found, strict=True):
            for ids, total in zip(group.completions, sums.tolist(), strict=True):
                alone = roles.eval().logprobs("policy", pack([Group(group.prompt, (ids,))]))
                assert total == pytest.approx(sum(alone.logprobs.tolist()), abs=1e-5)


def test_a_file_that_cannot_be_trusted_is_made_anew(
    tmp_path: Path, passes: list[int], caplog: pytest.LogCaptureFixture
):
    """Cut short, under another key, of another length, with a number that is none."""
    folder = tmp_path / "run"
    before = run(folder, only={})["only"]
    [file] = (folder / FOLDER).iterdir()
    good = file.read_bytes()
    [sums] = load_file(file).values()
    key = {"key": file.stem}
    damages: list[Callable[[], object]] = [
        lambda: file.write_bytes(good[: len(good) // 2]),
        lambda: save_file({"logprobs": sums + 1}, file, metadata={"key": "another"}),
        lambda: save_file({"logprobs": sums[1:].clone()}, file, metadata=key),
        lambda: save_file({"logprobs": sums * float("nan")}, file, metadata=key),
        lambda: save_file({"others": sums + 1}, file, metadata=key),
    ]
    for damage in damages:
        damage()
        passes.clear()
        caplog.clear()
        summary = Pipeline(build_config(tree(folder, only={}))).run(force=["only"])
        assert len(passes) == 2
        assert f"{file} is damaged or foreign" in caplog.text
        assert without_speed(summary["steps"]["only"]["metrics"]) == without_speed(before)
        assert file.read_bytes() == good
    assert [path.name for path in (folder / FOLDER).iterdir()] == [file.name]


def test_other_weights_and_other_rows_have_a_reference_of_their_own(
    tmp_path: Path, passes: list[int]
):
    """A shorter max_length leaves rows out; a base of another seed has other weights."""
    folder = tmp_path / "run"
    run(folder, first={})
    run(folder, first={}, second={"max_length": 64})
    assert len(list((folder / FOLDER).iterdir())) == 2
    passes.clear()
    changed = tree(folder, first={})
    changed["base"]["architecture"]["rms_norm_eps"] = 1e-3
    Pipeline(build_config(changed)).run()
    assert len(passes) == 2
    assert len(list((folder / FOLDER).iterdir())) == 3


def test_an_adapter_with_other_contents_is_another_reference(
    make_roles: Callable[..., Roles], tmp_path: Path
):
    """A step that ran again has the same name and settings, and may have other weights; so has
    every token its part in the key, and where a completion begins."""
    roles = make_roles()
    context: Any = SimpleNamespace(
        step=SimpleNamespace(policy="sft"),
        config=SimpleNamespace(base=Base()),
        engine=Engine(),
        weights_of=lambda step: tmp_path,
    )

    def key(first: int, *completions: tuple[int, ...]) -> str:
        (tmp_path / "adapter_model.safetensors").write_bytes(bytes([first]))
        return reference_cache._key(context, roles, [Group((1,), completions)])

    keys = [key(0, (2, 3), (4,)), key(1, (2, 3), (4,)), key(0, (2,), (3, 4)), key(0, (2, 3), (5,))]
    assert len(set(keys)) == 4
    assert key(0, (2, 3), (4,)) == keys[0]


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_without_a_reference_no_reference_is_asked(tmp_path: Path, passes: list[int], loss: str):
    metrics = run(tmp_path / "run", only={"loss": loss, "beta": 2.0})["only"]
    assert len(passes) == 1  # the held-out side, after training
    assert not (tmp_path / "run" / FOLDER).exists()
    assert {"dpo/accuracy", "dpo/margin"} <= metrics.keys()
    assert not {"dpo/chosen_logratio", "dpo/displacement"} & metrics.keys()


# --- the losses in the step -----------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "conservative": {"label_smoothing": 0.1},
    "offset": {"margin": 0.5},
    "odpo": {"offset_from_scores": 2.0},
    "both": {
        "loss": "robust", "label_smoothing": 0.1, "margin": 0.5, "offset_from_scores": 1.0,
    },
    "normalised": {"length_normalised": True, "beta": 2.0},
    "robust": {"loss": "robust", "label_smoothing": 0.1},
    "hinge": {"loss": "hinge"},
    "ipo": {"loss": "ipo"},
    "simpo": {"loss": "simpo", "beta": 2.0, "margin": 0.5},
    "orpo": {"loss": "orpo"},
}  # fmt: skip


@pytest.mark.parametrize("lora", [Lora(r=4, alpha=8), None], ids=["lora", "full"])
def test_the_gradient_is_the_same_as_of_one_completion_at_a_time(
    make_roles: Callable[..., Roles], shake: Callable[..., None], lora: Lora | None
):
    """Every loss on a packed batch of 2 + 3 completions against the definition, pair by pair, from
    completions that are packed alone: value and gradient."""
    roles = make_roles(lora)
    roles.add("policy", fresh=True, trainable=True)
    parameters = roles.parameters_of("policy")
    shake(parameters, 0, 0.05)
    groups = [Group((260, 5), ((7, 8, 9), (10, 1))), Group((11,), ((12,), (13, 14), (15, 16, 17)))]
    reference = torch.tensor([-12.0, -9.0, -5.0, -11.0, -15.0])
    gap = torch.tensor([3.0, 0.0, 0.5])
    pairs = PairIndex(
        torch.tensor([0, 2, 4]), torch.tensor([1, 3, 2]), torch.ones(3),
        torch.tensor([1, 0.8, 1]), gap,
    )  # fmt: skip
    offsets = {(0, 1): math.log(3.0), (2, 3): 0.0, (4, 2): -math.log(2.0)}
    values_of = {
        "sigmoid": lambda c, r, p, _: dpo_losses.sigmoid(c, r, 0.1, label=p),
        "conservative": lambda c, r, p, _: dpo_losses.sigmoid(c, r, 0.1, 0.1, label=p),
        "offset": lambda c, r, p, _: dpo_losses.sigmoid(c, r, 0.1, margin=0.5, label=p),
        "odpo": lambda c, r, p, o: dpo_losses.sigmoid(c, r, 0.1, margin=2 * o, label=p),
        "both": lambda c, r, p, o: dpo_losses.robust(c, r, 0.1, 0.1, margin=0.5 + o, label=p),
        "normalised": lambda c, r, p, _: dpo_losses.sigmoid(c, r, 2.0, label=p),
        "robust": lambda c, r, p, _: dpo_losses.robust(c, r, 0.1, 0.1, label=p),
        "hinge": lambda c, r, p, _: dpo_losses.hinge(c, r, 0.1, p),
        "ipo": lambda c, r, p, _: dpo_losses.ipo(c, r, 0.1, p),
        "simpo": lambda c, r, p, _: dpo_losses.simpo(c, r, 2.0, margin=0.5, label=p),
        "orpo": lambda c, r, p, _: dpo_losses.orpo(c, r, 0.1, p),
    }
    for name, settings in SETTINGS.items():
        train = DPOTrain(**settings)
        given = reference if train.needs_reference else None
        ours = dpo._loss(train, roles, pack(groups), pairs, given)
        gradient = torch.autograd.grad(ours.loss.sum(), parameters)
        flat = [(group.prompt, ids) for group in groups for ids in group.completions]
        sums = [roles.logprobs("policy", pack([Group(p, (c,))])).logprobs.sum() for p, c in flat]
        worth = [s if given is None else s - given[i] for i, s in enumerate(sums)]
        if name in ("normalised", "ipo", "simpo", "orpo"):
            worth = [value / len(ids) for value, (_, ids) in zip(worth, flat, strict=True)]
        theirs = torch.stack(
            [
                values_of[name](worth[i], worth[j], p, offsets[i, j]).loss
                for i, j, p in zip(*(pairs[k].tolist() for k in (0, 1, 3)), strict=True)
            ]
        )
        torch.testing.assert_close(ours.loss, theirs, rtol=1e-5, atol=1e-5, msg=name)
        expected = torch.autograd.grad(theirs.sum(), parameters)
        scale = max(float(one.abs().max()) for one in expected)
        for one, other in zip(gradient, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, scale), msg=name)


def test_log_ratios_by_hand():
    """Sums -6, -8, -3 against references -4, -9, -3.1 over 4, 2, 1 tokens: log-ratios by token
    -.5, +.5, +.1. Chosen are sequences 0 and 2: the first has fallen, by over .05."""
    ones = torch.ones(2)
    pairs = PairIndex(torch.tensor([0, 2]), torch.tensor([1, 1]), ones, ones, torch.zeros(2))
    output = dpo.pair_loss(
        DPOTrain(),
        torch.tensor([-6.0, -8.0, -3.0]),
        torch.tensor([-4.0, -9.0, -3.1]),
        torch.tensor([4, 2, 1]),
        pairs,
    )
    expected = {
        "chosen_logratio": [-0.5, 0.1],
        "rejected_logratio": [0.5, 0.5],
        "displacement": [1.0, 0.0],
        "chosen_reward": [-0.2, 0.01],
    }
    for name, values in expected.items():
        assert output.metrics[f"dpo/{name}"].tolist() == pytest.approx(values, abs=1e-6)


def test_truncation_and_offsets_in_the_step(tmp_path: Path):
    """60 tokens are too few for some prompts: left out, or cut and counted. Labels of the built-in
    world have no ratings, so an offset would do nothing."""
    folder = tmp_path / "run"
    short = {"max_length": 60, "max_steps": 1}
    summary = Pipeline(
        build_config(tree(folder, drops=short, cuts={**short, "truncation": "left"}))
    ).run()
    drops, cuts = (summary["steps"][name] for name in ("drops", "cuts"))
    assert "train/cut_prompts" not in drops["metrics"]
    lost, kept = drops["rows"]["quarantined"], cuts["rows"]["quarantined"]
    assert lost > kept
    assert 0 < cuts["metrics"]["train/cut_prompts"] <= lost - kept
    with pytest.raises(DataError, match=r"no pair of data\.labels has scores"):
        run(folder, offset={**short, "max_length": 96, "offset_from_scores": 1.0})


def test_the_offset_is_reported():
    """Gaps 4 and none, alpha 2: offsets 2 log 4 and 0; the margin is still that of the rewards."""
    first, second, ones = torch.tensor([0, 0]), torch.tensor([1, 1]), torch.ones(2)
    pairs = PairIndex(first, second, ones, ones, torch.tensor([4.0, 0.0]))
    sums = torch.tensor([-3.0, -4.0])
    train = DPOTrain(offset_from_scores=2.0)
    output = dpo.pair_loss(train, sums, torch.zeros(2), torch.tensor([1, 1]), pairs)
    assert output.metrics["dpo/offset"].tolist() == pytest.approx([2.7725887, 0.0], abs=1e-6)
    assert output.metrics["dpo/margin"].tolist() == pytest.approx([0.1, 0.1], abs=1e-6)
    plain = dpo.pair_loss(DPOTrain(), sums, torch.zeros(2), torch.tensor([1, 1]), pairs)
    assert "dpo/offset" not in plain.metrics
    assert plain.loss[1].item() == output.loss[1].item()


# --- displacement ---------------------------------------------------------------------------------


def metrics(chosen: float, rejected: float, margin: float) -> dict[str, float]:
    return {
        "dpo/chosen_logratio": chosen, "dpo/rejected_logratio": rejected, "dpo/margin": margin,
    }  # fmt: skip


def test_what_displacement_is():
    assert displaced(metrics(-0.2, -0.5, 1.0))
    assert not displaced(metrics(-0.04, -0.5, 1.0))  # within the noise
    assert not displaced(metrics(0.2, -0.5, 1.0))
    assert not displaced(metrics(-0.2, 0.1, 1.0))
    assert not displaced(metrics(-0.5, -0.2, -1.0))  # the loss is not even content
    assert not displaced({"dpo/margin": 1.0})
    assert remark("dpo", metrics(0.2, -0.5, 1.0)) is None
    text = remark("dpo", metrics(-0.2, -0.5, 1.0))
    assert text is not None
    assert text.startswith("dpo: likelihood displacement: the chosen answers have become less")
    assert "(-0.20 nats per token; rejected -0.50)" in text


FALLING = [metrics(-0.1 * i, -0.3 * i, 1.0 * i) for i in range(1, 6)]


@pytest.mark.parametrize(
    ("history", "when"),
    [
        (FALLING, 3),  # three lines in a row, and then once
        (FALLING[:2], None),
        ([*FALLING[:2], metrics(0.1, -0.5, 3.0), *FALLING[:2]], None),  # not in a row
        ([metrics(-0.2, -0.5, margin) for margin in (3.0, 2.0, 1.0)], None),  # a falling margin
        ([metrics(0.1, -0.5, 1.0), *FALLING], 4),
    ],
)
def test_the_alarm_by_its_lines(
    history: list[dict[str, float]], when: int | None, caplog: pytest.LogCaptureFixture
):
    alarm = DisplacementAlarm("dpo")
    seen = [len(caplog.records) for line in history if alarm.log(10, line) is None]
    assert seen == [0 if when is None or number < when else 1 for number in range(1, len(seen) + 1)]


def test_the_alarm_at_the_end(caplog: pytest.LogCaptureFixture):
    """Held-out numbers decide where training was too short for the lines; still once."""
    alarm = DisplacementAlarm("dpo")
    alarm.finish(metrics(0.2, -0.5, 1.0))
    assert not caplog.records
    alarm.finish(metrics(-0.2, -0.5, 1.0))
    alarm.finish(metrics(-0.2, -0.5, 1.0))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_step_that_displaces_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """With a threshold under which every answer has fallen, as soon as the margin has risen over
    three lines; the share of fallen pairs is then 1 on every line."""
    for module in ("align.displacement", "align.stages.dpo"):
        monkeypatch.setattr(f"{module}.FALL", -100.0)
    folder = tmp_path / "run"
    train = {"max_steps": 6, "logging_steps": 1, "learning_rate": 3e-2}
    found = run(folder, loud=train)["loud"]
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if text.startswith("loud: likelihood displacement")]) == 1
    assert found["dpo/displacement"] == pytest.approx(1.0)
    history = lines(folder, "loud")
    assert len(history) == 6
    assert [line["dpo/displacement"] for line in history] == pytest.approx([1.0] * 6)
    caplog.clear()
    monkeypatch.setattr("align.displacement.FALL", 100.0)
    run(folder, loud=train, quiet={**train, "beta": 0.2})
    assert "displacement" not in caplog.text


# --- settings -------------------------------------------------------------------------------------

REFUSED = {
    "hinge with a margin": ({"loss": "hinge", "margin": 1.0}, "margin has no effect on hinge"),
    "ipo with a margin": ({"loss": "ipo", "margin": 1.0}, "margin has no effect on ipo"),
    "hinge with scores": (
        {"loss": "hinge", "offset_from_scores": 1.0}, "offset_from_scores has no effect on hinge",
    ),
    "ipo with smoothing": (
        {"loss": "ipo", "label_smoothing": 0.1},
        "label_smoothing has no effect on ipo, only on sigmoid, robust and simpo; remove it.",
    ),
    "orpo with smoothing": (
        {"loss": "orpo", "label_smoothing": 0.1},
        "label_smoothing has no effect on orpo",
    ),
    "simpo is normalised": (
        {"loss": "simpo", "beta": 2.0, "length_normalised": True},
        "length_normalised has no effect on simpo, which takes means over tokens in any case",
    ),
    "robust against nothing": (
        {"loss": "robust"},
        "label_smoothing is 0, but loss is robust, which corrects for that share",
    ),
    "simpo needs a beta": ({"loss": "simpo"}, "beta must be set with simpo"),
    "so does normalised": ({"length_normalised": True}, "beta must be set with length_normalised"),
    "as every step": ({"num_train_epochs": 2.0}, "num_train_epochs has no effect beside max_steps"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_do_not_go_together(name: str, tmp_path: Path):
    train, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        build_config(tree(tmp_path, only=train))
    assert f"steps.only.train.{message}" in str(error.value)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_do(name: str, tmp_path: Path):
    config = build_config(tree(tmp_path, only=SETTINGS[name]))
    assert config.steps["only"].to_plain()["train"].items() >= SETTINGS[name].items()
