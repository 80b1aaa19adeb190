"""Names that would be read as something else: of steps in metrics, of judges in samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.config import Config, ConfigError, build_config


def named(*policies: str, judge: Any = "gold") -> Config:
    """An evaluation of policies that are called so, after one called sft."""
    sources = {name: {"path": f"builtin:{name}"} for name in ("prompts", "demonstrations")}
    sft = {"kind": "sft", "data": "demonstrations"}
    steps: dict[str, Any] = dict.fromkeys(("sft", *policies), sft)
    steps["evaluate"] = {
        "kind": "evaluate", "data": "prompts", "policies": list(policies), "baseline": "sft",
        "judges": [judge],
    }  # fmt: skip
    return build_config({"name": "n", "output_dir": "runs/n", "data": sources, "steps": steps})


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_policy_is_not_called_as_the_end_of_anothers_interval(end: str, order: int):
    """`evaluate/kl/ppo_low` would be the lower end of `evaluate/kl/ppo`."""
    with pytest.raises(ConfigError) as error:
        named(*["ppo", f"ppo_{end}"][::order])
    assert str(error.value) == (
        f"steps.ppo_{end}: its numbers would be taken for the end of an interval of ppo's; call "
        f"the step something else."
    )


@pytest.mark.parametrize("name", ["kl_vs_none", "kl_vs"])
def test_a_policy_is_not_called_as_two_that_are_compared(name: str):
    """`…/win_rate/kl_vs_none_vs_sft` would be the rate of `kl` against `none_vs_sft`."""
    with pytest.raises(ConfigError) as error:
        named(name)
    assert str(error.value) == (
        f"steps.{name}: _vs_ stands between two policies in the name of a win rate; call the "
        "step something else."
    )


@pytest.mark.parametrize(
    "names", [("ppo_low",), ("low", "high"), ("ppo", "ppo_lower"), ("vs_sft",)]
)
def test_names_that_nobody_would_mistake_are_taken(names: tuple[str, ...]):
    assert set(names) < set(named(*names).steps)


@pytest.mark.parametrize("column", ["prompt", "policy", "completion"])
def test_a_judge_is_not_called_as_a_column_of_the_samples(column: str, tmp_path: Path):
    """Its scores would stand where the prompt, the policy's name or the answer do."""
    (tmp_path / "score.py").write_text("")
    with pytest.raises(ConfigError) as error:
        named("ppo", judge={"function": f"{tmp_path / 'score.py'}:{column}"})
    assert str(error.value) == (
        f"steps.evaluate.judges[0] is called {column}, as a column of samples.jsonl is; call it "
        f"something else."
    )
