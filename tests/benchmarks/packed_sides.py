"""Both sides of a packed benchmark: this toolkit's training loop, and TRL's trainers, on one work.

Each runs in a process of its own (`python packed_sides.py SIDE WORK FOLDER`) and prints a line of
JSON. SIDE is `ours`, or `ours+` an attention implementation, or one of TRL's ways. Timed is all
from the first row to the last update, with the pass of DPO's reference and without loading and
tokenising; both sides first compute one small batch, so that neither pays for the libraries' first
calls. A `warm` work is done twice in the process, and the second time is what counts: a long run's
speed, with the memory that the first has taken and the code that it has compiled.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packed_work import MAX_LENGTH, Work, characters, model_flops, rows_of


@dataclass
class Clock:
    """What a side is measured by; to our loop it is the tracker."""

    ends: list[float] = field(default_factory=list)
    real: int = 0
    """tokens of all conversations of all pairs"""
    computed: int = 0
    """tokens of the trained forwards, padding and unused ones included"""
    flops: float = 0.0
    other: float = 0.0
    """seconds of the reference's pass where it is made before the training"""
    _baseline: float = 0.0
    _begin: float = 0.0

    def loaded(self, model: Any) -> None:
        """The model is in memory: computes a small batch, and takes what is held as nothing."""
        import torch

        ids = torch.zeros(2, 16, dtype=torch.long, device=model.device)
        with torch.enable_grad():
            output = model(input_ids=ids, use_cache=False)[0]
        if output.requires_grad:
            output.float().sum().backward()
            model.zero_grad()
        self._baseline = _peak(reset=True)

    def count(self, embedding: Any) -> None:
        """Takes the tokens that a trained model embeds as computed."""
        import torch

        def seen(_: Any, given: tuple[Any, ...]) -> None:
            if torch.is_grad_enabled():
                self.computed += given[0].numel()

        embedding.register_forward_pre_hook(seen)

    def start(self) -> None:
        self._begin = _now()

    def log(self, number: int, metrics: dict[str, float]) -> None:
        self.ends.append(_now())

    def result(self) -> dict[str, Any]:
        seconds = self.ends[-1] - self._begin + self.other
        steps = [b - a for a, b in zip([self._begin, *self.ends], self.ends, strict=False)]
        return {
            "seconds": seconds, "steps": steps, "real": self.real, "computed": self.computed,
            "flops": self.flops, "megabytes": _peak() - self._baseline,
        }  # fmt: skip


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()


def _peak(reset: bool = False) -> float:
    """MB: of the process so far, or on a GPU what is allocated at most since the last reset."""
    import torch

    if not torch.cuda.is_available():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 2**20


# --- ours ----------------------------------------------------------------------------------------


def ours(
    work: Work,
    folder: Path,
    attention: str = "auto",
    around: Callable[[], Any] = contextlib.nullcontext,
) -> dict[str, Any]:
    """Trains with the stage's own loop and loss; `around` is entered for the timed part."""
    import torch

    from align.base import load_base, load_renderer
    from align.config import Base, Lora
    from align.engine import Engine
    from align.rankings import fit_rankings
    from align.roles import Roles
    from reward_models.scalar_head import ScalarHead

    torch.manual_seed(0)
    clock, engine, is_dpo = Clock(), Engine(), work.kind == "dpo"
    settings: Any = {
        "model": str(folder), "dtype": work.dtype, "attention": attention, "compile": work.compile,
    }  # fmt: skip
    base = load_base(str(folder), Base(**settings), engine.device)
    clock.loaded(base)
    clock.count(base.get_input_embeddings())
    lora = Lora(r=16, alpha=32) if work.lora else None
    roles = Roles(base, load_renderer(str(folder)), lora, str(folder))
    rows = _ranked(work, roles.renderer)
    role = "policy" if is_dpo else "reward"
    head = None if is_dpo else ScalarHead(base.config.hidden_size)
    roles.add(role, fresh=True, trainable=True, head=head)
    roles.to(engine.device)
    context = _context(work, engine, clock, Base(**settings))
    clock.start()
    with around():
        loss = _loss(context, roles, rows)
        fit_rankings(context, roles, role, rows, loss)
    groups = [row.group for row in rows]
    clock.flops = _flops_packed(work, base.config, groups)
    clock.real = work.epochs * sum(
        2 * len(row.group.prompt) + sum(len(row.group.completions[i]) for i in pair)
        for row in rows
        for pair in row.pairs
    )
    return clock.result()


