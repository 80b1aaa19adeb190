"""How far probabilities can be believed: the expected calibration error and the Brier score.

For a reward model the probability is that of the preferred answer, sigmoid(margin / temperature);
it works for any event that happens or does not. The confidence is that of the likelier outcome, in
[0.5, 1], in bins of equal width; the calibration error is the mean gap between confidence and
accuracy over the bins (Guo et al. 2017, equation 3), and above 0 by chance, about as much as the
standard error of the accuracy in a bin. The Brier score is the mean squared error (Brier 1950);
0.25 knows nothing. A label may be soft: the share of people who say so. The reward step of align
reports the same numbers as `reward/ece` and `reward/brier`.
"""

import datasets
import evaluate

# Not at the beginning of a line: evaluate would tell users to install what lies there by that name.
try:
    from align.metrics.inputs import WEIGHTED, check_config, check_count, numbers, weights_of
    from reward_models.calibration import brier, expected_calibration_error
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "calibration_error is a part of align-toolkit and needs it installed: `pip install .` in "
        f"its checkout ({error})."
    ) from error

INPUTS = """
Args:
    predictions (list of float): the probability of each event, in [0, 1].
    references (list of float): 1 where it happened and 0 where not, or a soft label between them.
    weights (list of float): of each event, 0 or more. Default 1 each.
    bins (int): of equal width. Default 10.

`weights` are given to `compute`. Loaded with the configuration "weighted" they are an input like
the probabilities, also of `add` and `add_batch`, and gathered from all processes.

Returns:
    ece (float): the expected calibration error, in [0, 1].
    brier (float): the Brier score, in [0, 1].

Examples:
    >>> from align import metrics
    >>> calibration = metrics.load("calibration_error")
    >>> found = calibration.compute(predictions=[0.75] * 4, references=[1, 1, 1, 0])
    >>> found["ece"], found["brier"]  # right as often as it says; (3 * 0.25² + 0.75²) / 4
    (0.0, 0.1875)
"""
CITATION = """
@inproceedings{guo2017,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {International Conference on Machine Learning},
  year = {2017}
}
@article{brier1950,
  title = {Verification of Forecasts Expressed in Terms of Probability},
  author = {Brier, Glenn W.},
  journal = {Monthly Weather Review},
  volume = {78},
  number = {1},
  year = {1950}
}
"""


class CalibrationError(evaluate.Metric):
    """`reward_models.calibration.expected_calibration_error` and `brier` of probabilities."""

    def _info(self):
        check_config("calibration_error", self.config_name, WEIGHTED)
        number = datasets.Value("float64")
        features = {"predictions": number, "references": number}
        if self.config_name == WEIGHTED:
            features["weights"] = number
        return evaluate.MetricInfo(
            description=__doc__ or "",
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, weights=None, bins=10):
        probability = numbers("predictions", predictions, 0, 1)
        labels = numbers("references", references, 0, 1)
        check_count("bins", bins)
        weight = weights_of(weights, len(probability))
        return {
            "ece": expected_calibration_error(probability, weight, labels, bins),
            "brier": brier(probability, labels, weight),
        }
