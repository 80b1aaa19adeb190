"""TRL's trainers as a second opinion: the first step's loss and gradients on the same pairs.

Everything is real on both sides: `RewardTrainer` and `DPOTrainer` tokenise the conversations, pad
them, run transformers' own modules and take an optimiser step; ours renders, packs, and runs the
stages' losses in the loop that both share.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from align import dpo_losses
from align.config import RankingTrain
from align.engine import Engine
from align.losses import LossOutput
from align.rankings import PairIndex, Ranked, fit_rankings
from align.roles import Roles
from preference_data.batches import Group, PackedBatch, pack
from preference_data.records import Judgement, Prompt, Response
from preference_data.rendering import Renderer
from reward_models.losses import bradley_terry, centering
from reward_models.scalar_head import ScalarHead

PAIRS = (
    ("What is the capital of France?", "The capital of France is Paris.", "I do not know that."),
    ("What is the opposite of hot?", "The opposite of hot is cold.", "Snow."),
    ("Name the colour of snow.", "White!", "Good question! By the way, it rained. " * 3),
    ("Hot?", "Cold.", "Cold. Cold."),
    ("Why does it rain in France? " * 3, "I do not know that.", ""),
    ("Naïve café, 日本?", "Yes 🙂", "No 🙂"),
)
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'Question: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'Answer:\n' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}"
)
"""Ends where the answer ends. The built-in one adds a line break, which TRL counts as a token of
the completion; ours ends every completion at its end token, whatever the template adds."""
LOG_2 = math.log(2.0)
UNCLIPPED = 1e9


class Step(NamedTuple):
    """The first optimiser step."""

    loss: float
    norm: float
    gradients: dict[str, Tensor]
    """by the parameter's name in the model"""


@pytest.fixture(autouse=True)
def own_accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TRL's Trainer leaves an accelerator behind that the next one must not find."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    Engine().forget_trainer()
    yield
    Engine().forget_trainer()


@pytest.fixture
def renderer(renderer: Renderer) -> Renderer:
    renderer.tokenizer.chat_template = TEMPLATE
    return renderer


@pytest.fixture
def rows(renderer: Renderer) -> list[Ranked]:
    found = []
    for prompt, *answers in PAIRS:
        judgement = Judgement(
            Prompt.from_text(prompt), tuple(Response.from_text(text) for text in answers), (1, 2)
        )
        rendered = [renderer.render(judgement.prompt, answer) for answer in judgement.responses]
        group = Group(rendered[0].prompt, tuple(row.completion for row in rendered))
        found.append(Ranked(judgement, group, ((0, 1),)))
    return found


# --- TRL's side -----------------------------------------------------------------------------------


def pairs_for_trl() -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
            }
            for prompt, chosen, rejected in PAIRS
        ]
    )


def arguments(folder: Path) -> dict[str, Any]:
    """What both configs share: all rows in one batch on the CPU, in float32, for one step."""
    return {
        "output_dir": str(folder), "per_device_train_batch_size": len(PAIRS), "max_steps": 1,
        "max_length": None, "max_grad_norm": UNCLIPPED, "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "bf16": False, "gradient_checkpointing": None,
        "disable_tqdm": True, "learning_rate": 1e-3,
    }  # fmt: skip