def _ranked(work: Work, renderer: Any) -> list[Any]:
    from align.rankings import Ranked
    from preference_data.batches import Group

    rows = []
    for judgement in rows_of(work):
        rendered = [renderer.render(judgement.prompt, r) for r in judgement.responses]
        group = Group(rendered[0].prompt, tuple(row.completion for row in rendered))
        rows.append(Ranked(judgement, group, judgement.ordered_pairs()))
    return rows


def _context(work: Work, engine: Any, clock: Clock, base: Any) -> Any:
    """What the loop reads of a stage's context."""
    from align.config import DPOTrain, RewardTrain

    section: Any = DPOTrain if work.kind == "dpo" else RewardTrain
    train = section(
        train_batch_size=work.batch, num_train_epochs=work.epochs, logging_steps=1,
        max_length=MAX_LENGTH, tokens_per_forward=work.forward,
    )  # fmt: skip
    return SimpleNamespace(
        step=SimpleNamespace(train=train, policy="base"), engine=engine, seed=0, tracker=clock,
        config=SimpleNamespace(output_dir=tempfile.mkdtemp(), base=base),
        weights_of=lambda _: None,
    )  # fmt: skip


def _loss(context: Any, roles: Any, rows: list[Any]) -> Any:
    """The stage's loss; DPO's asks the reference first."""
    from align.config import DPOTrain
    from align.reward_loss import RewardLoss
    from align.stages import dpo

    train = context.step.train
    is_dpo = isinstance(train, DPOTrain)
    reference = dpo._reference(context, roles, rows) if is_dpo else None
    of_rewards = None if is_dpo else RewardLoss(train, rows)

    def of_part(module: Any, batch: Any, pairs: Any, found: list[int]) -> Any:
        if of_rewards is not None:
            return of_rewards(module, batch, pairs, found)
        return dpo._loss(train, module, batch, pairs, dpo._of(reference, found))

    return of_part


def _flops_packed(work: Work, config: Any, groups: list[Any]) -> float:
    """Of training on groups whose prompts are computed once, with the reference's one pass."""
    tokens = sum(map(len, groups))
    answers = [(len(group.prompt), len(ids)) for group in groups for ids in group.completions]
    seen = sum(_causal(len(group.prompt)) for group in groups)
    seen += sum(prompt * answer + _causal(answer) for prompt, answer in answers)
    predicted = sum(answer for _, answer in answers)
    found = work.epochs * model_flops(work, config, tokens, seen, predicted, "step")
    if work.kind == "dpo":
        found += model_flops(work, config, tokens, seen, predicted, "forward")
    return found


def _causal(length: int) -> int:
    return length * (length + 1) // 2


# --- TRL -----------------------------------------------------------------------------------------


