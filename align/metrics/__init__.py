"""The toolkit's metrics as modules for Hugging Face `evaluate`, loaded from here without a network.

    from align import metrics

    metrics.load("win_rate").compute(predictions=[1.0, 2.0], references=[0.5, 2.0])
    evaluate.load(str(metrics.path("win_rate")))  # the same

The numbers are computed by `align.metrics.replies` and `reward_models.calibration`, which the
stages call directly: a module declares the inputs and hands them on. So a run needs neither
`evaluate`, whose import takes seconds, nor its cache folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluate import EvaluationModule

NAMES = ("calibration_error", "distinct_n", "reward_accuracy", "win_rate")


def path(name: str) -> Path:
    """The folder of the metric `name`, for `evaluate.load`. Raises ValueError if there is none."""
    if name not in NAMES:
        raise ValueError(f"There is no metric {name!r}; the metrics: {', '.join(NAMES)}.")
    return Path(__file__).resolve().parent / name


def load(
    name: str,
    config_name: str | None = None,
    *,
    num_process: int = 1,
    process_id: int = 0,
    experiment_id: str | None = None,
    cache_dir: str | Path | None = None,
    keep_in_memory: bool = False,
) -> EvaluationModule:
    """The metric `name`; `config_name` is "weighted" for those whose items have weights.

    Several processes that share a file system add their items under one `experiment_id`, each with
    its `process_id` below `num_process`; `compute` gives process 0 the numbers of all, the others
    None. Raises ValueError for an unknown name.
    """
    folder = path(name)
    import evaluate

    return evaluate.load(
        str(folder),
        config_name,
        num_process=num_process,
        process_id=process_id,
        experiment_id=experiment_id,
        cache_dir=None if cache_dir is None else str(cache_dir),
        keep_in_memory=keep_in_memory,
    )
