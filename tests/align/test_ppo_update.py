"""The steps that PPO takes on a real toy Transformer: gradients, not tokens, are compared.

The gradient of every optimiser step is caught before Adam sees it, which would blow rounding up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from align.config_ppo import PTX, PPOTrain
from align.engine import Engine
from align.policy import uniforms
from align.policy_gradient import Optimiser
from align.ppo_update import Lesson
from align.ptx import Demonstrations
from align.roles import Roles
from align.rollout import Roller
from align.training import NonFiniteError
from preference_data.batches import Group, pack
from reward_models.scalar_head import ScalarHead
from reward_models.scoring import Scores

PROMPTS = [(260, 7, 30), (5,), (9, 8, 7, 6, 5, 4, 3, 2), (40, 41, 42, 43)]
PROMPTS = [prompt for prompt in PROMPTS for _ in range(2)]
SMALL = {"prompts_per_iteration": 4, "samples_per_prompt": 2, "max_new_tokens": 10, "iterations": 3}
Make = Callable[..., Optimiser]
Gradients = list[list[Tensor]]


def distinct(groups: Sequence[Group]) -> Scores:
    """A scorer: how many different tokens a response has, as a share of ten."""
    return Scores([len(set(group.completions[0])) / 10 for group in groups])


@pytest.fixture
def make(make_roles: Callable[..., Roles], shake: Callable[..., None]) -> Make:
    """`make(**train)`: an optimiser on fresh roles. The base is sharpened, so that responses
    differ in length, and the value is not 0."""

    def optimiser(demonstrations: Demonstrations | None = None, **options: Any) -> Optimiser:
        train = PPOTrain(**{**SMALL, **options})
        roles = make_roles()
        for parameter in roles.model.parameters():
            parameter.data *= 3
        roles.add("reference")
        torch.manual_seed(0)
        roles.add("policy", fresh=True, trainable=True)
        torch.manual_seed(1)
        if train.has_value and train.value == "trunk":
            roles.add_head("value", "policy", ScalarHead(32, bias=True))
        elif train.has_value:
            roles.add("value", fresh=True, trainable=True, head=ScalarHead(32, bias=True))
            shake(roles.parameters_of("value"), 2)
        roller = Roller(roles, distinct, Engine(), train.temperature, train.tokens_per_forward)
        return Optimiser(Engine(), roles, roller, train, 5, demonstrations)

    return optimiser


def lesson_of(optimiser: Optimiser, **changes: Any) -> Lesson:
    """A rollout, with advantages and returns that are drawn at random under its mask."""
    draws = uniforms(3, len(PROMPTS), optimiser.train.max_new_tokens)
    rollout = optimiser.roller.collect(PROMPTS, draws)
    generator = torch.Generator().manual_seed(6)
    advantages, returns = torch.randn(2, *rollout.mask.shape, generator=generator) * rollout.mask
    has_value = optimiser.train.has_value
    lesson = Lesson(1, rollout, advantages, returns if has_value else None, 0.0, False)
    return lesson._replace(**changes)


def parameters(optimiser: Optimiser) -> list[Tensor]:
    return [p for group in optimiser.training.optimizer.param_groups for p in group["params"]]


def gradients(optimiser: Optimiser, lesson: Lesson) -> Gradients:
    """Of every optimiser step of the lesson; no step is taken."""
    found: Gradients = []

    def catch() -> float:
        found.append(
            [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for p in parameters(optimiser)
            ]
        )
        optimiser.training.optimizer.zero_grad()
        return 0.0

    optimiser.training.step = catch  # type: ignore[method-assign]
    optimiser.updater.run(lesson)
    return found


def assert_same(ours: Gradients, expected: Gradients, tolerance: float) -> None:
    """`tolerance` is a share of the step's largest gradient."""
    assert len(ours) == len(expected) > 0
    for one, other in zip(ours, expected, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in other)
        assert largest > 1e-3
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a / largest, b / largest, rtol=0, atol=tolerance)


OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"value": "trunk", "entropy_coefficient": 0.1},
    {"advantage": "rloo", "kl": {"place": "loss", "estimator": "k2"}},
]


# --- invariances ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OBJECTIVES)
def test_packing_and_micro_batches_do_not_change_the_gradient(make: Make, options: dict[str, Any]):
    """One forward a minibatch, several of at most 40 tokens, and one a response."""
    found = [
        gradients(it, lesson_of(it, kl_coefficient=0.3))
        for it in (make(tokens_per_forward=tokens, **options) for tokens in (4096, 40, 1))
    ]
    assert_same(found[1], found[0], 1e-5)
    assert_same(found[2], found[0], 1e-5)


@pytest.mark.parametrize("options", OBJECTIVES)
def test_the_ranks_gradients_sum_to_the_one_of_one_process(make: Make, options: dict[str, Any]):
    """4 responses a minibatch over 3 ranks, and 1 over 3: two ranks have nothing there."""
    for minibatches in (2, 8):
        alone = make(minibatches=minibatches, **options)
        lesson = lesson_of(alone, kl_coefficient=0.3)
        expected = gradients(alone, lesson)
        parts: list[Gradients] = []
        for rank in range(3):
            one = make(minibatches=minibatches, **options)
            one.engine.rank, one.engine.world_size = rank, 3
            one.engine.gather = list  # type: ignore[method-assign] - what the others found is left out
            parts.append(gradients(one, lesson))
        together = [
            [sum(of_ranks) for of_ranks in zip(*step, strict=True)]
            for step in zip(*parts, strict=True)
        ]  # type: ignore[misc]
        assert_same(together, expected, 1e-5)  # type: ignore[arg-type]


def test_padding_changes_no_bit_of_the_gradient(make: Make):
    """Tables three columns wider, full of rubbish outside the mask."""
    optimiser = make()
    lesson = lesson_of(optimiser)
    narrow = gradients(optimiser, lesson)

    def wide(table: Tensor) -> Tensor:
        filled = table.clone()
        filled[~lesson.rollout.mask] = True if table.dtype == torch.bool else 1e6
        more = torch.full((len(table), 3), 1e6)
        return torch.cat([filled, more], dim=1)

    rollout = lesson.rollout
    object.__setattr__(rollout, "logprobs", wide(rollout.logprobs))
    object.__setattr__(rollout, "reference", wide(rollout.reference))
    assert rollout.values is not None and lesson.returns is not None
    object.__setattr__(rollout, "values", wide(rollout.values))
    wider = lesson._replace(advantages=wide(lesson.advantages), returns=wide(lesson.returns))
    object.__setattr__(
        rollout, "mask", torch.cat([rollout.mask, torch.zeros(len(PROMPTS), 3).bool()], dim=1)
    )
    for a, b in zip(gradients(optimiser, wider), narrow, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def test_the_pad_token_plays_no_part(make: Make):
    """A whole iteration with pad = end and with pad = another token: equal to the last bit."""
    found = []
    for pad in ("eos", 7):
        optimiser = make()
        tokenizer = optimiser.roles.renderer.tokenizer
        tokenizer.pad_token_id = tokenizer.eos_token_id if pad == "eos" else pad
        metrics = optimiser.step(1, PROMPTS)
        weights = [p.detach().clone() for p in parameters(optimiser)]
        found.append((optimiser.rollout.samples, metrics, weights))
    (samples, metrics, weights), (other_samples, other, other_weights) = found
    assert samples == other_samples
    timed = {name for name in metrics if name.startswith("time/")}
    assert all(metrics[name] == other[name] for name in metrics.keys() - timed)
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))


# --- what the gradient is of ----------------------------------------------------------------------


def alone(optimiser: Optimiser, group: Group) -> tuple[Tensor, Tensor]:
    """([T, V] log-probabilities, [T] those of the tokens) of a completion, by the model itself."""
    ids = torch.tensor([[*group.prompt, *group.completions[0]]])
    with optimiser.roles.active("policy") as model:
        logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1]
    table = (logits / optimiser.train.temperature).log_softmax(-1)
    return table, table.gather(-1, ids[0, len(group.prompt) :, None]).squeeze(-1)