def trl(work: Work, folder: Path, variant: str) -> dict[str, Any]:
    """Trains with DPOTrainer or RewardTrainer. `variant` names what is switched on.

    `grouped`: rows of one length together, in the batches they were drawn in. These are such as
    train_sampling_strategy="group_by_length" makes of a whole data set; of as few rows as here it
    would make none. `accumulated`: two pairs a forward pass instead of the whole batch, the
    gradients summed. `cached`: DPO's reference is computed before. `flash`: attention. `compiled`:
    torch_compile. `uncast`: half precision without autocast.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.reward_trainer import RewardTrainer

    torch.manual_seed(0)
    clock, is_dpo, grouped = Clock(), work.kind == "dpo", "grouped" in variant
    model = _trl_model(work, folder, variant)
    clock.loaded(model)

    class Measured(DPOTrainer if is_dpo else RewardTrainer):  # type: ignore[misc]
        def _precompute_ref_logps(self, *arguments: Any) -> Any:
            begin = _now()
            found = super()._precompute_ref_logps(*arguments)  # type: ignore[misc]
            clock.other += _now() - begin
            return found

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            if not grouped:
                return super()._get_train_sampler(dataset)
            return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

        def training_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
            masks.append(inputs["attention_mask"])
            return super().training_step(model, inputs, *rest, **more)

    class Steps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.log(0, {})

    masks: list[Any] = []
    arguments: Any = {
        "args": _trl_config(work, variant),
        "peft_config": _trl_adapter(work),
    }
    trainer: Any = Measured(
        model=model, train_dataset=Dataset.from_list(_trl_rows(work, grouped)),
        processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Steps()], **arguments,
    )  # fmt: skip
    trainer.train()
    clock.computed = sum(mask.numel() for mask in masks)
    clock.real = sum(int(mask.sum()) for mask in masks)
    passes = 1 if "cached" in variant else work.epochs
    clock.flops = _flops_alone(work, model.config, trainer.train_dataset, passes)
    return clock.result()


def _trl_model(work: Work, folder: Path, variant: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from align.base import DTYPES

    is_dpo = work.kind == "dpo"
    loader: Any = AutoModelForCausalLM if is_dpo else AutoModelForSequenceClassification
    return loader.from_pretrained(
        folder,
        dtype=DTYPES[work.dtype],
        attn_implementation="flash_attention_2" if "flash" in variant else "sdpa",
        **({} if is_dpo else {"num_labels": 1}),
    ).to("cuda" if torch.cuda.is_available() else "cpu")


def _trl_config(work: Work, variant: str) -> Any:
    import torch
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.reward_config import RewardConfig

    is_dpo = work.kind == "dpo"
    pairs = work.batch * (6 if work.kind == "ranking" else 1)
    passes = pairs // 2 if "accumulated" in variant else 1
    only_dpo: dict[str, Any] = {"precompute_ref_log_probs": True} if "cached" in variant else {}
    return (DPOConfig if is_dpo else RewardConfig)(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=pairs // passes, gradient_accumulation_steps=passes,
        num_train_epochs=work.epochs, max_length=MAX_LENGTH,
        bf16=work.dtype == "bfloat16" and "uncast" not in variant,
        torch_compile="compiled" in variant, gradient_checkpointing=False,
        report_to="none", save_strategy="no",
        use_cpu=not torch.cuda.is_available(), disable_tqdm=True, logging_strategy="no", seed=0,
        **only_dpo,
    )  # fmt: skip


def _trl_adapter(work: Work) -> Any:
    from peft import LoraConfig

    if not work.lora:
        return None
    is_dpo = work.kind == "dpo"
    return LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear",
        task_type="CAUSAL_LM" if is_dpo else "SEQ_CLS",
        modules_to_save=None if is_dpo else ["score"],
    )  # fmt: skip


def _trl_rows(work: Work, grouped: bool) -> list[dict[str, Any]]:
    """All ordered pairs of every judgement; sorted by length where batches are to be even, so that
    the reference is computed in even batches, too."""
    judgements = sorted(rows_of(work), key=characters) if grouped else rows_of(work)
    rows = []
    for judgement in judgements:
        prompt = [message.to_json() for message in judgement.prompt.messages]
        for first, second in combinations(range(len(judgement.responses)), 2):
            a, b = judgement.ranks[first], judgement.ranks[second]
            if a == b:
                continue
            best, worst = (first, second) if a < b else (second, first)
            chosen, rejected = (
                [message.to_json() for message in judgement.responses[i].messages]
                for i in (best, worst)
            )
            rows.append(
                {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                if work.kind == "dpo"
                else {"chosen": prompt + chosen, "rejected": prompt + rejected}
            )
    return rows


def _conversations(row: dict[str, Any]) -> list[list[int]]:
    prompt = row.get("prompt_ids", [])
    return [prompt + row["chosen_ids"], prompt + row["rejected_ids"]]


def _flops_alone(work: Work, config: Any, rows: Any, passes: int) -> float:
    """Of training on conversations one by one, with the reference's `passes`; without padding."""
    sizes = [len(ids) for row in rows for ids in _conversations(row)]
    tokens, seen = sum(sizes), sum(map(_causal, sizes))
    predicted = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    found = work.epochs * model_flops(work, config, tokens, seen, predicted, "step")
    if work.kind == "dpo":
        found += passes * model_flops(work, config, tokens, seen, predicted, "forward")
    return found


def main() -> None:
    side, work, folder = sys.argv[1:]
    of = Work(**json.loads(work))
    name, _, attention = side.partition("+")

    def once() -> dict[str, Any]:
        if name == "ours":
            return ours(of, Path(folder), attention or "auto")
        return trl(of, Path(folder), side)

    found = once()
    if of.warm:
        found = {**once(), "megabytes": found["megabytes"]}
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
