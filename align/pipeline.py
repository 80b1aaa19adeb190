"""Ordered steps over one base: checked before anything loads, skipped when done, resumed when not.

Importing this module loads neither torch nor transformers; running does.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checkpoints, deepspeed_settings, launched
from align.artifacts import Artifact, Rows, fingerprint, hash_files, write_json
from align.config import BUILTIN_DATA, Config, ConfigError, Reward
from align.config_rewards import IDENTITY

if TYPE_CHECKING:
    from align.engine import Engine
    from align.memory.plan import MemoryPlan

STAGES = {
    "pretrain": "align.stages.pretrain",
    "sft": "align.stages.sft",
    "reward": "align.stages.reward",
    "dpo": "align.stages.dpo",
    "ppo": "align.stages.ppo",
    "evaluate": "align.stages.evaluate",
    "export": "align.stages.export",
}
CLUSTERS_FILE = "clusters.json"
HARMLESS = {"save_iterations", "save_steps"}
"""Train settings that change nothing of what a step leaves behind."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")
log = logging.getLogger("align")


class StepError(RuntimeError):
    """A step of the run that failed; the message names it and says why."""


@dataclass(frozen=True)
class Task:
    """A node of the pipeline: the world, the base, a data source or a step."""

    name: str
    kind: str
    folder: Path
    fingerprint: str
    inputs: dict[str, str]
    """Fingerprints of what it is made from, by name."""

    def done(self) -> Artifact | None:
        """Its complete artifact, if it was made from the same things."""
        artifact = Artifact.load(self.folder)
        if artifact is None or artifact.fingerprint != self.fingerprint:
            return None
        return artifact

    def state(self) -> tuple[str, str]:
        """("done" | "resume" | "run", why)."""
        artifact = Artifact.load(self.folder)
        if artifact is None:
            if (found := checkpoints.newest(self.folder, self.fingerprint)) is not None:
                return "resume", f"after {found.unit} {found.number}"
            begun = self.folder.is_dir() and any(self.folder.iterdir())
            return "run", "interrupted, starts again" if begun else "new"
        if artifact.fingerprint == self.fingerprint:
            return "done", ""
        changed = [
            name for name, print_ in self.inputs.items() if artifact.inputs.get(name) != print_
        ]
        return "run", f"{', '.join(changed)} changed" if changed else "its settings changed"


def main_process() -> bool:
    """Whether this process is rank 0, which alone prints and writes."""
    return os.environ.get("RANK", "0") == "0"


