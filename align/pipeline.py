"""Ordered steps over one base: checked before anything loads, skipped when done, resumed when not.

Importing this module loads neither torch nor transformers; running does.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import checkpoints, deepspeed_settings, launched
from align.artifacts import Artifact, read_json, write_json
from align.config import Config, ConfigError, Reward
from align.materials import make
from align.run_lock import alone_in
from align.step_run import StepError, run_step
from align.tasks import Task, base_is_ours, files_of, tasks_of

if TYPE_CHECKING:
    from align.engine import Engine
    from align.memory.plan import MemoryPlan

log = logging.getLogger("align")


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
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"output_dir {str(self.folder)!r} is a file.")
        record = read_json(self.folder / "run.json")
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
        deepspeed_settings.check(self.config)
        launched.check(self.config, os.environ)
        for source, data in self.config.data.items():
            if not data.path.startswith("builtin:") and not files_of(data.path):
                raise ConfigError(f"data.{source}.path: there is no file {data.path!r}.")
        for name, step in self.config.steps.items():
            for option, path in step.files_used():
                if not Path(path).exists():
                    raise ConfigError(f"steps.{name}.{option}: there is no file {path!r}.")

    def tasks(self) -> list[Task]:
        """Everything that a full run makes, in order, with fingerprints."""
        return tasks_of(self.config)

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
            if task.kind == "base" and not base_is_ours(self.config):
                continue
            state, reason = ("run", "asked for") if task.name in again else task.state()
            if state == "resume" and not deepspeed_settings.resumable(self.config):
                state, reason = "run", "interrupted, starts again under DeepSpeed without ZeRO"
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
        name, a reward that cannot be had, or a folder in which another run is at work, StepError
        when a step fails, or a reward model does not meet its requirements; what has run, the
        summary and the report stay.
        """
        self._check_names([only, start_from, *force])
        chosen = self._chosen(only, until_kind)
        again = set(force)
        if start_from is not None:
            order = list(self.config.steps)
            again |= set(order[order.index(start_from) :])
        undone = {row["name"] for row in self._plan(again) if row["state"] != "done"}
        will_run = chosen & (undone | {only})
        wanted = [name for name in self.config.steps if name in will_run]
        self._check_rewards(wanted)
        with alone_in(self.folder) if main_process() else nullcontext():
            return self._run(chosen, again, only, command, wanted)

    def _run(
        self, chosen: Collection[str], again: set[str], only: str | None, command: str,
        wanted: Sequence[str],
    ) -> dict[str, Any]:  # fmt: skip
        from align.engine import Engine
        from align.quiet import quiet_libraries

        quiet_libraries()
        started = time.monotonic()
        engine = Engine(self.config.deepspeed, deepspeed_settings.wants_bf16(self.config))
        try:
            if only is not None:
                engine.from_main(lambda: self._require_inputs(only))
            engine.from_main(lambda: self._claim(command))
            summary, refusal = self._run_chosen(engine, chosen, again, only, wanted)
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

    def _run_chosen(
        self, engine: Engine, chosen: Collection[str], again: set[str], only: str | None,
        wanted: Sequence[str],
    ) -> tuple[dict[str, Any], str | None]:  # fmt: skip
        """The summary of each step, and why the run ends before the last of them, if it does.

        `again` are steps to run though they are done; what was run joins them. `wanted` are the
        steps that will run: the prompts of all but the first are looked at before it.
        """
        from align.prompts import check_prompts

        summary: dict[str, Any] = {}
        for name in [task.name for task in self.tasks()]:
            if name in self.config.steps and name not in chosen:
                continue
            # Anew each time: the fingerprints of steps hold what the splits turned out to be.
            task = next(task for task in self.tasks() if task.name == name)
            stale = task.name in again or not again.isdisjoint(task.inputs)
            if task.name in wanted[:1]:
                engine.from_main(lambda: check_prompts(self.config, wanted[1:]))
            try:
                artifact, cached = self._run_task(engine, task, stale, wanted=name == only)
            except Exception as error:
                if engine.is_main and task.name in self.config.steps:
                    from align.report import report_failure

                    with suppress(OSError, ValueError):  # the error itself matters more
                        report_failure(self.folder, task.name, error)
                raise
            if not cached:
                again.add(task.name)  # what stands on it is made anew
            if task.name in self.config.steps:
                summary[task.name] = _summary_of(artifact, cached)
                if refusal := self._refusal(task.name, artifact):
                    return summary, refusal
        return summary, None

    def _check_rewards(self, names: Sequence[str]) -> None:
        """Raises ConfigError for what the rewards and judges of these steps need and do not have;
        the modules of reward functions are executed for it."""
        from align.reward_checks import check_bases, check_rewards

        chosen = [name for name in self.config.steps if name in names]
        check_bases(self.config, chosen)
        check_rewards(self.config, chosen)

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
        if done is not None or (task.kind == "base" and not base_is_ours(self.config)):
            if engine.is_main and done is not None:
                checkpoints.remove(task.folder)  # of a run that was killed before it could
            return done or _external_base(task), True
        before = engine.from_main(lambda: self._open(task, again))
        started = time.monotonic() - before
        if task.name in self.config.steps:
            artifact = run_step(task, self.config, engine, before)
        else:
            artifact = engine.from_main(lambda: make(task, self.config))
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
        resumable = deepspeed_settings.resumable(self.config)
        if found is not None and resumable and not (again or complete):
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
        if not deepspeed_settings.resumable(self.config):
            return "there are no checkpoints in bfloat16 under DeepSpeed without ZeRO"
        if (task.folder / checkpoints.FOLDER).is_dir():
            return "its checkpoints are damaged, or were made with other settings or inputs"
        return "it was interrupted before its first checkpoint"

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
