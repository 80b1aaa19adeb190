"""The `align` command: arguments → one call. What is heavy is imported inside the commands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from align import __version__
from align.config import Config, ConfigError, json_schema, load_columns, load_config
from align.config_errors import hint
from align.console import INTERRUPTED, exit_code, say, show_folder, show_import, show_plan
from align.console import show_summary as print_summary
from preference_data.sources import Kind, import_data

# Typer's public names for these are only their subclasses; it brings its own copy of click.
USAGE_ERROR, CLICK_ERROR = cast("tuple[type[Exception], ...]", typer.BadParameter.__mro__[1:3])

app = typer.Typer(
    help="From human preference labels to an aligned adapter.",
    no_args_is_help=False,  # `main` does it: an error would be printed for it otherwise
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # docstrings hold `key.path[0]`, which is no markup
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Options of CONFIG to replace, as in seed=3."),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; what went wrong is said on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    code = 0

    def call() -> None:
        nonlocal code
        try:
            code = app(arguments, standalone_mode=False, prog_name="align") or 0
        except USAGE_ERROR as error:
            raise ConfigError(f"{_sentence(error)} See `align --help`.") from error
        except CLICK_ERROR as error:
            raise ConfigError(_sentence(error)) from error
        except typer.Abort:
            raise KeyboardInterrupt from None
        if code == INTERRUPTED:  # Typer has caught Ctrl-C itself
            raise KeyboardInterrupt

    return exit_code(call, debug="--debug" in arguments) or code


def _sentence(error: Any) -> str:
    text = " ".join(str(error.format_message()).split()).replace("Value error, ", "")
    return text if text.endswith((".", "?")) else f"{text}."


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version")] = False) -> None:
    if version:
        say(f"align {__version__}")
        raise typer.Exit()


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="Run this step and no other.")] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="Run this step and those after it.")
    ] = None,
    force: Annotated[
        list[str] | None, typer.Option(help="Run this step though it is done. Repeatable.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run a configuration: every step that is not done yet, in order."""
    settings = load_config(config, overrides or ())
    for option, names in (("--only", [only]), ("--from", [start_from]), ("--force", force or [])):
        for name in names:
            _check_step(settings, option, name)
    if only is not None and start_from is not None:
        raise ConfigError("--only and --from exclude each other; leave one out.")
    run_config(settings, only=only, start_from=start_from, force=tuple(force or ()))


def run_config(config: Config, **selection: Any) -> None:
    """Runs the pipeline and, in the main process, prints what came of it."""
    from align.pipeline import Pipeline, main_process

    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    summary = Pipeline(config).run(command=command, **selection)
    if main_process():
        print_summary(summary, Path(config.output_dir))


def _check_step(config: Config, option: str, name: str | None) -> None:
    if name is not None and name not in config.steps:
        raise ConfigError(
            f"{option} names the step {name!r}, which does not exist{hint(name, config.steps)} "
            f"The steps: {', '.join(config.steps)}."
        )


@app.command()
def plan(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Show what would run and what is done, without loading a model."""
    settings = load_config(config, overrides or ())
    from align.pipeline import Pipeline

    show_plan(Pipeline(settings).plan())


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A file, a folder or a glob.")],
    output: Annotated[Path, typer.Option(help="The data folder to write.")],
    kind: Annotated[Kind, typer.Option(help="What the rows are.")] = "preferences",
    format: Annotated[str, typer.Option(help="Name of a reader; auto recognises it.")] = "auto",
    mapping: Annotated[
        Path | None, typer.Option(help="YAML file that says which column is what.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Read only so many rows.")] = None,
    max_quarantined: Annotated[
        float, typer.Option(help="Share of unusable rows above which it fails.")
    ] = 0.05,
    debug: Debug = False,
) -> None:
    """Read labellers' files into a data folder, every row accounted for."""
    columns = load_columns(mapping) if mapping else None
    import_data(
        kind,
        source,
        output,
        format=format,
        columns=columns,
        limit=limit,
        max_quarantined=max_quarantined,
    )
    show_import(json.loads((output / "import.json").read_text(encoding="utf-8")))


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A data folder, a run or one of its steps.")],
    rows: Annotated[int, typer.Option(min=0, help="How many example rows to show.")] = 3,
    debug: Debug = False,
) -> None:
    """Show what a folder of the toolkit holds: counts, facts and a few rows."""
    _check_folder(folder)
    show_folder(folder, rows)


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="A reward step's folder.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    completion: Annotated[
        list[str] | None, typer.Option(help="An answer to it. Repeatable.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="JSONL with prompt and completion in each row.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Score answers with a reward model: a number a line, or the rows with their score."""
    if (file is None) == (prompt is None) or (prompt is None) != (not completion):
        raise ConfigError("Give either --file, or --prompt with one or more --completion.")
    pairs = _read_pairs(file) if file else [(prompt or "", text) for text in completion or ()]
    _check_folder(model)
    from align.quiet import quiet_libraries
    from reward_models import RewardModel

    quiet_libraries()
    scores = RewardModel.load(model).score([p for p, _ in pairs], [c for _, c in pairs])
    for (one, answer), value in zip(pairs, scores, strict=True):
        row = {"prompt": one, "completion": answer, "score": value}
        # `print`, not rich: this is for programs to read.
        print(json.dumps(row, ensure_ascii=False) if file else f"{value:.4f}")


def _read_pairs(file: Path) -> list[tuple[str, str]]:
    """(prompt, completion) of each row. Raises ConfigError naming the line."""
    pairs: list[tuple[str, str]] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError:
                raise ConfigError(f"{file}, line {number} is no JSON.") from None
            match row:
                case {"prompt": str(prompt), "completion": str(completion)}:
                    pairs.append((prompt, completion))
                case _:
                    raise ConfigError(
                        f"{file}, line {number}: a row needs prompt and completion, both text."
                    )
    return pairs


@app.command()
def chat(
    policy: Annotated[Path, typer.Argument(help="The folder of a step that trains a policy.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this and stop.")] = None,
    debug: Debug = False,
) -> None:
    """Talk to a policy. An empty line or Ctrl-D ends it."""
    _check_folder(policy)
    from align.policy import load_for_chat
    from align.quiet import quiet_libraries

    quiet_libraries()
    speaker = load_for_chat(policy)
    if prompt is not None:
        print(speaker.reply([{"role": "user", "content": prompt}]))
        return
    messages: list[dict[str, str]] = []
    while text := _ask():
        messages.append({"role": "user", "content": text})
        reply = speaker.reply(messages)
        messages.append({"role": "assistant", "content": reply})
        print(reply)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


@app.command()
def export(
    step: Annotated[Path, typer.Argument(help="The folder of a step that trains a policy.")],
    output: Annotated[Path, typer.Argument(help="The folder to write.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Also write the base with the adapter folded in.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write a policy as a folder to hand on: adapter, optionally merged weights, model card."""
    _check_folder(step)
    from align.stages.export import export_folder

    export_folder(step, output, merge)
    say(f"Exported: {output}")


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    debug: Debug = False,
) -> None:
    """Write the report of a run, finished or not, as one HTML page."""
    if not (run_dir / "run.json").is_file():
        raise ConfigError(f"{run_dir} is no run folder: it holds no run.json.")
    from align.report import write_report

    say(f"Report: {write_report(run_dir)}")


@app.command()
def schema(debug: Debug = False) -> None:
    """Print the JSON schema of a configuration file, for editors."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _check_folder(folder: Path) -> None:
    """Raises ConfigError before anything heavy is imported."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder.")


if __name__ == "__main__":
    sys.exit(main())
