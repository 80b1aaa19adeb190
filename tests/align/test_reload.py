"""Heads are saved: what a process trained, another one loads from the files, and scores the same.

All cases are trained and saved here and loaded in one child process, by `RewardModel` and by the
few lines of plain transformers and peft below, which know nothing of this toolkit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

pytestmark = [
    pytest.mark.slow,
    # GPT-2's layers are transposed, which peft finds out.
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["What is the capital of France?", "What is the opposite of hot?", "Name a colour."]
ANSWERS = ["The capital of France is Paris.", "cold", "Snow. By the way, it rained."]
DTYPES = ("float32", "bfloat16")
LLAMA = {
    "all-linear": "all-linear",
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "heads": ("q_proj", "lm_head", "score"),
    "full": None,
}
GPT2 = {
    "all-linear": "all-linear",
    "attention": ("c_attn",),
    "mlp": ("c_fc",),
    "heads": ("c_attn", "lm_head", "score"),
    "full": None,
}
"""Names of adapted layers; `heads` also names the language head and the score head, which must not
get an adapter. None = full fine-tuning."""
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 128,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
}


class Case(NamedTuple):
    family: str
    targets: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.family} {self.targets} {self.dtype}"


CASES = [
    Case(family, targets, dtype)
    for family in FAMILIES
    for targets in (GPT2 if family == "gpt2" else LLAMA)
    for dtype in DTYPES
]


class Saved(NamedTuple):
    """A trained reward model, and what it gave in the process that trained it."""

    folder: Path
    """Its `adapter/` or `model/`."""
    base: str
    scores: list[float]
    """Of ANSWERS to PROMPTS, one at a time, in the type that it was trained in."""
    moved: float
    """Largest change of the head's weights in training."""


# --- the process that trains -------------------------------------------------------------------


