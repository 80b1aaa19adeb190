"""What a reward model must have shown on held-out pairs before anything is built on it."""
# pyright: strict

from __future__ import annotations

from collections.abc import Iterator, Mapping

from align.config_section import Fraction, PositiveInt, Section


class Requirements(Section):
    """What must be true of a reward model; otherwise the run stops after its step."""

    accuracy: Fraction | None = None
    """Lowest accuracy on held-out pairs."""
    accuracy_low: Fraction | None = None
    """Lowest lower end of the accuracy's 95 % interval: few held-out pairs do not pass by luck."""
    above_length_baseline: bool = False
    """Whether it must be right more often than always taking the longer (or always the shorter)
    answer: the whole 95 % interval of the difference, pair by pair, lies above 0."""
    ece: Fraction | None = None
    """Highest expected calibration error of its raw scores."""
    pairs: PositiveInt | None = None
    """Lowest number of held-out pairs."""

    def ineffective(self) -> Iterator[tuple[str, str]]:
        if self.sets("above_length_baseline") and not self.above_length_baseline:
            yield "above_length_baseline", "at false"
        if (
            self.accuracy is not None
            and self.accuracy_low is not None
            and self.accuracy <= self.accuracy_low
        ):
            yield "accuracy", f"beside accuracy_low {self.accuracy_low:g}, which asks for more"

    def unmet(self, metrics: Mapping[str, float]) -> list[str]:
        """Each requirement that the metrics of a finished reward step do not meet, in words."""
        if "reward/accuracy" not in metrics:
            return ["no pairs were held out to measure anything on"]
        value, low, high = _interval(metrics, "reward/accuracy")
        accuracy = f"its accuracy is {value:.3f} [{low:.3f}, {high:.3f}]"
        found: list[str] = []
        if self.accuracy is not None and value < self.accuracy:
            found.append(f"accuracy asks for {self.accuracy:g}, and {accuracy}")
        if self.accuracy_low is not None and low < self.accuracy_low:
            found.append(f"accuracy_low asks for {self.accuracy_low:g}, and {accuracy}")
        if self.above_length_baseline:
            above, low, high = _interval(metrics, "reward/above_length_baseline")
            if low <= 0:
                found.append(
                    f"above_length_baseline: length alone gets "
                    f"{metrics['reward/length_baseline']:.3f}, and the model is above that by "
                    f"{above:.3f} [{low:.3f}, {high:.3f}], which is not clearly more than 0"
                )
        if self.ece is not None and metrics["reward/ece"] > self.ece:
            found.append(f"ece allows {self.ece:g}, and it is {metrics['reward/ece']:.3f}")
        if self.pairs is not None and metrics["reward/pairs"] < self.pairs:
            found.append(
                f"pairs asks for {self.pairs}, and {metrics['reward/pairs']:.0f} are held out"
            )
        return found


def _interval(metrics: Mapping[str, float], name: str) -> tuple[float, float, float]:
    return metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]
