"""How often a reward model scores the answer higher that people preferred.

Two equal scores are half right. Pairs may have weights: align lets the pairs of a ranking share the
weight of its one judgement, so that K answers do not count K (K - 1) / 2 times (Ouyang et al. 2022,
equation 1). Pairs of one prompt are not independent; with `clusters` the 95 % interval is a
bootstrap over prompts, and of fewer than 30 of them, or where all are right or all wrong, Wilson's
interval of as many trials as they are worth (Korn and Graubard 1998). The reward step of align
reports the same number as `reward/accuracy`, the evaluate step as `evaluate/<reward>/accuracy`.
"""

import datasets
import evaluate

# Not at the beginning of a line: evaluate would tell users to install what lies there by that name.
try:
    from align.metrics.inputs import (
        WEIGHTED,
        check_config,
        check_count,
        clusters_of,
        numbers,
        weights_of,
    )
    from reward_models.calibration import named, reward_accuracy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "reward_accuracy is a part of align-toolkit and needs it installed: `pip install .` in its "
        f"checkout ({error})."
    ) from error

INPUTS = """
Args:
    predictions (list of float): the score of each pair's preferred answer.
    references (list of float): the score of its other answer.
    weights (list of float): of each pair, 0 or more. Default 1 each.
    clusters (list of int or str): the prompt of each pair. Default: each pair is one of its own.
    seed (int): of the bootstrap. Default 0.
    resamples (int): draws of the bootstrap. Default 2000.

`weights` and `clusters` are given to `compute`. Loaded with the configuration "weighted" they are
inputs like the scores, also of `add` and `add_batch`, and gathered from all processes.

Returns:
    reward_accuracy (float): in [0, 1].
    reward_accuracy_low, reward_accuracy_high (float): the 95 % interval.

Examples:
    >>> from align import metrics
    >>> chosen, rejected = [2.0, 1.0, 0.5], [1.0, 3.0, 0.5]
    >>> accuracy = metrics.load("reward_accuracy")
    >>> accuracy.compute(predictions=chosen, references=rejected)["reward_accuracy"]
    0.5
    >>> found = accuracy.compute(predictions=chosen, references=rejected, weights=[2, 1, 1])
    >>> found["reward_accuracy"]  # (2 * 1 + 1 * 0 + 1 * 0.5) / 4
    0.625
"""
CITATION = """
@article{ouyang2022,
  title = {Training Language Models to Follow Instructions with Human Feedback},
  author = {Ouyang, Long and Wu, Jeff and Jiang, Xu and others},
  journal = {arXiv preprint arXiv:2203.02155},
  year = {2022}
}
@article{korn1998,
  title = {Confidence Intervals for Proportions with Small Expected Number of Positive Counts
           Estimated from Survey Data},
  author = {Korn, Edward L. and Graubard, Barry I.},
  journal = {Survey Methodology},
  volume = {24},
  number = {2},
  year = {1998}
}
"""


class RewardAccuracy(evaluate.Metric):
    """`reward_models.calibration.reward_accuracy` of the scores of pairs."""

    def _info(self):
        check_config("reward_accuracy", self.config_name, WEIGHTED)
        number = datasets.Value("float64")
        scores = {"predictions": number, "references": number}
        features = datasets.Features(scores)
        if self.config_name == WEIGHTED:
            features = [
                datasets.Features({**scores, "weights": number, "clusters": datasets.Value(kind)})
                for kind in ("string", "int64")
            ]
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=CITATION,
            inputs_description=INPUTS,
            features=features,
        )

    def _compute(
        self, predictions, references, weights=None, clusters=None, seed=0, resamples=2000
    ):
        check_count("resamples", resamples)
        chosen = numbers("predictions", predictions)
        found = reward_accuracy(
            chosen - numbers("references", references),
            weights_of(weights, len(chosen)),
            clusters_of(clusters, len(chosen)),
            seed,
            resamples,
        )
        return named("reward_accuracy", found)
