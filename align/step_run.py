"""One step as it runs: its context, tracker and checkpoints, with its stage inside them."""

from __future__ import annotations

import errno
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from align import checkpoints, deepspeed_settings
from align.artifacts import Artifact, versions
from align.config import ConfigError
from align.progress import progress
from align.tasks import HARMLESS, Task, base_is_ours, clusters_of, data_folder

if TYPE_CHECKING:
    from align.config import Config
    from align.engine import Engine

STAGES = {
    "pretrain": "align.stages.pretrain",
    "sft": "align.stages.sft",
    "reward": "align.stages.reward",
    "dpo": "align.stages.dpo",
    "ppo": "align.stages.ppo",
    "evaluate": "align.stages.evaluate",
    "export": "align.stages.export",
}


class StepError(RuntimeError):
    """A step of the run that failed; the message names it and says why."""


def run_step(task: Task, config: Config, engine: Engine, before: float) -> Artifact:
    """`before`: seconds that the step has taken in earlier runs, which it goes on from."""
    import torch
    from safetensors import SafetensorError

    from align.stage import StageContext
    from align.tracking import make_tracker
    from preference_data.near_duplicates import Clusters
    from preference_data.quarantine import DataError

    run = Path(config.output_dir)
    step = config.steps[task.name]
    seed = step.seed if step.seed is not None else config.seed
    base = run / "base" if base_is_ours(config) else config.base.model
    inputs = {
        other: required(Artifact.load(run / other), other)
        for _, other, _ in step.steps_used()
        if other != "base"
    }
    tracker = make_tracker(
        config, task.name, step.kind, task.folder, task.fingerprint, engine.is_main
    )
    context = StageContext(
        config=config, name=task.name, step=step, folder=task.folder,
        base_path=str(base), inputs=inputs,
        data={s: data_folder(config, s) for _, s, _ in step.data_used()},
        engine=engine, tracker=tracker, seed=seed,
        clusters=Clusters(clusters_of(config)),
    )  # fmt: skip
    torch.manual_seed(seed)  # a new adapter must not depend on what ran before in this process
    engine.checkpoints = checkpoints.Checkpoints()
    engine.begin_memory()
    if step.kind in checkpoints.RESUMABLE and deepspeed_settings.resumable(config):
        engine.checkpoints = checkpoints.StepCheckpoints(
            engine, task.folder, task.name, task.fingerprint,
            "iteration" if step.kind == "ppo" else "step", tracker, before,
        )  # fmt: skip
    try:
        with progress(task.name), tracker.told_of_errors():
            result = import_module(STAGES[step.kind]).run(context)
    except (ConfigError, DataError, OSError):
        raise
    except (RuntimeError, ValueError) as error:
        raise StepError(f"step {task.name} failed: {error}") from error
    except SafetensorError as error:  # which hides a full disk in its text
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(task.folder)) from None
        raise
    metrics = {**result.metrics, **engine.memory()}
    tracker.finish(metrics)
    return Artifact(
        name=task.name, kind=step.kind, path=task.folder, fingerprint=task.fingerprint,
        inputs=task.inputs, base=result.base, rows=result.rows, metrics=metrics,
        seed=seed, versions=versions(),
        settings=step.model_dump(mode="json", by_alias=True, exclude={"train": HARMLESS}),
        files=task.files,
    )  # fmt: skip


def required(artifact: Artifact | None, name: str) -> Artifact:
    if artifact is None:
        raise ConfigError(f"the step {name!r} is not done, and another needs it; run it first.")
    return artifact
