"""A folder to hand on: a policy or a reward model, optionally merged into its base, and a card.

What is written is loaded again with plain transformers and peft, in float32, and its logits or
scores are compared with those of the step that trained it. An ensemble of reward models is one
folder with a part for each member.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from align.artifacts import Artifact, hash_files, write_json, write_text
from align.base import load_renderer
from align.config import POLICY_KINDS, Base, ConfigError
from align.export_proofs import (
    check_tokenizer,
    compare,
    compare_reward_model,
    is_reward_model,
    load_plain,
    plain_outputs,
    probe,
    trained_outputs,
)
from align.hub import Content, Repository, layout
from align.model_card import model_card
from align.proofs import UnprovedSave
from align.quiet import quiet_libraries
from align.stage import StageContext, StageResult
from align.summary import mapping_or_empty, read_run
from reward_models.folders import SCORING_FILE, find_base

PARTS = ("adapter", "model", "members", "base", "merged")
"""The folders that an export may hold."""
RECORD = "export.json"
"""What was exported, of a folder that a push may use again."""
KINDS = (*POLICY_KINDS, "reward")


@dataclass(frozen=True)
class Model:
    """One of the models of an export; only an ensemble has several."""

    source: Path
    """The step's `adapter/` or `model/`"""
    place: Path
    """Where it lies in the export, and below `merged/`: `.`, or `members/1`"""


def run(context: StageContext) -> StageResult:
    """Exports the step's policy or reward model into its own folder. Of an export that is not
    proved, no weights are left in it."""
    step = context.step
    made = context.inputs[step.policy]

    def write() -> dict[str, float]:
        try:
            return _write(made, context.folder, step.merge, step.license)
        except BaseException:
            for part in PARTS:
                shutil.rmtree(context.folder / part, ignore_errors=True)
            raise

    metrics = context.engine.from_main(write)
    own_base = context.folder / "base"
    return StageResult(metrics, base=str(own_base) if own_base.is_dir() else made.base)