def first_step(trainer: Any) -> Step:
    """Trains for the one step; the loss as computed, for the logged one is rounded."""
    from transformers import TrainerCallback

    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    compute = trainer.compute_loss

    def compute_loss(*given: Any, **named: Any) -> Any:
        loss = compute(*given, **named)
        losses.append(float(loss.detach()))
        return loss

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            gradients.update(gradients_of(model))

    trainer.compute_loss = compute_loss
    trainer.add_callback(Watch())
    trainer.train()
    assert len(losses) == 1
    return Step(losses[0], float(trainer.state.log_history[0]["grad_norm"]), gradients)


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def scorer(base: Any, head: ScalarHead) -> Any:
    """transformers' sequence classifier with the weights of `base` and of `head`."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(base.config)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(base.base_model.state_dict())
    model.score.weight.data.copy_(head.weight.data)
    return model


# --- ours -----------------------------------------------------------------------------------------


def our_step(
    train: RankingTrain,
    roles: Roles,
    role: str,
    rows: list[Ranked],
    loss: Callable[..., LossOutput],
) -> Step:
    """The loop that the reward and the DPO stage share, for its first step."""
    context: Any = SimpleNamespace(
        step=SimpleNamespace(train=train),
        engine=Engine(),
        seed=3,
        tracker=SimpleNamespace(log=lambda number, metrics: None),
    )
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        gradients.update(gradients_of(roles.copies[role]))
        if role in roles.heads:
            gradients.update({f"score.{n}": g for n, g in gradients_of(roles.heads[role]).items()})

    watch = register_optimizer_step_pre_hook(keep)
    try:
        metrics = fit_rankings(context, roles, role, rows, loss)
    finally:
        watch.remove()
    return Step(metrics["train/loss"], metrics["train/grad_norm"], gradients)


def same(ours: Step, theirs: Step) -> None:
    """Loss, norm, and the gradient of every parameter by its name."""
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
    assert ours.norm == pytest.approx(theirs.norm, rel=1e-5, abs=1e-5)
    assert ours.gradients.keys() == theirs.gradients.keys()
    torch.testing.assert_close(ours.gradients, theirs.gradients, rtol=0, atol=1e-5)


SETTINGS: dict[str, Any] = {
    "train_batch_size": len(PAIRS), "max_steps": 1, "max_grad_norm": UNCLIPPED,
    "learning_rate": 1e-3,
}  # fmt: skip
PARTS = pytest.mark.parametrize("tokens", [8192, 60], ids=["at once", "in parts"])


# --- tests ----------------------------------------------------------------------------------------


@PARTS
def test_the_reward_step_is_trls(
    make_roles: Callable[..., Roles], rows: list[Ranked], tmp_path: Path, tokens: int,
    shake: Callable[..., None],
):  # fmt: skip
    """Bradley-Terry with centring: TRL reads the last token of padded rows, ours `last_at`. In
    parts, losses and gradients add up to the same."""
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    roles: Any = make_roles(None)
    torch.manual_seed(5)
    head = ScalarHead(32)
    roles.add("reward", fresh=True, trainable=True, head=head)
    shake(roles.copies["reward"].parameters())
    theirs: Any = RewardTrainer(
        model=scorer(roles.copies["reward"], head),
        args=RewardConfig(**arguments(tmp_path), center_rewards_coefficient=0.01),
        train_dataset=pairs_for_trl(),
        processing_class=roles.renderer.tokenizer,
    )
    for row, ids in zip(rows, theirs.train_dataset, strict=True):
        chosen, rejected = row.group.completions
        assert [*row.group.prompt, *chosen] == ids["chosen_ids"]
        assert [*row.group.prompt, *rejected] == ids["rejected_ids"]

    def loss(module: Any, batch: PackedBatch, pairs: PairIndex, _: list[int]) -> LossOutput:
        scores = module("scores", "reward", batch)
        better, worse = scores[pairs.better], scores[pairs.worse]
        return LossOutput(bradley_terry(better, worse) + 0.01 * centering(better, worse), {})

    train = RankingTrain(**SETTINGS, tokens_per_forward=tokens)
    ours = our_step(train, roles, "reward", rows, loss)
    assert abs(ours.loss - LOG_2) > 0.01  # the head tells the answers apart
    same(ours, first_step(theirs))


@PARTS
@pytest.mark.parametrize(
    ("name", "ours_is"),
    [
        ("sigmoid", lambda chosen, rejected: dpo_losses.sigmoid(chosen, rejected, 0.3)),
        ("hinge", lambda chosen, rejected: dpo_losses.hinge(chosen, rejected, 0.3)),
        ("robust", lambda chosen, rejected: dpo_losses.robust(chosen, rejected, 0.3, 0.2)),
    ],
)
def test_the_dpo_step_is_trls(
    make_roles: Callable[..., Roles], rows: list[Ranked], tmp_path: Path, tokens: int, name: str,
    ours_is: Callable[[Tensor, Tensor], LossOutput], shake: Callable[..., None],
):  # fmt: skip
    """The policy has left the reference, so that no loss is what it is at a margin of 0."""
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    roles: Any = make_roles(None)
    shake(roles.model.parameters(), seed=1)
    roles.add("reference")
    roles.add("policy", fresh=True, trainable=True)
    shake(roles.copies["policy"].parameters(), seed=2, size=0.02)
    theirs: Any = DPOTrainer(
        model=copy.deepcopy(roles.copies["policy"]),
        ref_model=copy.deepcopy(roles.model),
        args=DPOConfig(
            **arguments(tmp_path), beta=0.3, loss_type=[name],
            label_smoothing=0.2 if name == "robust" else 0.0,
        ),
        train_dataset=pairs_for_trl(),
        processing_class=roles.renderer.tokenizer,
    )  # fmt: skip
    for row, ids in zip(rows, theirs.train_dataset, strict=True):
        chosen, rejected = row.group.completions
        assert list(row.group.prompt) == ids["prompt_ids"]
        assert [list(chosen), list(rejected)] == [ids["chosen_ids"], ids["rejected_ids"]]
    whole = pack([row.group for row in rows])
    with torch.no_grad():
        reference = whole.sums(roles.logprobs("reference", whole).logprobs).view(-1, 2)

    def loss(module: Any, batch: PackedBatch, pairs: PairIndex, mine: list[int]) -> LossOutput:
        sums = batch.sums(module("logprobs", "policy", batch).logprobs)
        ratios = sums - reference[mine].flatten()
        return ours_is(ratios[pairs.better], ratios[pairs.worse])

    train = RankingTrain(**SETTINGS, tokens_per_forward=tokens)
    ours = our_step(train, roles, "policy", rows, loss)
    at_the_reference = {"sigmoid": LOG_2, "hinge": 1.0, "robust": LOG_2}[name]
    assert abs(ours.loss - at_the_reference) > 0.01
    same(ours, first_step(theirs))