def policy_gradient_of(optimiser: Optimiser, objective: Tensor) -> list[Tensor]:
    own = optimiser.roles.parameters_of("policy")
    return list(torch.autograd.grad(objective, own))


def test_at_ratio_1_it_is_the_policy_gradient(make: Make):
    """- sum A grad log pi / tokens, each response computed alone without a mask or a cache."""
    optimiser = make(minibatches=1, epochs=1, advantage="rloo", temperature=0.7)
    lesson = lesson_of(optimiser)
    total = sum(
        (row[: len(logprobs)] * logprobs).sum()
        for row, sample in zip(lesson.advantages, lesson.rollout.samples, strict=True)
        for logprobs in [alone(optimiser, sample.group)[1]]
    )
    expected = policy_gradient_of(optimiser, -total / lesson.rollout.mask.sum())
    assert_same(gradients(optimiser, lesson), [expected], 1e-5)


def test_the_entropy_bonus_is_the_exact_entropy(make: Make):
    """Advantages 0: what is left is -coefficient * mean over tokens of -sum p log p."""
    optimiser = make(minibatches=1, epochs=1, advantage="rloo", entropy_coefficient=0.5)
    lesson = lesson_of(optimiser)
    lesson = lesson._replace(advantages=torch.zeros_like(lesson.advantages))
    tables = [alone(optimiser, sample.group)[0] for sample in lesson.rollout.samples]
    entropy = sum(-(table.exp() * table).sum() for table in tables) / lesson.rollout.mask.sum()
    expected = policy_gradient_of(optimiser, -0.5 * entropy)
    assert_same(gradients(optimiser, lesson), [expected], 1e-5)


DEMONSTRATIONS = [
    Group((11, 12), ((13, 14, 15),)),
    Group((16,), ((17, 2),)),
    Group((5, 6), ((7,),)),
]


def test_demonstrations_add_their_own_gradient(make: Make):
    """Ouyang et al. 2022, eq. 2: with and without differ by coefficient * grad NLL / tokens, at
    temperature 1 whatever the policy's is. Step 0 of 2 rows takes 3 or 4 of the tokens' 6."""
    settings = PTX(data="writers", coefficient=3.0, batch_size=2)
    mixed = Demonstrations(DEMONSTRATIONS, settings, seed=0)
    options = {"minibatches": 1, "epochs": 1, "advantage": "rloo"}
    plain = make(**options)
    lesson = lesson_of(plain)
    without = gradients(plain, lesson)
    optimiser = make(mixed, **options)
    [rows] = [mixed.of_step(0)]
    assert len(rows) == 2
    nll = -torch.cat([alone(optimiser, group)[1] for group in rows]).sum()
    tokens = sum(len(group.completions[0]) for group in rows)
    own = policy_gradient_of(optimiser, 3.0 * nll / tokens)
    expected = [a + b for a, b in zip(without[0], own, strict=True)]
    assert_same(gradients(optimiser, lesson), [expected], 1e-5)
    assert max(float(gradient.abs().max()) for gradient in own) > 1e-2


def test_demonstrations_are_mixed_the_same_by_any_number_of_ranks(make: Make):
    settings = PTX(data="writers", coefficient=3.0, batch_size=5)
    options = {"minibatches": 1, "epochs": 1, "advantage": "rloo"}
    optimiser = make(Demonstrations(DEMONSTRATIONS, settings, seed=0), **options)
    lesson = lesson_of(optimiser)
    expected = gradients(optimiser, lesson)
    parts = []
    for rank in range(3):
        one = make(Demonstrations(DEMONSTRATIONS, settings, seed=0), **options)
        one.engine.rank, one.engine.world_size = rank, 3
        one.engine.gather = list  # type: ignore[method-assign]
        parts.append(gradients(one, lesson)[0])
    together = [sum(of_ranks) for of_ranks in zip(*parts, strict=True)]
    assert_same([together], expected, 1e-5)  # type: ignore[list-item]