def build(family: str, folder: Path, tokenizer: Any) -> str:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    settings = {**FAMILIES[family], "vocab_size": len(tokenizer)}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(family, **settings, **ids, bos_token_id=None)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # away from 0, so that the tokens differ
        parameter.data.mul_(1.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(case: Case, base: str, folder: Path) -> Saved:
    """A few steps of Bradley-Terry, as the reward stage takes them."""
    import torch

    from align.base import load_base, load_renderer
    from align.config import Base, Lora
    from align.roles import Roles
    from preference_data.batches import Group, pack
    from preference_data.records import Prompt, Response
    from reward_models.scalar_head import ScalarHead, Scoring

    targets: Any = (GPT2 if case.family == "gpt2" else LLAMA)[case.targets]
    lora = None if targets is None else Lora(r=4, alpha=8, target_modules=targets)
    model = load_base(base, Base(model=base, dtype=case.dtype), torch.device("cpu"))  # type: ignore
    renderer = load_renderer(base)
    roles = Roles(model, renderer, lora, base)
    torch.manual_seed(5)
    head = ScalarHead(32)
    start = head.weight.detach().clone()
    roles.add("reward", fresh=True, trainable=True, head=head)
    rows = [
        renderer.render(Prompt.from_text(p), Response.from_text(a))
        for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    pairs = pack([Group(row.prompt, (row.completion, row.completion[1:])) for row in rows])
    optimiser = torch.optim.AdamW(roles.parameters_of("reward"), lr=1e-2)
    for _ in range(4):
        scores = roles.scores("reward", pairs)
        loss = -torch.nn.functional.logsigmoid(scores[::2] - scores[1::2]).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    roles.eval()
    with torch.no_grad():
        found = [
            roles.scores("reward", pack([Group(row.prompt, (row.completion,))])).item()
            for row in rows
        ]
    saved = roles.save("reward", folder, Scoring(renderer.fingerprint(), max_length=64))
    return Saved(saved, base, found, float((head.weight.detach() - start).abs().max()))


# --- the process that loads --------------------------------------------------------------------


def plain_scores(folder: Path, base: str, dtype: Any) -> list[float]:
    """What anybody writes with transformers and peft, a conversation at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if (folder / "adapter_config.json").is_file():
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            base, num_labels=1, dtype=dtype
        )
        model = PeftModel.from_pretrained(model, folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    model.eval()
    scores: list[float] = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores.append(model(input_ids=ids).logits[0, 0].item())
    return scores


def reload(folder: Path, base: str, dtype: str) -> dict[str, list[float]]:
    import torch

    from reward_models import RewardModel

    found: dict[str, list[float]] = {}
    for name in {"float32", dtype}:
        kind = getattr(torch, name)
        model = RewardModel.from_pretrained(folder, dtype=kind)
        alone = [model.score([p], [a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)]
        found |= {name: alone, f"{name} plain": plain_scores(folder, base, kind)}
        found[f"{name} together"] = model.score(PROMPTS, ANSWERS)
    return found


def child(given: Path, output: Path) -> None:
    from align.quiet import quiet_libraries

    quiet_libraries()
    cases: dict[str, list[str]] = json.loads(given.read_text())
    found = {
        name: reload(Path(folder), base, dtype) for name, (folder, base, dtype) in cases.items()
    }
    output.write_text(json.dumps(found))


# --- the tests ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[Case, Saved]:
    from transformers import AutoTokenizer

    place = tmp_path_factory.mktemp("reload")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    bases = {family: build(family, place / family, tokenizer) for family in FAMILIES}
    return {case: train(case, bases[case.family], place / case.name) for case in CASES}


@pytest.fixture(scope="module")
def reloaded(
    saved: dict[Case, Saved], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, list[float]]]:
    """The scores of every case by what loaded it, from a fresh process."""
    place = tmp_path_factory.mktemp("child")
    cases = {c.name: [str(one.folder), one.base, c.dtype] for c, one in saved.items()}
    (place / "cases.json").write_text(json.dumps(cases))
    subprocess.run(
        [sys.executable, __file__, str(place / "cases.json"), str(place / "found.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, cwd=place,
    )  # fmt: skip
    return json.loads((place / "found.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fresh_process_gives_the_same_scores(
    case: Case, saved: dict[Case, Saved], reloaded: dict[str, dict[str, list[float]]]
):
    """To 1e-6 in the type that it was trained in; in float32 to 1e-5 by plain transformers and peft
    and all at once, whose sums are added up in another order.

    A head is in float32 here and in the files, but transformers computes it in the base's type: in
    bfloat16, whose numbers have 8 bits, a plain score of about 2 is off by up to 2 ** -7 per
    rounding, and one of 6 by three times as much.
    """
    one, found = saved[case], reloaded[case.name]
    assert found[case.dtype] == pytest.approx(one.scores, abs=1e-6)
    assert found["float32 plain"] == pytest.approx(found["float32"], abs=1e-5)
    assert found["float32 together"] == pytest.approx(found["float32"], abs=1e-5)
    assert found[f"{case.dtype} plain"] == pytest.approx(one.scores, abs=6e-2, rel=3e-2)
    assert max(one.scores) - min(one.scores) > 1e-2


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_head_was_trained_and_has_no_adapter(case: Case, saved: dict[Case, Saved]):
    """Four steps of AdamW at 1e-2 move a weight by about 0.04, from N(0, 1 / 33)."""
    from safetensors.torch import load_file

    one = saved[case]
    assert one.moved > 5e-3
    state: dict[str, Any] = {}
    for path in one.folder.glob("*.safetensors"):
        state |= load_file(path)
    heads = [name for name in state if name.rsplit(".", 2)[-2] == "score" or ".score." in name]
    assert len(heads) == 1
    assert state[heads[0]].shape == (1, 32)
    if case.targets != "full":
        assert any("lora_B" in name for name in state)
        assert not [name for name in state if "lora" in name and "head" in name]


@pytest.mark.parametrize("case", [CASES[0], CASES[8]], ids=lambda case: case.name)
def test_the_end_of_the_sequence_is_read(case: Case, saved: dict[Case, Saved]):
    """The score is the head's at the end token; without that token it is another one."""
    from preference_data.batches import Group
    from reward_models import RewardModel

    model = RewardModel.from_pretrained(saved[case].folder)
    group = model.group_of(PROMPTS[0], ANSWERS[0])
    [ids] = group.completions
    assert ids[-1] == model._renderer.tokenizer.eos_token_id
    whole, cut = model.score_groups([group, Group(group.prompt, (ids[:-1],))])
    assert whole == pytest.approx(model.score(PROMPTS[:1], ANSWERS[:1])[0], abs=1e-5)
    assert abs(whole - cut) > 1e-2


@pytest.mark.parametrize("what", ["template", "tokenizer"])
def test_another_template_or_tokenizer_is_refused(
    what: str, saved: dict[Case, Saved], tmp_path: Path
):
    from reward_models import RewardModel

    folder = tmp_path / "adapter"
    shutil.copytree(saved[CASES[0]].folder, folder)
    if what == "template":
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("Question: ", "Q: "))
    else:
        path = folder / "tokenizer.json"
        words = json.loads(path.read_text())
        vocabulary = words["model"]["vocab"]
        first, second = list(vocabulary)[10:12]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        path.write_text(json.dumps(words))
    with pytest.raises(ValueError, match="trained with another tokenizer or chat template"):
        RewardModel.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["missing", "empty", "other"])
def test_a_save_without_its_head_is_not_proved(
    damage: str, make_roles: Callable[..., Any], shake: Callable[..., None], tmp_path: Path
):
    """As under sharding, where a weight of another process has no elements."""
    import torch
    from safetensors.torch import load_file, save_file

    from align.config import Base
    from align.proofs import UnprovedSave, prove_scores
    from preference_data.batches import Group
    from reward_models.scalar_head import HEAD_KEY, ScalarHead, Scoring

    roles = make_roles().eval()
    roles.add("reward", fresh=True, trainable=True, head=ScalarHead(32))
    shake(roles.parameters_of("reward"))
    saved = roles.save("reward", tmp_path, Scoring(roles.renderer.fingerprint(), 64))
    config = SimpleNamespace(base=Base(model=roles.base_path))
    engine = SimpleNamespace(device=torch.device("cpu"))
    context: Any = SimpleNamespace(config=config, engine=engine)
    group = Group((5, 6, 7), ((8, 9, 1), (10, 1)))
    prove_scores(context, roles, "reward", saved, group)
    path = saved / "adapter_model.safetensors"
    state = load_file(path)
    head = state.pop(HEAD_KEY)
    if damage != "missing":
        state[HEAD_KEY] = head[:0] if damage == "empty" else head * 1.01
    save_file(state, path, metadata={"format": "pt"})
    says = "differ by" if damage == "other" else "cannot be loaded again: .* head"
    with pytest.raises(UnprovedSave, match=says):
        prove_scores(context, roles, "reward", saved, group)


if __name__ == "__main__":
    child(Path(sys.argv[1]), Path(sys.argv[2]))