def export_folder(
    step_dir: Path, output: Path, merge: bool = False, license: str | None = None
) -> Path:
    """Exports what a finished step trained into the new folder `output`, and returns it.

    Raises ConfigError if there is neither a policy nor a reward model in `step_dir`, or something
    in `output`; UnprovedSave if the files do not compute what the step's model does. Nothing is
    then left in `output`.
    """
    made = _finished(step_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists and is not an empty folder; choose another.")
    quiet_libraries()
    output.mkdir(parents=True, exist_ok=True)
    try:
        _write(made, output, merge, license)
        write_json(output / RECORD, _record(made, output, merge, license))
    except BaseException:
        shutil.rmtree(output)
        raise
    return output


def export_for_hub(
    step_dir: Path, output: Path, repository: Repository, merge: bool, license: str | None
) -> dict[str, Content]:
    """Exports, and returns what belongs into the repository, by its path there.

    An export of the same step with the same options that is in `output` already is used as it is,
    which lets an interrupted push be repeated. The card is written anew for the repository. Raises
    as `export_folder` does, and ConfigError for an adapter that nobody could load from the hub.
    """
    made = _finished(step_dir)
    base = _base_of(made)
    whole = not is_on_hub(base)
    if whole and not merge and any(one.source.name == "adapter" for one in _models(made)):
        what = f"the local folder {base.model}" if Path(base.model).is_dir() else base.model
        raise ConfigError(
            f"The base under {step_dir} is {what} and not on the hub, so that nobody could load "
            f"its adapter; add --merge, which pushes whole weights."
        )
    record = _read_record(output / RECORD)
    if record is None or record != _record(made, output, merge, license):
        export_folder(step_dir, output, merge, license)
    files: dict[str, Content] = {**layout(output, whole and merge)}
    run_record = read_run(made.path.parent)
    card = model_card(made, run_record, base, output, license, repository)
    return {**files, "README.md": card.encode()}


def _finished(step_dir: Path) -> Artifact:
    made = Artifact.load(step_dir.resolve())
    if made is None:
        if (step_dir / "artifact.json").is_file():
            raise ConfigError(f"{step_dir} is of another version of this toolkit; run it again.")
        raise ConfigError(f"{step_dir} is no finished step: it holds no artifact.json.")
    if made.kind not in KINDS:
        raise ConfigError(
            f"{step_dir} is a step of kind {made.kind}, which leaves nothing to export. "
            f"Kinds that do: {', '.join(KINDS)}."
        )
    return made


def _models(made: Artifact) -> list[Model]:
    """Raises ConfigError for a step without weights."""
    if made.members:
        return [Model(one, one.parent.relative_to(made.path)) for one in made.members]
    source = made.adapter or made.model
    if source is None:
        raise ConfigError(f"{made.path} holds neither an adapter nor a model.")
    return [Model(source, Path())]


def _write(made: Artifact, folder: Path, merge: bool, license: str | None) -> dict[str, float]:
    """1 copy; 2 prove the copy; 3 merge, and prove that; 4 the card. Returns the metrics."""
    models = _models(made)
    adapted = models[0].source.name == "adapter"
    if merge and not adapted:
        raise ConfigError(f"{made.path} holds a whole model; there is no adapter to merge.")
    base = _base_of(made)
    rows = probe(models[0].source, base)
    trained = [trained_outputs(one.source, base, rows) for one in models]
    for one in models:
        _copy(one.source, folder / one.place / one.source.name)  # 1
    if adapted:
        if _made_by(made.path.parent, Path(base.model)):  # so nobody else has it
            _copy(Path(base.model), folder / "base")
            base = Base(model=str(folder / "base"))
        for one in models:
            _name_base(folder / one.place / "adapter" / "adapter_config.json", base)
    metrics: dict[str, float] = {}
    for one, outputs in zip(models, trained, strict=True):
        proved = _prove(one, folder, base, merge, rows, outputs)  # 2, 3
        metrics = {name: max(value, metrics.get(name, 0.0)) for name, value in proved.items()}
    if is_reward_model(models[0].source):
        for part in (folder, folder / "merged") if merge else (folder,):
            compare_reward_model(part, trained, rows)
    for file in _files(folder):
        file.chmod(0o644)  # safetensors writes for the owner alone
    card = model_card(made, read_run(made.path.parent), base, folder, license)  # 4
    write_text(folder / "README.md", card)
    return {**_sizes(folder, models), **metrics}


def _prove(
    one: Model, folder: Path, base: Base, merge: bool, rows: Tensor, trained: Tensor
) -> dict[str, float]:
    """Compares one model of the export, and its merged form, which it makes."""
    scorer = is_reward_model(one.source)
    weights = folder / one.place / one.source.name
    check_tokenizer(weights, one.source)
    plain = load_plain(weights, base, scorer)
    metrics = {"export/reload_difference": compare(weights, plain_outputs(plain, rows), trained)}
    if merge:
        merged = folder / "merged" / one.place
        _merge(plain, one.source, merged)
        again = plain_outputs(load_plain(merged, base, scorer), rows)
        metrics["export/merge_difference"] = compare(merged, again, trained)
        check_tokenizer(merged, one.source)
    return metrics


def _merge(plain: Any, source: Path, target: Path) -> None:
    """Writes the base with the adapter folded in, and what lies beside the adapter."""
    tokenizer = load_renderer(str(source)).tokenizer
    whole = plain.merge_and_unload()
    if is_reward_model(source):
        # transformers scores the last token that is no padding: the end must not be taken for it.
        padding, end = tokenizer.pad_token_id, tokenizer.eos_token_id
        whole.config.get_text_config().pad_token_id = None if padding == end else padding
    whole.save_pretrained(target)
    tokenizer.save_pretrained(target)
    if is_reward_model(source):
        shutil.copy(source / SCORING_FILE, target)


def _base_of(made: Artifact) -> Base:
    """Where the Transformer under the step's weights is now, to be loaded in float32."""
    if made.base is None:
        return Base()
    found = find_base(made.base, [made.path.parent])
    if found is None:
        raise ConfigError(f"{made.base}, the base under {made.path}, is not there any more.")
    configured = mapping_or_empty(read_run(made.path.parent).config.get("base"))
    revision = configured.get("revision") if configured.get("model") == found else None
    return Base(model=found, revision=revision)


def is_on_hub(base: Base) -> bool:
    return not base.model.startswith("builtin:") and not Path(base.model).is_dir()


def _made_by(run_dir: Path, base: Path) -> bool:
    return base.is_dir() and base.resolve().is_relative_to(run_dir.resolve())


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("artifact.json"))


def _name_base(path: Path, base: Base) -> None:
    """Lets the adapter name the base that it is handed on with."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(base_model_name_or_path=base.model, revision=base.revision)
    write_json(path, config)


def _files(folder: Path) -> list[Path]:
    return [file for part in PARTS for file in (folder / part).rglob("*") if file.is_file()]


def _record(made: Artifact, folder: Path, merge: bool, license: str | None) -> Mapping[str, Any]:
    """What an export holds. The card is left out: a person may have written in it."""
    files = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    return {
        "step": made.name,
        "kind": made.kind,
        "fingerprint": made.fingerprint,
        "merge": merge,
        "license": license,
        "sha256": hash_files(files),
    }


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _sizes(folder: Path, models: list[Model]) -> dict[str, float]:
    """Bytes of everything to hand on, and tensors of the model. Raises UnprovedSave."""
    tensors = 0
    for one in models:
        for path in sorted((folder / one.place / one.source.name).glob("*.safetensors")):
            tensors += _tensors(path)
    return {
        "export/bytes": float(sum(file.stat().st_size for file in _files(folder))),
        "export/tensors": float(tensors),
    }


def _tensors(path: Path) -> int:
    with safe_open(path, "pt") as file:
        names = file.keys()
        shapes = {name: file.get_slice(name).get_shape() for name in names}
    empty = [name for name, shape in shapes.items() if 0 in shape]
    if empty:
        raise UnprovedSave(f"{path} holds empty tensors: {empty[:3]}.")
    return len(shapes)