def test_every_pass_over_the_demonstrations_has_each_once():
    """3 rows, 2 a step: steps 0 to 2 are two passes, whichever step is asked for first."""
    mixed = Demonstrations(DEMONSTRATIONS, PTX(data="writers", batch_size=2), seed=0)
    order = [group for step in (0, 1, 2) for group in mixed.of_step(step)]
    assert set(order[:3]) == set(order[3:]) == set(DEMONSTRATIONS)
    assert mixed.of_step(2) == order[4:]


def test_the_values_loss_is_weighted_on_the_trunk_alone(make: Make):
    """Advantages 0: the policy's weights have the value's gradient, twice at twice the weight."""
    found = []
    for coefficient in (0.1, 0.2):
        optimiser = make(value="trunk", value_coefficient=coefficient, minibatches=1, epochs=1)
        lesson = lesson_of(optimiser)
        lesson = lesson._replace(advantages=torch.zeros_like(lesson.advantages))
        found.append(gradients(optimiser, lesson))
    assert_same(found[1], [[2 * gradient for gradient in found[0][0]]], 1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["values", "backward", "policy_and_values", "backward"]),
        ({"value": "trunk"}, ["policy_and_values", "backward"]),
        ({"advantage": "rloo"}, ["policy_and_values", "backward"]),
    ],
)
def test_a_value_of_its_own_is_done_with_before_the_policy_begins(
    make: Make, options: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    """Of each of a minibatch's two parts: the activations of both are never held together."""
    optimiser = make(minibatches=1, epochs=1, **options)
    lesson = lesson_of(optimiser)
    seen: list[str] = []
    forward, backward = Roles.forward, optimiser.training.backward

    def called(self: Roles, what: str, *given: Any, **named: Any) -> Any:
        seen.append(what)
        return forward(self, what, *given, **named)

    def run(*given: Any) -> None:
        seen.append("backward")
        backward(*given)

    monkeypatch.setattr(Roles, "forward", called)
    monkeypatch.setattr(optimiser.training, "backward", run)
    optimiser.updater.run(lesson)
    assert seen == 2 * expected


# --- a head on the trunk --------------------------------------------------------------------------


def test_a_trunk_needs_one_forward(make: Make):
    """Of the base's first layer: one pass for both, where an adapter of its own needs a second."""
    passes = {}
    for value in ("trunk", "adapter"):
        optimiser = make(value=value)
        batch = pack([Group((5, 6), ((7, 8),))])
        seen: list[int] = []
        layer = optimiser.roles.model.get_base_model().base_model.layers[0]
        handle = layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        logprobs, entropy, values = optimiser.roles(
            "policy_and_values", "policy", batch, temperature=0.7
        )
        handle.remove()
        passes[value] = len(seen)
        with torch.no_grad():
            expected = optimiser.roles.logprobs("policy", batch, 0.7, "value")
            torch.testing.assert_close(logprobs, expected.logprobs, rtol=0, atol=1e-6)
            torch.testing.assert_close(entropy, expected.entropy, rtol=0, atol=1e-6)
            of_role = optimiser.roles.values("value", batch)
        torch.testing.assert_close(values, of_role, rtol=0, atol=1e-6)
    assert passes == {"trunk": 1, "adapter": 2}


def test_a_trunk_in_the_rollout_reads_the_policys_own_states(make: Make):
    optimiser = make(value="trunk")
    lesson = lesson_of(optimiser)
    sample = lesson.rollout.samples[0]
    with torch.no_grad():
        hidden = optimiser.roles.hidden("policy", pack([sample.group]))[0]
    start = len(sample.group.prompt) - 1
    expected = optimiser.roles.head("value")(hidden[start:-1])
    torch.testing.assert_close(torch.tensor(sample.values), expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 0.01


@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_a_trunk_is_read_while_sampling(make: Make, value: str, monkeypatch: pytest.MonkeyPatch):
    """The hidden state that a token is drawn from is the one whose value is wanted: no forward of
    its own. Every row is checked, also those that shared a prompt or outlived others."""
    read: list[str] = []
    sound = Roles.values
    monkeypatch.setattr(
        Roles, "values", lambda self, role, batch: read.append(role) or sound(self, role, batch)
    )
    optimiser = make(value=value)
    samples = lesson_of(optimiser).rollout.samples
    assert bool(read) == (value == "adapter")
    for sample in samples:
        with torch.no_grad():
            expected = sound(optimiser.roles, "value", pack([sample.group]))
        torch.testing.assert_close(torch.tensor(sample.values), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_the_policy_stays_while_the_value_warms_up(make: Make, value: str):
    """Two iterations of warm-up change no bit of the policy, and every weight of the value moves
    but LoRA's A at its start; the third moves the policy, too."""
    optimiser = make(value=value, value_warmup_iterations=2, learning_rate=1e-2,
                     value_learning_rate=1e-2, entropy_coefficient=0.1)  # fmt: skip
    policy = optimiser.roles.parameters_of("policy")
    head = optimiser.roles.head("value").weight
    start, start_head = [p.detach().clone() for p in policy], head.detach().clone()
    for iteration in (1, 2):
        optimiser.step(iteration, PROMPTS)
        assert all(torch.equal(p, before) for p, before in zip(policy, start, strict=True))
        assert not torch.equal(head, start_head)
    optimiser.step(3, PROMPTS)
    assert not all(torch.equal(p, before) for p, before in zip(policy, start, strict=True))


# --- a whole iteration ----------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["rloo", "grpo", "reinforce"])
def test_no_value_function_is_made_where_none_is_needed(make: Make, advantage: str):
    """The metrics name none, and each token has its response's advantage, by hand from the
    scores: the KL is 0 in the first iteration, the penalty 1 where a response does not end."""
    optimiser = make(advantage=advantage, learning_rate=1e-2, whiten_advantages="none")
    caught: list[Lesson] = []
    run = optimiser.updater.run
    object.__setattr__(
        optimiser.updater, "run", lambda lesson: (caught.append(lesson), run(lesson))[1]
    )
    metrics = optimiser.step(1, PROMPTS)
    assert not optimiser.roles.has("value")
    assert not [name for name in metrics if name.startswith("value/") or name == "train/value_lr"]
    rollout = optimiser.rollout
    assert rollout.values is None
    rewards = [s.score - (0.0 if s.ended else 1.0) for s in rollout.samples]
    for row, sample in enumerate(rollout.samples):
        other = rewards[row + 1 if row % 2 == 0 else row - 1]
        half = (rewards[row] - other) / 2
        expected = {
            "rloo": rewards[row] - other,
            "grpo": half / (abs(half) + 1e-4),
            "reinforce": rewards[row] - sum(rewards) / len(rewards),
        }[advantage]
        found = caught[0].advantages[row, : len(sample.logprobs)]
        torch.testing.assert_close(
            found,
            torch.full_like(found, expected),
            rtol=0,
            atol=1e-5 if advantage != "grpo" else 1e-2,
        )


def test_a_running_baseline_is_the_mean_of_the_earlier_rollouts(make: Make):
    """The first rollout's own mean, then the mean of the first, then of the first two."""
    optimiser = make(advantage="reinforce", baseline="running", iterations=3)
    first, second, third = (
        torch.tensor(rewards) for rewards in ([1.0, 3.0], [6.0, 7.0], [0.0, 0.0])
    )
    assert optimiser._by_response(first).tolist() == [-1.0, 1.0]
    assert optimiser._by_response(second).tolist() == [4.0, 5.0]
    assert optimiser._by_response(third).tolist() == [-4.25, -4.25]


def test_scores_are_divided_by_their_running_deviation(make: Make):
    """Scores 0 and 2: deviation 1. Then 4 and 6: of 0, 2, 4, 6 the deviation is sqrt(5) =
    2.2360680, the clip 2 is of what is left (1.7888544, 2.6832816 -> 2), and the mean stays in."""
    optimiser = make(reward_scaling=True, score_clip=2.0, missing_eos_penalty=0.0)
    rollout = lesson_of(optimiser).rollout
    for scores, expected in (([0.0, 2.0], [0.0, 2.0]), ([4.0, 6.0], [1.7888544, 2.0])):
        object.__setattr__(rollout, "scores", torch.tensor(scores))
        object.__setattr__(rollout, "ended", torch.tensor([True, True]))
        assert optimiser._shaped_scores(rollout).tolist() == pytest.approx(expected, abs=1e-6)


def test_what_later_iterations_depend_on_survives(make: Make):
    """The KL coefficient and both running statistics, through JSON, to the last bit."""
    options = {"advantage": "reinforce", "baseline": "running", "reward_scaling": True,
               "kl": {"target": 1.0, "horizon": 20}}  # fmt: skip
    optimiser, again = make(**options), make(**options)
    optimiser.step(1, PROMPTS)
    assert optimiser.kl.coefficient != again.kl.coefficient
    again.load_json(optimiser.to_json())
    assert again.to_json() == optimiser.to_json()
    assert again.kl.coefficient == optimiser.kl.coefficient
    assert (again.scores, again.rewards) == (optimiser.scores, optimiser.rewards)
    assert again.scores.count == again.rewards.count == len(PROMPTS)


def test_an_epoch_has_as_many_steps_as_minibatches(make: Make):
    """However the responses divide: the schedule counts on it."""
    for minibatches in range(1, len(PROMPTS) + 1):
        metrics = make(minibatches=minibatches, epochs=1).step(1, PROMPTS)
        assert metrics["policy/minibatches"] == minibatches


@pytest.mark.parametrize(("limit", "steps"), [(None, 4), (1e9, 4), (1e-12, 2)])
def test_epochs_end_when_the_policy_is_too_far(make: Make, limit: float | None, steps: int):
    """2 epochs of 2 minibatches: the first minibatch is at ratio 1, so at KL 0, the second not."""
    optimiser = make(max_approx_kl=limit, learning_rate=1e-2)
    taken = count_steps(optimiser)
    metrics = optimiser.step(1, PROMPTS)
    assert metrics["policy/minibatches"] == steps == len(taken)


@pytest.mark.parametrize(("limit", "steps"), [(None, 4), (1e-12, 2)])
def test_steps_that_are_left_out_are_not_missing_at_the_schedules_end(
    make: Make, limit: float | None, steps: int
):
    """3 iterations of 4 planned steps, linear: step s of iteration i has the rate of place
    p = 4 (i - 1) + s, peak (12 - p) / 12, whether 4 or 2 of an iteration's steps are taken; after
    the last one it is 0."""
    optimiser = make(max_approx_kl=limit, learning_rate=1e-2, value_learning_rate=2e-2)
    taken = count_steps(optimiser)
    for iteration in (1, 2, 3):
        metrics = optimiser.step(iteration, PROMPTS)
        assert metrics["policy/minibatches"] == steps
    places = [4 * i + s for i in range(3) for s in range(steps)]
    expected = [[0.01 * (12 - p) / 12, 0.02 * (12 - p) / 12] for p in places]
    torch.testing.assert_close(torch.tensor(taken), torch.tensor(expected), rtol=0, atol=1e-9)
    assert metrics["train/lr"] == metrics["train/value_lr"] == 0


def test_an_iteration_after_one_that_was_cut_goes_on_from_its_state(make: Make):
    """To the last bit: the next iteration of another process has the same rates and weights."""
    options = {"max_approx_kl": 1e-12, "learning_rate": 1e-2, "value_learning_rate": 1e-2}
    whole, again = make(**options), make(**options)
    whole.step(1, PROMPTS)
    state = {name: tensor.detach().clone() for name, tensor in whole.training.state().items()}
    again.training.restore(state)
    metrics = [optimiser.step(2, PROMPTS) for optimiser in (whole, again)]
    assert metrics[0]["policy/minibatches"] == 2
    assert metrics[0]["train/lr"] == metrics[1]["train/lr"] == pytest.approx(1e-2 / 3, abs=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(parameters(whole), parameters(again), strict=True))


def test_the_policys_schedule_begins_when_the_policy_does(make: Make):
    """1 iteration of 3 for the value alone, 4 steps each, 3 of warm-up: in the policy's 8 steps
    its rate rises over 3 (1/4, 2/4, 3/4), then falls from 1 by 1/5; the value's rises in the first
    3 of its 12 and falls by 1/9."""
    optimiser = make(value_warmup_iterations=1, warmup_steps=3, learning_rate=1.0,
                     value_learning_rate=1.0, max_grad_norm=1e-9)  # fmt: skip
    taken = count_steps(optimiser)
    for iteration in (1, 2, 3):
        optimiser.step(iteration, PROMPTS)
    rise = [0.25, 0.5, 0.75]
    policy = [0.0] * 4 + rise + [1 - k / 5 for k in range(5)]
    value = rise + [1 - k / 9 for k in range(9)]
    expected = torch.tensor([policy, value]).T
    torch.testing.assert_close(torch.tensor(taken), expected, rtol=0, atol=1e-6)


def count_steps(optimiser: Optimiser) -> list[list[float]]:
    """The learning rates of each step that is taken, as it is taken."""
    taken: list[list[float]] = []
    step = optimiser.training.step

    def counted() -> float:
        taken.append(list(optimiser.training.learning_rates))
        return step()

    optimiser.training.step = counted  # type: ignore[method-assign]
    return taken


def test_the_kl_is_charged_in_one_place(make: Make):
    """In the loss the rewards are the scores alone; in the reward the loss has no KL."""
    options = {"advantage": "rloo", "learning_rate": 1e-1, "missing_eos_penalty": 0.0}
    for place, estimator in (("reward", "k1"), ("loss", "k2")):
        optimiser = make(**options, kl={"place": place, "estimator": estimator, "coefficient": 0.5})
        optimiser.step(1, PROMPTS)
        metrics = optimiser.step(2, PROMPTS)
        charged = 0.5 * metrics["objective/kl"] if place == "reward" else 0.0
        assert abs(metrics["objective/kl"]) > 0.01
        assert metrics["objective/reward"] == pytest.approx(
            metrics["objective/score"] - charged, abs=1e-5
        )
        assert ("policy/kl_loss" in metrics) == (place == "loss")


def test_rewards_of_variance_1_reach_the_advantages(make: Make):
    """lambda = 1: the advantage of a first token is the sum of its response's rewards less its
    value, and the rewards have variance 1 about a mean that stayed."""
    found = {}
    for whiten in (False, True):
        optimiser = make(whiten_rewards=whiten, whiten_advantages="none", gae={"lambda": 1.0})
        metrics = optimiser.step(1, PROMPTS)
        found[whiten] = metrics["objective/reward"]
    lengths = optimiser.rollout.mask.sum()
    assert found[True] == pytest.approx(found[False], abs=1e-4)  # the mean over tokens stayed
    assert lengths > len(PROMPTS)


def test_an_advantage_that_is_not_a_number_stops_the_run(make: Make):
    """A value of rows 1 and 5 is infinite: the iteration and the rows are named, before whitening
    spreads it over all of them."""
    optimiser = make()
    collect = optimiser.roller.collect

    def broken(*arguments: Any) -> Any:
        rollout = collect(*arguments)
        assert rollout.values is not None
        rollout.values[[1, 5], 0] = float("inf")
        return rollout

    object.__setattr__(optimiser.roller, "collect", broken)
    with pytest.raises(NonFiniteError) as error:
        optimiser.step(2, PROMPTS)
    assert str(error.value) == (
        "in iteration 2 the advantage of 2 of 8 responses is not a number (rows 1, 5); nothing was "
        "learnt from it"
    )
    assert optimiser.training.steps_done == 0
