"""Settings of PPO that do not go together, each refused in a sentence that says what to do."""

# ruff: noqa: E501 - a sentence stays in one line
from __future__ import annotations

from typing import Any

import pytest

from align.config import Config, ConfigError, build_config
from align.config_ppo import PPOTrain


def config(**train: Any) -> Config:
    return build_config(
        {
            "name": "small",
            "output_dir": "runs/small",
            "data": {
                "prompts": {"path": "builtin:prompts"},
                **(
                    {"writers": {"path": "builtin:demonstrations"}}
                    if "ptx" in train and train["ptx"]["data"] == "writers"
                    else {}
                ),
            },
            "steps": {
                "ppo": {
                    "kind": "ppo", "data": "prompts", "reward": {"function": "judge.py:score"},
                    "train": train,
                }
            },
        }
    )  # fmt: skip


NOWHERE = (
    "there its gradient is not that of the KL and hardly holds the policy (measured: it ends at a "
    "KL of 5.14 where k1 ends at 3.14 and the optimum is 3.02); use k1."
)
NO_VALUE = "has no effect with advantage: rloo, which has no value function; remove it."
RLOO = {"advantage": "rloo", "samples_per_prompt": 2}
LOSS = {"place": "loss", "estimator": "k2"}


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"kl": {"estimator": "k2"}}, f"kl.estimator is k2 with place reward: {NOWHERE}"),
        ({"kl": {"estimator": "k3"}}, f"kl.estimator is k3 with place reward: {NOWHERE}"),
        ({"kl": {"estimator": "abs"}}, f"kl.estimator is abs with place reward: {NOWHERE}"),
        ({"kl": {"place": "loss"}}, "kl.estimator is k1 with place loss: its expected gradient there is 0; use k2, or place reward."),
        ({"kl": {"place": "loss", "estimator": "k3"}}, "kl.estimator is k3 with place loss: its gradient there is that of the reverse KL(reference || policy); use k2."),
        ({"kl": {"place": "loss", "estimator": "abs"}}, "kl.estimator is abs with place loss: its gradient there knows only the sign of the log-ratio; use k2."),
        ({"kl": LOSS}, "kl.place is loss, but whiten_advantages: mean_and_std rescales the reward but not the KL, whose coefficient then means nothing; set it to mean."),
        ({"kl": LOSS, "whiten_advantages": "mean", "whiten_rewards": True}, "kl.place is loss, but whiten_rewards rescales the reward but not the KL, whose coefficient then means nothing; remove it."),
        ({"kl": LOSS, **RLOO, "advantage": "grpo"}, "kl.place is loss, but group_std rescales the reward but not the KL, whose coefficient then means nothing; set it to false."),
        ({"samples_per_prompt": 4, "rollout_batch_size": 3}, "rollout_batch_size is 3, but the 4 samples of a prompt are drawn together."),
        ({"stop_when_ill": True, "reward_scaling": True}, "stop_when_ill keeps the policy with the best reward, whose scale changes from one iteration to the next under reward_scaling or kl.target; name a judge."),
        ({"advantage": "rloo"}, "samples_per_prompt is 1, but rloo compares the responses to a prompt with each other; set it to 2 or more."),
        ({"advantage": "grpo"}, "samples_per_prompt is 1, but grpo compares the responses to a prompt with each other; set it to 2 or more."),
        ({**RLOO, "value": "adapter"}, f"value {NO_VALUE}"),
        ({**RLOO, "value_learning_rate": 1e-4}, f"value_learning_rate {NO_VALUE}"),
        ({**RLOO, "value_coefficient": 0.1}, f"value_coefficient {NO_VALUE}"),
        ({**RLOO, "value_warmup_iterations": 1}, f"value_warmup_iterations {NO_VALUE}"),
        ({**RLOO, "gae": {"lambda": 1.0}}, f"gae {NO_VALUE}"),
        ({**RLOO, "clip": {"value": 0.5}}, f"clip.value {NO_VALUE}"),
        ({**RLOO, "whiten_rewards": True}, "whiten_rewards has no effect with advantage: rloo, which takes one reward a response; remove it."),
        ({**RLOO, "group_std": False}, "group_std has no effect with advantage: rloo, only with grpo; remove it."),
        ({"baseline": "running"}, "baseline has no effect with advantage: gae, only with reinforce; remove it."),
        ({"value_coefficient": 0.5}, "value_coefficient has no effect with value: adapter, whose weights and learning rate (value_learning_rate) are its own; remove it."),
        ({"iterations": 5, "value_warmup_iterations": 5}, "value_warmup_iterations is 5, which leaves none of the 5 iterations to the policy."),
        ({"epochs": 1, "minibatches": 1, "max_approx_kl": 0.1}, "max_approx_kl has no effect with one epoch of one minibatch, after which nothing is left; remove it."),
        ({"ptx": {"data": "writres"}}, "ptx.data names the data 'writres', which does not exist. Known: prompts."),
        ({"whiten_advantages": True}, "whiten_advantages is true: it must be one of mean_and_std, mean, none"),
    ],
)  # fmt: skip
def test_a_contradiction_is_refused(train: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError) as error:
        config(**train)
    assert str(error.value).startswith(f"steps.ppo.train.{sentence}")


@pytest.mark.parametrize("option", ["top_k", "top_p", "min_p", "repetition_penalty"])
def test_truncated_sampling_is_refused_with_the_reason(option: str):
    with pytest.raises(ConfigError) as error:
        config(**{option: 0.9})
    assert str(error.value) == (
        f"steps.ppo.train: {option} would sample from another distribution than the one whose "
        "log-probabilities PPO optimises, so there is no such key; temperature is applied to both."
    )


@pytest.mark.parametrize(
    "train",
    [
        {"kl": LOSS, "whiten_advantages": "mean"},
        {"kl": LOSS, "whiten_advantages": "none"},
        {"kl": LOSS, **RLOO},
        {"kl": {**LOSS, "target": 3.0}, **RLOO, "advantage": "grpo", "group_std": False},
        {"advantage": "reinforce", "baseline": "running"},
        {"value": "trunk", "value_coefficient": 0.5, "value_warmup_iterations": 2},
        {"ptx": {"data": "writers", "coefficient": 27.8}},
    ],
)
def test_what_goes_together_is_accepted(train: dict[str, Any]):
    assert config(**train).steps["ppo"].kind == "ppo"


def test_demonstrations_are_read_for_a_step_that_mixes_them_in():
    assert config(ptx={"data": "writers"}).run_as("writers") == "demonstrations"


@pytest.mark.parametrize(
    ("advantage", "whitening"),
    [("gae", "mean_and_std"), ("reinforce", "mean_and_std"), ("rloo", "none"), ("grpo", "none")],
)
def test_whitening_follows_the_estimator_unless_it_is_given(advantage: Any, whitening: str):
    assert PPOTrain(advantage=advantage).whitening == whitening
    assert PPOTrain(advantage=advantage, whiten_advantages="mean").whitening == "mean"
