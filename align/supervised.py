"""Next-token training with trl's SFTTrainer, fed rows that are tokenised already."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from align.base import checkpointed_layers
from align.config import TextTrain
from align.engine import Engine
from align.progress import Bar, progress
from align.tracking import Tracker
from align.training import NonFiniteError
from preference_data.rendering import Renderer


def fit_language_model(
    model: torch.nn.Module,
    rows: Sequence[dict[str, list[int]]],
    renderer: Renderer,
    train: TextTrain,
    engine: Engine,
    tracker: Tracker,
    seed: int,
    resident: torch.nn.Module | None = None,
) -> dict[str, float]:
    """Trains what requires a gradient in `model` on rows {"input_ids"[, "completion_mask"]}.

    Only tokens whose mask is 1 count (all, without a mask). A row is a document: nothing is packed.
    `resident` is all that is in memory, `model` in it, if that is more.
    An interrupted training starts again: there are no checkpoints inside it. Returns the last
    metrics.
    Raises ConfigError if the batch does not divide by the ranks, ValueError without rows, and
    NonFiniteError at the next log line after a loss or gradient that is not a number.
    """
    if not rows:
        raise ValueError(
            f"no row is left to train on: all are longer than max_length {train.max_length}, "
            f"cannot be rendered, or are held out."
        )
    from datasets import Dataset
    from trl.trainer.sft_trainer import SFTTrainer

    masked = "completion_mask" in rows[0]
    callback = _track(tracker)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,  # type: ignore[arg-type]
            args=_arguments(scratch, train, engine, rows, masked, seed, model),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=renderer.tokenizer,
            callbacks=[callback],
        )
        engine.check_trainer(trainer, resident)
        # It prints a dictionary a log step; the tracker has the numbers already.
        from transformers.trainer_callback import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        with progress("training") as callback.bar:
            trainer.train()
    engine.forget_trainer()
    return callback.last


def _arguments(
    scratch: str, train: TextTrain, engine: Engine, rows: Sequence[dict[str, list[int]]],
    masked: bool, seed: int, model: torch.nn.Module,
) -> Any:  # fmt: skip
    """The SFTConfig of these settings; `masked` says whether the rows have a completion mask."""
    from trl.trainer.sft_config import SFTConfig

    longest = max(len(row["input_ids"]) for row in rows)
    micro = train.micro_batch_size(engine.world_size, longest, engine.device.type)
    epoch = len(rows) / train.train_batch_size
    steps = train.max_steps or math.ceil(epoch * train.num_train_epochs)
    return SFTConfig(
        output_dir=scratch,
        num_train_epochs=train.num_train_epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=train.train_batch_size // (micro * engine.world_size),
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.lr_scheduler_type,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        adam_epsilon=train.adam_epsilon,
        max_grad_norm=train.max_grad_norm,
        max_length=None,
        logging_steps=min(train.logging_steps, steps),  # a short run has a last line too
        logging_nan_inf_filter=False,  # it shows the loss before instead
        completion_only_loss=masked,
        dataloader_pin_memory=engine.device.type == "cuda",
        **_checkpointing(SFTConfig, model),
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        seed=seed,
        data_seed=seed,
        **engine.trainer_arguments(train.max_grad_norm),
    )


def _checkpointing(config: type, model: torch.nn.Module) -> dict[str, Any]:
    """On if it is on in the model's layers. transformers 5.23 has a new name for the option, and
    warns of the old one, which trl sets."""
    old, new = "gradient_checkpointing", "activation_checkpointing"
    if not checkpointed_layers(model):
        return {old: None}  # off under both
    name = new if new in {field.name for field in dataclasses.fields(config)} else old
    return {old: None, name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _track(tracker: Tracker) -> Any:
    from transformers import TrainerCallback

    names = {
        "loss": "train/loss",
        "learning_rate": "train/lr",
        "grad_norm": "train/grad_norm",
        "mean_token_accuracy": "train/token_accuracy",
        "num_tokens": "train/tokens",
    }

    class Track(TrainerCallback):
        last: dict[str, float] = {}  # noqa: RUF012 - replaced, never changed
        bar: Bar

        def on_train_begin(self, args, state, control, **_):
            self.bar.total = state.max_steps

        def on_step_end(self, args, state, control, **_):
            self.bar.advance()

        def on_log(self, args, state, control, logs=None, **_):
            logged = (logs or {}).items()
            metrics = {names[key]: float(value) for key, value in logged if key in names}
            if not all(map(math.isfinite, metrics.values())):
                raise NonFiniteError(
                    f"a loss or gradient is not a number by optimiser step {state.global_step}: "
                    f"{metrics}"
                )
            if "train/loss" in metrics:
                tracker.log(state.global_step, metrics)
                self.last = metrics

    return Track()
