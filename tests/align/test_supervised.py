"""Next-token training by trl's SFTTrainer: what it is told, and what stops it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from align.config import TextTrain
from align.engine import Engine
from align.supervised import fit_language_model
from align.tracking import Trackers
from align.training import NonFiniteError
from preference_data import forward_size


def test_a_loss_that_is_not_a_number_stops_the_training(make_roles: Any, renderer: Any):
    """A step of length 1e30 leaves weights whose products are not finite; transformers would log
    the mean of the losses before instead, and go on."""
    roles = make_roles(lora=None)
    roles.add("policy", fresh=True, trainable=True)
    train = TextTrain(
        max_steps=3, train_batch_size=2, learning_rate=1e30, warmup_steps=0, logging_steps=1,
        max_length=16,
    )  # fmt: skip
    engine = Engine()
    rows = [{"input_ids": renderer.tokenizer("What is snow?")["input_ids"]}] * 6
    try:
        with (
            roles.active("policy"),
            pytest.raises(NonFiniteError, match=r"by optimiser step [23]: "),
        ):
            fit_language_model(
                roles.module("policy"), rows, renderer, train, engine, Trackers(), seed=0
            )
    finally:
        engine.forget_trainer()


def test_a_forward_pass_holds_what_suits_the_device(
    make_roles: Any, renderer: Any, monkeypatch: pytest.MonkeyPatch
):
    """Six rows of up to 30 tokens, where 100 tokens are read at once: passes of 3 rows, and the
    adapters of passes of 6."""
    monkeypatch.setattr(forward_size, "ON_CPU", 100)
    rows = [{"input_ids": list(range(5, 5 + length))} for length in (30, 11, 20, 7, 25, 16)]

    def trained(rows_at_once: int | None) -> tuple[list[int], list[torch.Tensor], list[float]]:
        roles = make_roles()
        torch.manual_seed(0)
        roles.add("policy", fresh=True, trainable=True)
        train = TextTrain(
            max_steps=2, train_batch_size=6, logging_steps=1, max_length=32,
            per_device_train_batch_size=rows_at_once,
        )  # fmt: skip
        passes: list[int] = []
        roles.model.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: passes.append(len(given[0]))
        )
        engine = Engine()
        with roles.active("policy") as model:
            last = fit_language_model(model, rows, renderer, train, engine, Trackers(), seed=0)
        parameters = [parameter.detach() for parameter in roles.parameters_of("policy")]
        return passes, parameters, [last["train/loss"], last["train/grad_norm"]]

    (few, by_default, ours), (many, at_once, theirs) = trained(None), trained(6)
    assert few == [3] * 4 and many == [6] * 2
    assert ours == pytest.approx(theirs, rel=1e-5)  # which AdamW's steps do not show
    for mine, other in zip(by_default, at_once, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "processes", "sentence"),
    [
        (DistributedType.NO, 1, None),
        (DistributedType.DEEPSPEED, 1, "was to run without DeepSpeed, and runs as DEEPSPEED"),
        (DistributedType.MULTI_CPU, 2, "accelerate sees 2 processes of 1"),
    ],
)
def test_a_trainer_that_runs_otherwise_than_it_was_told_is_refused(
    kind: DistributedType, processes: int, sentence: str | None
):
    accelerator = SimpleNamespace(distributed_type=kind, num_processes=processes)
    trainer = SimpleNamespace(accelerator=accelerator)
    if sentence is None:
        Engine().check_trainer(trainer)
        return
    with pytest.raises(RuntimeError, match=sentence):
        Engine().check_trainer(trainer)
