"""The commands of `align` that use a trained step: scoring, serving, measuring, asking, writing."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from align.cli_options import Debug, Force, check_folder, check_new, find_device
from align.config import ConfigError, load_columns
from align.console import say, warn
from align.hub import Repository
from align.progress import progress
from preference_data.counts import counted

if TYPE_CHECKING:
    from reward_models import RewardModel

RewardFolder = Annotated[
    str, typer.Argument(metavar="MODEL", help="A reward step's folder, or a model on the hub.")
]
Device = Annotated[str | None, typer.Option(help="As cpu or cuda:0; a GPU if there is one.")]


def score(
    model: RewardFolder,
    file: Annotated[
        str | None,
        typer.Argument(help="A table of prompts and answers, or a data folder of judgements."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The table to write, with the scores beside the answers.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    completion: Annotated[
        list[str] | None, typer.Option(help="An answer to it. Repeatable.")
    ] = None,
    column: Annotated[str, typer.Option(help="Name of the column of scores.")] = "score",
    format: Annotated[str, typer.Option(help="Name of a reader; auto recognises it.")] = "auto",
    mapping: Annotated[
        Path | None, typer.Option(help="YAML file that says which column is what.")
    ] = None,
    force: Force = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Score answers with a reward model: a number a line, or a table with its scores."""
    if (file is None) == (prompt is None) or (prompt is None) != (not completion):
        raise ConfigError(
            "Give either a FILE with --output, or --prompt with one or more --completion."
        )
    if file is None:
        answers = completion or []
        _refuse_unused(output=output, mapping=mapping, column=column, format=format, force=force)
        loaded = _reward_model(model, device)
        try:
            scores = loaded.score([prompt or ""] * len(answers), answers)
        except ValueError as error:
            raise ConfigError(f"{str(error).rstrip('.')}.") from error
        for value in scores:
            print(f"{value:.4f}")  # not rich: this is for programs to read
        return
    if output is None:
        raise ConfigError("--output names the table to write; give it with FILE.")
    _score_table(model, device, file, output, column, format, mapping, force)


def _refuse_unused(column: str, format: str, **options: Path | bool | None) -> None:
    given = {**options, "column": column != "score", "format": format != "auto"}
    for name, value in given.items():
        if value:
            raise ConfigError(f"--{name} has no effect with --prompt; leave it out.")


def _score_table(
    model: str, device: str | None, file: str, output: Path, column: str, format: str,
    mapping: Path | None, force: bool,
) -> None:  # fmt: skip
    from align.score_table import Table, score_table, scored_in_words

    columns = load_columns(mapping) if mapping else None
    table = Table.open(file, output, column, format, columns)
    for path in (output, table.quarantine):
        check_new("--output", path, force)
    loaded = _reward_model(model, device)
    with progress("score", table.count(), "rows") as bar:
        result = score_table(table, loaded.group_of, loaded.score_groups, bar.advance)
    say(scored_in_words(result))
    for sentence in result.warnings:
        warn(sentence)


def serve_reward(
    model: RewardFolder,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers in a forward pass, at most.")] = 64,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a forward pass, unless one answer is longer; by default 1024 on a CPU, "
            "8192 on a GPU.",
        ),
    ] = None,
    max_answers: Annotated[int, typer.Option(min=1, help="Answers in a request, at most.")] = 1024,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request, at most.")] = 8 << 20,
    raw: Annotated[
        bool, typer.Option("--raw", help="The head's own numbers, not (score - mean) / std.")
    ] = False,
    token_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the token to ask for.")
    ] = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Serve a reward model over HTTP: POST {"prompts", "completions"} for {"scores"}."""
    try:
        from align.reward_server import Limits, check_address, read_token, serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "starlette", "uvicorn"):
            raise
        raise ConfigError(
            f"serve-reward needs {error.name}, which is not installed: pip install fastapi uvicorn."
        ) from None
    token = read_token(token_env) if token_env else None
    _check_model(model)
    check_address(host, port)
    loaded = _reward_model(model, device)
    serve(
        loaded,
        Path(model).name,
        host,
        port,
        Limits(max_batch, max_tokens, max_answers, max_body),
        raw,
        token,
    )


def _check_model(path: str) -> None:
    """Raises ConfigError for what is neither a folder nor a name on the hub."""
    if Path(path).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        check_folder(Path(path))


def _reward_model(path: str, device: str | None) -> RewardModel:
    """Raises ConfigError for what is no folder of a reward model and no name on the hub."""
    _check_model(path)
    from align.quiet import quiet_libraries
    from reward_models import RewardModel

    quiet_libraries()
    found = find_device(device)
    try:
        return RewardModel.from_pretrained(path, device=found)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        raise ConfigError(str(error)) from error


def benchmark(
    model: RewardFolder,
    source: Annotated[
        str, typer.Argument(help="A benchmark's file or folder, or a data set on the hub.")
    ],
    layout: Annotated[
        str, typer.Option(help="Name of a benchmark, or pairs; auto recognises it.")
    ] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Score so many items of each subset, the first ones.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write: all numbers, and each item's scores.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals' bootstrap.")] = 0,
    force: Force = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Measure a reward model on RewardBench 1 or 2, RM-Bench, LLMBar, or pairs of your own."""
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output: there is no folder {output.parent}.")
    if force and output is None:
        raise ConfigError("--force has no effect without --output; leave it out.")
    if output is not None:
        check_new("--output", output, force)
    from align.benchmark_report import show_benchmark, write_benchmark
    from preference_data.reward_benchmarks import read_benchmark
    from reward_models.benchmarks import run_benchmark

    found = read_benchmark(source, layout, limit)
    loaded = _reward_model(model, device)
    with progress("benchmark", len(found.items), "items") as bar:
        report = run_benchmark(loaded, found, seed=seed, advance=bar.advance)
    show_benchmark(report)
    if output is not None:
        write_benchmark(report, output)
        say(f"Report: {output}")