class Pipeline:
    """A run: `Pipeline(load_config("configs/quickstart.yaml")).run()`."""

    def __init__(self, config: Config):
        self.config = config
        self.folder = Path(config.output_dir)
        self._check_files()

    # --- before anything loads --------------------------------------------------------------------

    def _check_files(self) -> None:
        """Raises ConfigError for a missing file, or a folder that belongs to another run."""
        record = _read_json(self.folder / "run.json")
        if record is not None and record.get("name") != self.config.name:
            raise ConfigError(
                f"output_dir {str(self.folder)!r} belongs to the run {record.get('name')!r}, not "
                f"to {self.config.name!r}; choose another folder."
            )
        if record is None and self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(
                f"output_dir {str(self.folder)!r} is not empty and holds no run; choose another "
                f"folder."
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"output_dir {str(self.folder)!r} is a file.")
        deepspeed_settings.check(self.config)
        launched.check(self.config, os.environ)
        for source, data in self.config.data.items():
            if not data.path.startswith("builtin:") and not _files_of(data.path):
                raise ConfigError(f"data.{source}.path: there is no file {data.path!r}.")
        for name, step in self.config.steps.items():
            for option, path in step.files_used():
                if not Path(path).exists():
                    raise ConfigError(f"steps.{name}.{option}: there is no file {path!r}.")

    def tasks(self) -> list[Task]:
        """Everything that a full run makes, in order, with fingerprints."""
        config = self.config
        made: dict[str, Task] = {}

        def add(name: str, kind: str, folder: Path, own: Any, inputs: Sequence[str]) -> None:
            prints = {other: made[other].fingerprint for other in inputs}
            print_ = fingerprint(kind, own, prints)
            made[name] = Task(name, kind, folder, print_, prints)

        if any(data.path in BUILTIN_DATA for data in config.data.values()):
            own = [config.world.model_dump(), config.seed, _source_hash("synthetic.py")]
            add("world", "world", self.folder / "world", own, ())
        for source, data in config.data.items():
            builtin = data.path in BUILTIN_DATA
            own = [
                data.model_dump(exclude={"test_fraction", *(() if builtin else ("path",))}),
                config.run_as(source),
                None if builtin else _content_hash(data.path),
            ]
            wide = data.columns.wide if data.columns else None
            if wide is not None and isinstance(wide.items, str):
                own.append(_content_hash(wide.items))
            folder = self.folder / "data" / source
            add(f"data.{source}", "data", folder, own, ("world",) if builtin else ())
        base = config.base
        computed = base.model_dump(exclude={"gradient_checkpointing"})  # gives the same numbers
        sources = [f"data.{source}" for source in config.data]
        if config.near_duplicates is not None and sources:
            add("splits", "splits", self.folder / "splits", config.near_duplicates, sources)
        clusters = self._clusters()
        if base.model == "builtin:tiny":
            add("base", "base", self.folder / "base", [computed, config.seed], sources)
        else:
            own = [computed, _folder_hash(base.model)]
            add("base", "base", Path(base.model), own, ())
        for name, step in config.steps.items():
            inputs = ["base"]
            inputs += [other for _, other, _ in step.steps_used() if other != "base"]
            inputs += [f"data.{source}" for _, source, _ in step.data_used()]
            if step.kind == "export":  # its model card quotes what was measured before it
                inputs += [o for o in made if o in config.steps and made[o].kind == "evaluate"]
            fractions = {s: config.data[s].test_fraction for _, s, _ in step.data_used()}
            lora = config.lora.model_dump() if config.lora else None
            # What the clusters are, not what they were made of: a source that adds none to those
            # of the others leaves their steps as they are.
            harmless = {"train": HARMLESS, "require": True}
            settings = step.model_dump(by_alias=True, exclude=harmless, context=IDENTITY)
            own = [settings, lora, config.seed, fractions, clusters]
            own += [_state_hash(path) for _, path in step.files_used()]
            add(name, step.kind, self.folder / name, own, list(dict.fromkeys(inputs)))
        return list(made.values())

    def plan(self) -> list[dict[str, Any]]:
        """What a run would do with each task, without loading anything heavy.

        Raises ConfigError for a reward of a step that would run and that cannot be had.
        """
        rows = self._plan()
        self._check_rewards([row["name"] for row in rows if row["state"] != "done"])
        return rows

    def memory_plan(self, world_size: int, on_gpu: bool = False) -> MemoryPlan:
        """What each step would hold on one of so many devices, from shapes and settings alone."""
        from align.memory.plan import plan_memory

        return plan_memory(self.config, self.folder, world_size, on_gpu)

    def _plan(self, again: Collection[str] = ()) -> list[dict[str, Any]]:
        """`again` are steps that run though they may be done."""
        rows: list[dict[str, Any]] = []
        stale: set[str] = set()
        for task in self.tasks():
            if task.kind == "base" and not self._base_is_ours():
                continue
            state, reason = ("run", "asked for") if task.name in again else task.state()
            if state == "resume" and self.config.deepspeed:
                state, reason = "run", "interrupted, starts again under DeepSpeed"
            if state != "run" and stale & set(task.inputs):
                state, reason = "run", f"{', '.join(sorted(stale & set(task.inputs)))} will run"
            if state != "done":
                stale.add(task.name)
            artifact = task.done()
            count = artifact.rows.rows_out if artifact and artifact.rows else None
            if state == "done" and artifact and task.name in self.config.steps:
                unmet = self._unmet(task.name, artifact)
                reason = f"stops the run: {'; '.join(unmet)}" if unmet else reason
            rows.append(
                {"name": task.name, "kind": task.kind, "state": state, "reason": reason,
                 "rows": count}
            )  # fmt: skip
        return rows

    def _base_is_ours(self) -> bool:
        return self.config.base.model == "builtin:tiny"

    # --- running ----------------------------------------------------------------------------------

    def run(
        self,
        only: str | None = None,
        start_from: str | None = None,
        force: Sequence[str] = (),
        until_kind: str | None = None,
        command: str = "",
    ) -> dict[str, Any]:
        """Runs what is not done, and returns what `summary.json` holds.

        `only` runs one step (what it stands on must be done); `start_from` runs a step and all
        after it again; `force` runs the named steps again; `until_kind` leaves out steps that no
        step of that kind stands on. The rewards of all steps that will run are looked for first;
        this executes the modules that reward functions are in. Raises ConfigError for an unknown
        name or a reward that cannot be had, StepError when a step fails, or a reward model does not
        meet its requirements; what has run, the summary and the report stay.
        """
        self._check_names([only, start_from, *force])
        chosen = self._chosen(only, until_kind)
        again = set(force)
        if start_from is not None:
            order = list(self.config.steps)
            again |= set(order[order.index(start_from) :])
        undone = {row["name"] for row in self._plan(again) if row["state"] != "done"}
        self._check_rewards([name for name in chosen if name in undone or name == only])
        from align.engine import Engine
        from align.quiet import quiet_libraries

        quiet_libraries()
        started = time.monotonic()
        engine = Engine(self.config.deepspeed, deepspeed_settings.wants_bf16(self.config))
        try:
            if only is not None:
                engine.from_main(lambda: self._require_inputs(only))
            engine.from_main(lambda: self._claim(command))
            summary: dict[str, Any] = {}
            refusal: str | None = None
            for name in [task.name for task in self.tasks()]:
                if name in self.config.steps and name not in chosen:
                    continue
                # Anew each time: the fingerprints of steps hold what the splits turned out to be.
                task = next(task for task in self.tasks() if task.name == name)
                stale = task.name in again or not again.isdisjoint(task.inputs)
                artifact, cached = self._run_task(engine, task, stale, wanted=name == only)
                if not cached:
                    again.add(task.name)  # what stands on it is made anew
                if task.name in self.config.steps:
                    summary[task.name] = _summary_of(artifact, cached)
                    if refusal := self._refusal(task.name, artifact):
                        break
            result = {
                "name": self.config.name,
                "seconds": round(time.monotonic() - started, 1),
                "steps": summary,
            }
            if engine.is_main:
                self._conclude(result)
            engine.barrier()
            if refusal:
                raise StepError(refusal)
            return result
        except BaseException as error:
            if (elsewhere := engine.failed(error)) is not None:
                raise StepError(elsewhere) from error
            raise
        finally:
            engine.close()

    def _check_rewards(self, names: Sequence[str]) -> None:
        """Raises ConfigError for what the rewards and judges of these steps need and do not have;
        the modules of reward functions are executed for it."""
        from align.reward_checks import check_rewards

        check_rewards(self.config, [name for name in self.config.steps if name in names])

    def _check_names(self, names: Sequence[str | None]) -> None:
        from align.config_errors import hint

        for name in names:
            if name is not None and name not in self.config.steps:
                raise ConfigError(
                    f"there is no step {name!r}{hint(name, self.config.steps)} "
                    f"Steps: {', '.join(self.config.steps)}."
                )

    def _chosen(self, only: str | None, until_kind: str | None) -> set[str]:
        if only is not None:
            return {only}
        if until_kind is None:
            return set(self.config.steps)
        wanted = [n for n, step in self.config.steps.items() if step.kind == until_kind]
        if not wanted:
            raise ConfigError(f"the configuration has no step of kind {until_kind}.")
        chosen: set[str] = set()
        while wanted:
            name = wanted.pop()
            chosen.add(name)
            wanted += [
                other for _, other, _ in self.config.steps[name].steps_used() if other != "base"
            ]
        return chosen

    def _unmet(self, name: str, artifact: Artifact) -> list[str]:
        """What the step's own requirements miss in its artifact."""
        step = self.config.steps[name]
        if not isinstance(step, Reward) or step.require is None:
            return []
        return step.require.unmet(artifact.metrics)

    def _refusal(self, name: str, artifact: Artifact) -> str | None:
        """Why nothing is to be built on the step, if that is so."""
        unmet = self._unmet(name, artifact)
        if not unmet:
            return None
        return (
            f"step {name} does not show what steps.{name}.require asks for, and nothing after it "
            f"was run: {'; '.join(unmet)}. Its report card is in {self.folder / 'report.html'}."
        )

    def _require_inputs(self, only: str) -> None:
        """Raises ConfigError if a step that `only` stands on is not done with today's settings,
        StepError if it does not meet its requirements."""
        tasks = {task.name: task for task in self.tasks()}
        for _, other, _ in self.config.steps[only].steps_used():
            artifact = tasks[other].done()
            if artifact is not None and other != "base" and (why := self._refusal(other, artifact)):
                raise StepError(why)
            if other != "base" and artifact is None:
                state, reason = tasks[other].state()
                why = f" ({reason})" if reason and state == "run" else ""
                raise ConfigError(
                    f"--only {only} needs the step {other!r}, which is not done{why}; run it first."
                )

    def _claim(self, command: str) -> None:
        """Makes the run folder this run's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {
            "name": self.config.name,
            "config": self.config.model_dump(mode="json", by_alias=True),
            "command": command,
        }
        write_json(self.folder / "run.json", record)

    def _run_task(
        self, engine: Engine, task: Task, again: bool, wanted: bool
    ) -> tuple[Artifact, bool]:
        """The task's artifact, and whether it was there already.

        `again` starts it anew whatever there is, `wanted` runs it though it is done.
        """
        done = None if again or wanted else engine.from_main(task.done)
        if done is not None or (task.kind == "base" and not self._base_is_ours()):
            if engine.is_main and done is not None:
                checkpoints.remove(task.folder)  # of a run that was killed before it could
            return done or _external_base(task), True
        before = engine.from_main(lambda: self._open(task, again))
        started = time.monotonic() - before
        if task.name in self.config.steps:
            artifact = self._run_step(engine, task, before)
        else:
            artifact = engine.from_main(lambda: self._make(task))
        artifact = dataclasses.replace(artifact, seconds=round(time.monotonic() - started, 1))
        if engine.is_main:
            artifact.save()
            checkpoints.remove(task.folder)
        engine.barrier()
        return artifact, False

    def _open(self, task: Task, again: bool) -> float:
        """Makes the task's folder ready; rank 0 alone comes here.

        It is emptied, unless the task goes on from a checkpoint in it: then the seconds that it
        has taken are returned.
        """
        log.info("%s …", task.name)
        found = checkpoints.newest(task.folder, task.fingerprint)
        complete = (task.folder / "artifact.json").exists()
        if found is not None and not (again or complete or self.config.deepspeed):
            return found.seconds
        if task.name in self.config.steps and task.folder.is_dir() and not (again or complete):
            log.warning("%s starts again: %s", task.name, self._why_anew(task))
        # In this order: what is left by a kill in between must not be taken for a whole.
        (task.folder / "artifact.json").unlink(missing_ok=True)
        checkpoints.remove(task.folder)
        if task.folder.is_dir():
            shutil.rmtree(task.folder)
        task.folder.mkdir(parents=True)
        return 0.0

    def _why_anew(self, task: Task) -> str:
        """Why a step that was interrupted does not go on where it was."""
        if task.kind not in checkpoints.RESUMABLE:
            return f"a step of kind {task.kind} has no checkpoints"
        if self.config.deepspeed:
            return "there are no checkpoints under DeepSpeed"
        if (task.folder / checkpoints.FOLDER).is_dir():
            return "its checkpoints are damaged, or were made with other settings or inputs"
        return "it was interrupted before its first checkpoint"

    def _make(self, task: Task) -> Artifact:
        """The world, a data source, or the built-in base; rank 0 alone comes here."""
        config = self.config
        rows, metrics = None, {}
        if task.kind == "world":
            from preference_data.synthetic import write_world

            world = config.world
            write_world(
                task.folder, config.seed, documents_=world.documents,
                demonstrations_=world.demonstrations, items=world.items, prompts_=world.prompts,
            )  # fmt: skip
        elif task.kind == "data":
            rows = self._import(task)
        elif task.kind == "splits":
            metrics = self._find_clusters(task)
        else:
            from align.base import build_tiny
            from preference_data import views

            texts = [
                text for source in config.data for text in views.text(self._data_folder(source))
            ]
            metrics = {
                "parameters": float(build_tiny(task.folder, config.base, texts, config.seed))
            }
        return Artifact(
            name=task.name, kind=task.kind, path=task.folder, fingerprint=task.fingerprint,
            inputs=task.inputs, rows=rows, metrics=metrics, seed=config.seed, versions=_versions(),
        )  # fmt: skip

    def _import(self, task: Task) -> Rows:
        from preference_data import views
        from preference_data.sources import import_data

        source = task.name.removeprefix("data.")
        data = self.config.data[source]
        path = data.path
        if path in BUILTIN_DATA:
            name = path.removeprefix("builtin:")
            suffix = "csv" if name == "labels" else "jsonl"
            path = str(self.folder / "world" / f"{name}.{suffix}")
        report = import_data(
            self.config.run_as(source), path, task.folder, format=data.format,
            columns=data.columns, limit=data.limit, max_quarantined=data.max_quarantined,
            encoding=data.encoding, delimiter=data.delimiter, personal_data=data.personal_data,
        )  # fmt: skip
        if data.aggregate is not None:
            views.write_aggregated(task.folder, data.aggregate)
        return Rows(report.rows_in, report.rows_out, report.rows_quarantined)

    def _find_clusters(self, task: Task) -> dict[str, float]:
        from preference_data import views
        from preference_data.near_duplicates import near_duplicates
        from preference_data.splits import opening

        assert self.config.near_duplicates is not None
        openings = {
            found.id: found.text
            for source in self.config.data
            if self.config.run_as(source) != "text"
            for found in map(opening, views.prompts(self._data_folder(source)))
        }
        clusters = near_duplicates(openings, self.config.near_duplicates)
        write_json(task.folder / CLUSTERS_FILE, dict(clusters.representatives))
        return {"prompts": float(len(openings)), "clusters": float(len(clusters.groups))}

    def _clusters(self) -> dict[str, str]:
        """What the splits keep together; nothing where that is not wanted, whatever is there."""
        if self.config.near_duplicates is None:
            return {}
        return _read_json(self.folder / "splits" / CLUSTERS_FILE) or {}

    def _data_folder(self, source: str) -> Path:
        return self.folder / "data" / source

    def _run_step(self, engine: Engine, task: Task, before: float) -> Artifact:
        """`before`: seconds that the step has taken in earlier runs, which it goes on from."""
        import torch
        from safetensors import SafetensorError

        from align.stage import StageContext
        from align.tracking import make_tracker
        from preference_data.near_duplicates import Clusters
        from preference_data.quarantine import DataError

        step = self.config.steps[task.name]
        seed = step.seed if step.seed is not None else self.config.seed
        base = self.folder / "base" if self._base_is_ours() else self.config.base.model
        inputs = {
            other: _required(Artifact.load(self.folder / other), other)
            for _, other, _ in step.steps_used()
            if other != "base"
        }
        tracker = make_tracker(
            self.config, task.name, step.kind, task.folder, task.fingerprint, engine.is_main
        )
        context = StageContext(
            config=self.config, name=task.name, step=step, folder=task.folder,
            base_path=str(base), inputs=inputs,
            data={s: self._data_folder(s) for _, s, _ in step.data_used()},
            engine=engine, tracker=tracker, seed=seed,
            clusters=Clusters(self._clusters()),
        )  # fmt: skip
        torch.manual_seed(seed)  # a new adapter must not depend on what ran before in this process
        engine.checkpoints = checkpoints.Checkpoints()
        engine.begin_memory()
        if step.kind in checkpoints.RESUMABLE and engine.deepspeed is None:
            engine.checkpoints = checkpoints.StepCheckpoints(
                engine, task.folder, task.name, task.fingerprint,
                "iteration" if step.kind == "ppo" else "step", tracker, before,
            )  # fmt: skip
        try:
            result = import_module(STAGES[step.kind]).run(context)
        except (ConfigError, DataError, OSError):
            raise
        except (RuntimeError, ValueError) as error:
            raise StepError(f"step {task.name} failed: {error}") from error
        except SafetensorError as error:  # which hides a full disk in its text
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, "No space left on device", str(task.folder)) from None
            raise
        metrics = {**result.metrics, **engine.memory()}
        tracker.finish(metrics)
        return Artifact(
            name=task.name, kind=step.kind, path=task.folder, fingerprint=task.fingerprint,
            inputs=task.inputs, base=result.base, rows=result.rows, metrics=metrics,
            seed=seed, versions=_versions(),
        )  # fmt: skip

    def _conclude(self, result: dict[str, Any]) -> None:
        """`summary.json` and the report; steps that were not part of this run stay in them."""
        from align.report import write_report

        steps = dict(result["steps"])
        for name in self.config.steps:
            if name not in steps and (artifact := Artifact.load(self.folder / name)):
                steps[name] = _summary_of(artifact, cached=True)
        ordered = {name: steps[name] for name in self.config.steps if name in steps}
        write_json(self.folder / "summary.json", {**result, "steps": ordered})
        write_report(self.folder)


def _required(artifact: Artifact | None, name: str) -> Artifact:
    if artifact is None:
        raise ConfigError(f"the step {name!r} is not done, and another needs it; run it first.")
    return artifact


def _external_base(task: Task) -> Artifact:
    return Artifact(
        name=task.name, kind="base", path=task.folder, fingerprint=task.fingerprint, inputs={}
    )


def _summary_of(artifact: Artifact, cached: bool) -> dict[str, Any]:
    return {
        "kind": artifact.kind,
        "seconds": artifact.seconds,
        "cached": cached,
        "rows": artifact.rows.to_json() if artifact.rows else None,
        "metrics": artifact.metrics,
    }


def _files_of(path: str) -> dict[str, Path]:
    """The files of a file, a folder or a glob, by path; empty if there is none."""
    place = Path(path)
    if place.is_file():
        return {path: place}
    if place.is_dir():
        return {str(file): file for file in sorted(place.rglob("*")) if file.is_file()}
    if any(character in path for character in "*?["):
        import glob

        return {name: Path(name) for name in sorted(glob.glob(path)) if Path(name).is_file()}
    return {}


def _content_hash(path: str) -> str:
    """Of the files at `path`, by their names without folders: the same wherever they lie."""
    files = tuple(_files_of(path).values())
    return _hash_as_they_are(files, tuple(_state_of(file) for file in files))


@lru_cache(maxsize=256)
def _hash_as_they_are(files: tuple[Path, ...], states: tuple[tuple[int, int], ...]) -> str:
    del states  # files that were not touched are not read again
    return hash_files({f"{i} {file.name}": file for i, file in enumerate(files)})


def _state_of(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _folder_hash(model: str) -> str:
    """Content of a local model by names, sizes and times of change: weights are too big to read."""
    place = Path(model)
    if not place.is_dir():
        return model
    files = sorted(place.iterdir())
    return fingerprint([(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files])


def _state_hash(path: str) -> str:
    """Of a function's file its content; of a reward model's folder what `_folder_hash` takes."""
    if Path(path).is_file():
        return _content_hash(path)
    files = _files_of(path)
    return fingerprint([(name, *_state_of(file)) for name, file in files.items()])


def _source_hash(file: str) -> str:
    import preference_data

    return hash_files({file: Path(str(preference_data.__file__)).parent / file})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in ("align-toolkit", *LIBRARIES):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
