"""Next-token training by trl's SFTTrainer: what it is told, and what stops it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from align.config import TextTrain
from align.engine import Engine
from align.supervised import fit_language_model
from align.tracking import Trackers
from align.training import NonFiniteError


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