def select(
    source: Annotated[
        str,
        typer.Argument(help="JSONL with prompt and completions in each row, or a data folder."),
    ],
    model: Annotated[
        list[Path], typer.Option(help="A reward step's folder. Repeatable: an ensemble.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write the labelling files into.")],
    count: Annotated[int, typer.Option(help="How many different pairs to ask.")],
    random_share: Annotated[
        float, typer.Option(help="Share of them drawn at random, for evaluation.")
    ] = 0.15,
    repeats: Annotated[
        float, typer.Option(help="Share that is asked twice, on top, with the sides changed.")
    ] = 0.05,
    max_per_prompt: Annotated[int, typer.Option(help="Most pairs of one prompt.")] = 2,
    earlier: Annotated[
        Path | None, typer.Option(help="Data folder of judgements: what they judged is not asked.")
    ] = None,
    votes: Annotated[
        int, typer.Option(help="With --earlier: ask again what has fewer judgements than this.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    debug: Debug = False,
) -> None:
    """Choose what to label next: the pairs of answers whose label would tell the models most."""
    from align.select import check_places, chosen_in_words, load_scores, write_selection
    from preference_data.labelling.files import LABELS_FILE
    from preference_data.labelling.selection import Plan

    if votes != 1 and earlier is None:
        raise ConfigError("--votes counts the judgements of --earlier; give both, or neither.")
    plan = Plan(count, random_share, repeats, max_per_prompt, votes, seed)
    check_places(source, output, earlier)
    for folder in model:
        check_folder(folder)
    from align.quiet import quiet_libraries

    quiet_libraries()
    selection = write_selection(source, load_scores(model), plan, output, earlier)
    say(f"{chosen_in_words(selection, plan)}\nTo label: {output / LABELS_FILE}")


def export(
    step: Annotated[
        Path, typer.Argument(help="The folder of a step that trains a policy or a reward model.")
    ],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write the base with the adapter folded in.")
    ] = False,
    license: Annotated[
        str | None, typer.Option(help="Licence named in the model card, as apache-2.0.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also send it to the hub, privately.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: let everybody see it.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="With --push: the branch, not main.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --push: list the files, without a network.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a trained model as a folder to hand on, with a model card; or push it to the hub."""
    check_folder(step)
    if push is not None:
        _push(step, output, merge, license, Repository(push, public, revision), dry_run)
        return
    for option, given in (("public", public), ("revision", revision), ("dry-run", dry_run)):
        if given:
            raise ConfigError(f"--{option} has no effect without --push; leave it out.")
    from align.stages.export import export_folder

    export_folder(step, output, merge, license)
    say(f"Exported: {output}")


def _push(
    step: Path, output: Path, merge: bool, license: str | None, repository: Repository,
    dry_run: bool,
) -> None:  # fmt: skip
    """Exports, then sends, or with `dry_run` tells what would be sent."""
    from align.hub import find_token, no_network, show_progress, size_of
    from align.hub import push as send
    from align.stages.export import export_for_hub

    if not dry_run:
        find_token()  # before the work
    with no_network() if dry_run else nullcontext():
        files = export_for_hub(step, output, repository, merge, license)
    say(f"Exported: {output}")
    total = sum(map(size_of, files.values()))
    what = f"{counted(len(files), 'file')}, {counted(total, 'byte')}"
    seen = "public" if repository.public else "private"
    if dry_run:
        for name, content in sorted(files.items()):
            say(f"{size_of(content):>16,}  {name}")
        say(
            f"Would go to {repository.name}, branch {repository.branch}: {what}. The repository "
            f"would be made, {seen}, if it is not there. Nothing was sent."
        )
        return
    show_progress()
    pushed = send(repository, files, f"{step.resolve().name} of {step.resolve().parent.name}")
    how = "a new repository" if pushed.created else "which was there, as a new commit"
    say(f"Pushed: {pushed.url} ({'private' if pushed.private else 'public'}; {how}), {what}.")
    if pushed.private and repository.public:
        warn(f"{repository.name} was there and is private; its settings on the hub change that.")
