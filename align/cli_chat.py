"""The command of `align` that talks to policies: chat."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from align.chat_prompts import Row, check_output, read_prompts
from align.cli_options import Debug, Force, check_folder, check_new, find_device
from align.config import ConfigError
from align.console import say, warn
from preference_data.counts import counted, verb
from reward_models.folders import SCORING_FILE, weights_folder

if TYPE_CHECKING:
    from align.chat import Sampling, Score, Voice

NAMED_FAULTS = 20
"""Rows without an answer that are named, at most."""


def chat(
    policy: Annotated[
        Path, typer.Argument(metavar="STEP", help="The folder of a step that trains a policy.")
    ],
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop.")] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="STEP", help="A second policy, asked the same.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The conversation's system message.")] = None,
    reward: Annotated[
        Path | None, typer.Option(metavar="STEP", help="A reward step that scores each answer.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts: JSONL, CSV, or one a line.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --prompts: the .jsonl or .csv file of answers.")
    ] = None,
    force: Force = False,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of the sampling; 0 takes the likeliest token.")
    ] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer, at most.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="As cpu or cuda:0; a GPU if there is one.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Talk to a policy, or to two at once; or answer a file of prompts."""
    _check(prompt, prompts, output, force)
    paths = [policy] if compare is None else [policy, compare]
    for path in paths:
        check_policy(path)
    if reward is not None:
        _check_reward(reward)
    if output is not None:
        check_output(output)
        check_new("--output", output, force)
    rows = None if prompts is None else read_prompts(prompts, system)
    from align.chat import Conversation, Sampling
    from align.chat_session import Session

    sampling = Sampling(temperature, max_new_tokens, seed)
    voices, score = _load(paths, reward, device)
    if rows is not None:
        _answer(rows, voices, sampling, score, output)
        return
    session = Session([Conversation(voice, system) for voice in voices], sampling, score)
    if prompt is None:
        session.run()
    elif not session.ask(prompt):
        raise typer.Exit(1)


def _check(prompt: str | None, prompts: Path | None, output: Path | None, force: bool) -> None:
    if prompt is not None and prompts is not None:
        raise ConfigError("--prompt and --prompts exclude each other; leave one out.")
    if prompt is not None and not prompt.strip():
        raise ConfigError("--prompt is empty.")
    if output is not None and prompts is None:
        raise ConfigError("--output has no effect without --prompts; leave it out.")
    if force and output is None:
        raise ConfigError("--force has no effect without --output; leave it out.")


def _check_reward(path: Path) -> None:
    try:
        check_folder(path)
    except ConfigError as error:
        raise ConfigError(f"--reward: {error}") from None


def check_policy(path: Path) -> None:
    """Raises ConfigError for what is known not to be a policy before anything is loaded."""
    check_folder(path)
    if (weights_folder(path) / SCORING_FILE).is_file() or (path / "members").is_dir():
        raise ConfigError(
            f"{path} is a reward model: it scores answers and writes none. Name a policy, or use "
            f"`align score`."
        )
    if (path / "run.json").is_file():
        steps = [f"{path / name}" for name in _policies_of(path)]
        known = f": {', '.join(steps)}" if steps else ", once one is done"
        raise ConfigError(f"{path} is a run; name one of its policies{known}.")


def _policies_of(run: Path) -> list[str]:
    """Names of the run's steps that left a policy."""
    config = json.loads((run / "run.json").read_text(encoding="utf-8")).get("config") or {}
    kinds = {name: step.get("kind") for name, step in (config.get("steps") or {}).items()}
    trained = ("pretrain", "sft", "dpo", "ppo")
    return [n for n, kind in kinds.items() if kind in trained and (run / n).is_dir()]


def _load(
    paths: list[Path], reward: Path | None, device: str | None
) -> tuple[list[Voice], Score | None]:
    from align.chat import Voice, load_score, names_of
    from align.quiet import quiet_libraries

    quiet_libraries()
    found = find_device(device)
    named = zip(paths, names_of(paths), strict=True)
    voices = [Voice.load(path, name, found) for path, name in named]
    return voices, None if reward is None else load_score(reward, found)


def _answer(
    rows: list[Row],
    voices: list[Voice],
    sampling: Sampling,
    score: Score | None,
    output: Path | None,
) -> None:
    from align.chat_prompts import answer_file
    from align.progress import silent

    shown = output is None and sys.stdout.isatty()  # the answers themselves are
    with silent() if shown else nullcontext():
        result = answer_file(rows, voices, sampling, score, output)
    answered = result.rows - len(result.faults)
    if output is not None:
        say(f"{answered:,} of {counted(result.rows, 'prompt')} answered: {output}")
    if result.faults:
        faults = len(result.faults)
        warn(
            f"{faults:,} of {counted(result.rows, 'prompt')} {verb(faults, 'has', 'have')} no "
            "answer:"
        )
        for fault in result.faults[:NAMED_FAULTS]:
            warn(f"  {fault}.")
        if (more := faults - NAMED_FAULTS) > 0:
            warn(f"  and {more:,} more.")
