"""How often a policy's answer is preferred to the baseline's answer to the same prompt.

A judge (a reward model, people's ratings, any function) has scored both answers to every prompt. A
tie is half a win, so that 0.5 says that neither policy is better. The 95 % interval is a percentile
bootstrap over prompts (Efron 1979), and of fewer than 30 of them, or where all are won or all lost,
Wilson's. The evaluate step of align reports the same number as
`evaluate/<judge>/win_rate/<policy>_vs_<baseline>`.
"""

import datasets
import evaluate

# Not at the beginning of a line: evaluate would tell users to install what lies there by that name.
try:
    from align.metrics.inputs import check_config, check_count, numbers
    from align.metrics.replies import win_rate
    from reward_models.calibration import named
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "win_rate is a part of align-toolkit and needs it installed: `pip install .` in its "
        f"checkout ({error})."
    ) from error

INPUTS = """
Args:
    predictions (list of float): the policy's score on each prompt.
    references (list of float): the baseline's score on the same prompts, in the same order.
    seed (int): of the bootstrap. Default 0.
    resamples (int): draws of the bootstrap. Default 2000.

Returns:
    win_rate (float): in [0, 1].
    win_rate_low, win_rate_high (float): the 95 % interval.

Examples:
    >>> from align import metrics
    >>> found = metrics.load("win_rate").compute(predictions=[1, 3, 2, 5], references=[0, 4, 2, 1])
    >>> found["win_rate"]  # two wins, a defeat and a tie
    0.625
"""
CITATION = """
@article{efron1979,
  title = {Bootstrap Methods: Another Look at the Jackknife},
  author = {Efron, Bradley},
  journal = {The Annals of Statistics},
  volume = {7},
  number = {1},
  year = {1979}
}
"""


class WinRate(evaluate.Metric):
    """`align.metrics.replies.win_rate` of paired scores."""

    def _info(self):
        check_config("win_rate", self.config_name)
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
        )

    def _compute(self, predictions, references, seed=0, resamples=2000):
        check_count("resamples", resamples)
        policy = numbers("predictions", predictions)
        found = win_rate(policy, numbers("references", references), seed, resamples)
        return named("win_rate", found)
