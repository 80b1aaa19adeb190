"""A folder to hand on: the policy, optionally merged into its base, and a card with the facts.

What is written is loaded again with plain transformers and peft, in float32, and its logits are
compared with those of the step that trained it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from align.artifacts import Artifact, write_json, write_text
from align.base import load_base, load_renderer
from align.config import POLICY_KINDS, Base, ConfigError, Lora
from align.model_card import model_card
from align.proofs import UnprovedSave
from align.quiet import quiet_libraries
from align.roles import Roles
from align.stage import StageContext, StageResult
from align.summary import mapping_or_empty, read_run
from reward_models.folders import find_base

PARTS = ("adapter", "model", "base", "merged")
"""The folders that an export may hold, the policy's own first."""
TOLERANCE = 1e-4
"""Largest change of a logit, against the largest logit where that is over 1."""


def run(context: StageContext) -> StageResult:
    """Exports the step's policy into its own folder."""
    step = context.step
    policy = context.inputs[step.policy]
    metrics = context.engine.from_main(
        lambda: _write(policy, context.folder, step.merge, step.license)
    )
    own_base = context.folder / "base"
    return StageResult(metrics, base=str(own_base) if own_base.is_dir() else policy.base)


def export_folder(
    step_dir: Path, output: Path, merge: bool = False, license: str | None = None
) -> Path:
    """Exports the policy of a finished step into the new folder `output`, and returns it.

    Raises ConfigError if there is no policy in `step_dir` or something in `output`, UnprovedSave
    if the files do not compute what the step's policy does; nothing is then left in `output`.
    """
    policy = Artifact.load(step_dir.resolve())
    if policy is None:
        raise ConfigError(f"{step_dir} is no finished step: it holds no artifact.json.")
    if policy.kind not in POLICY_KINDS:
        raise ConfigError(
            f"{step_dir} is a step of kind {policy.kind}, which leaves no policy to export. "
            f"Kinds that do: {', '.join(POLICY_KINDS)}."
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not an empty folder; choose another.")
    quiet_libraries()
    output.mkdir(parents=True, exist_ok=True)
    try:
        _write(policy, output, merge, license)
    except BaseException:
        shutil.rmtree(output)
        raise
    return output


def _write(policy: Artifact, folder: Path, merge: bool, license: str | None) -> dict[str, float]:
    """1 copy; 2 prove the copy; 3 merge, and prove that; 4 the card. Returns the metrics."""
    source = policy.adapter or policy.model
    if source is None:
        raise ConfigError(f"{policy.path} holds neither an adapter nor a model.")
    if merge and policy.adapter is None:
        raise ConfigError(f"{policy.path} holds a whole model; there is no adapter to merge.")
    run_dir = policy.path.parent
    record = read_run(run_dir)
    base = _base_of(policy, mapping_or_empty(record.config.get("base")))
    trained = _trained_logits(source, base)
    _copy(source, folder / source.name)  # 1
    if policy.adapter is not None:
        if _made_by(run_dir, Path(base.model)):  # so nobody else has it
            _copy(Path(base.model), folder / "base")
            base = Base(model=str(folder / "base"))
        _name_base(folder / "adapter" / "adapter_config.json", base)
    exported = _load_plain(folder, base)
    metrics = {"export/reload_difference": _compare(folder / source.name, exported, trained)}  # 2
    if merge:
        exported.merge_and_unload().save_pretrained(folder / "merged")  # 3
        load_renderer(str(source)).tokenizer.save_pretrained(folder / "merged")
        merged = load_base(str(folder / "merged"), Base(), torch.device("cpu"))
        metrics["export/merge_difference"] = _compare(folder / "merged", merged, trained)
    _check_tokenizers(source, folder)
    for file in _files(folder):
        file.chmod(0o644)  # safetensors writes for the owner alone
    card = model_card(policy, record, base, folder, license)  # 4
    write_text(folder / "README.md", card)
    return {**_sizes(folder), **metrics}


def _base_of(policy: Artifact, configured: Mapping[str, Any]) -> Base:
    """Where the Transformer under the policy is now, to be loaded in float32."""
    if policy.base is None:
        return Base()
    found = find_base(policy.base, [policy.path.parent])
    if found is None:
        raise ConfigError(f"{policy.base}, the base under {policy.path}, is not there any more.")
    revision = configured.get("revision") if configured.get("model") == found else None
    return Base(model=found, revision=revision)


def _made_by(run_dir: Path, base: Path) -> bool:
    return base.is_dir() and base.resolve().is_relative_to(run_dir.resolve())


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("artifact.json"))


def _name_base(path: Path, base: Base) -> None:
    """Lets the adapter name the base that it is handed on with."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(base_model_name_or_path=base.model, revision=base.revision)
    write_json(path, config)


# --- the proof -----------------------------------------------------------------------------------


def _trained_logits(source: Path, base: Base) -> Tensor:
    """What the step's policy computes, loaded as the stages load it."""
    cpu = torch.device("cpu")
    if source.name == "model":
        return _logits(load_base(str(source), Base(), cpu))
    roles = Roles(load_base(base.model, base, cpu), load_renderer(str(source)), Lora(), base.model)
    roles.add("policy", weights=source)
    with roles.eval().active("policy") as model:
        return _logits(model)


def _load_plain(folder: Path, base: Base) -> Any:
    """The export as a stranger loads it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if (folder / "model").is_dir():
        return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        base.model, revision=base.revision, dtype=torch.float32
    )
    return PeftModel.from_pretrained(model, str(folder / "adapter"))


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """[4, 16, V] on ids from the whole vocabulary."""
    ids = torch.linspace(0, model.config.vocab_size - 1, 64).long().view(4, 16)
    return model.eval()(input_ids=ids, use_cache=False).logits.float()


def _compare(what: Path, model: Any, trained: Tensor) -> float:
    """The largest change of a logit. Raises UnprovedSave if it is above TOLERANCE."""
    difference = float((_logits(model) - trained).abs().max() / trained.abs().max().clamp(min=1))
    if not difference <= TOLERANCE:
        raise UnprovedSave(
            f"{what}: logits differ by {difference:.2g} from those of the policy that was trained; "
            f"the export is not kept."
        )
    return difference


def _check_tokenizers(source: Path, folder: Path) -> None:
    """Raises UnprovedSave if text would be read otherwise than in training."""
    trained = load_renderer(str(source)).fingerprint()
    for part in ("adapter", "model", "merged"):
        if (folder / part).is_dir() and load_renderer(str(folder / part)).fingerprint() != trained:
            raise UnprovedSave(f"{folder / part} holds another tokenizer than {source}.")


def _files(folder: Path) -> list[Path]:
    return [file for part in PARTS for file in (folder / part).rglob("*") if file.is_file()]


def _sizes(folder: Path) -> dict[str, float]:
    """Bytes of everything to hand on, and tensors of the policy. Raises UnprovedSave."""
    parts = [folder / part for part in PARTS if (folder / part).is_dir()]
    tensors = 0
    for path in sorted(parts[0].glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = file.keys()
            shapes = {name: file.get_slice(name).get_shape() for name in names}
        empty = [name for name, shape in shapes.items() if 0 in shape]
        if empty:
            raise UnprovedSave(f"{path} holds empty tensors: {empty[:3]}.")
        tensors += len(shapes)
    return {
        "export/bytes": float(sum(file.stat().st_size for file in _files(folder))),
        "export/tensors": float(tensors),
    }
