"""The `align` command: arguments → one call. What is heavy is imported inside the commands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from align import __version__
from align.cli_chat import chat
from align.cli_data import convert, import_, inspect
from align.cli_models import benchmark, export, score, select, serve_reward
from align.cli_options import Debug
from align.cli_runs import compare
from align.cli_tracking import dashboard
from align.config import Config, ConfigError, json_schema, load_config
from align.config_errors import hint
from align.console import INTERRUPTED, exit_code, say, show_memory, show_plan
from align.console import show_summary as print_summary
from align.interrupts import terminable
from align.progress import silent

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

    resumes = arguments[0] == "run"
    return exit_code(call, debug="--debug" in arguments, resumes=resumes) or code


def _sentence(error: Any) -> str:
    text = " ".join(str(error.format_message()).split()).replace("Value error, ", "")
    return text if text.endswith((".", "?")) else f"{text}."


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version")] = False) -> None:
    if version:
        say(f"align {__version__}")
        raise typer.Exit()


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
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress, only warnings and the table.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run a configuration: every step that is not done yet, in order."""
    settings = load_config(config, overrides or ())
    for option, names in (("--only", [only]), ("--from", [start_from]), ("--force", force or [])):
        for name in names:
            _check_step(settings, option, name)
    if only is not None and start_from is not None:
        raise ConfigError("--only and --from exclude each other; leave one out.")
    with terminable(), silent() if quiet else nullcontext():
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


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    card: Annotated[
        str | None,
        typer.Option(help="Say what fits a card: its GiB, or a name such as rtx4090 or a100-80."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many processes, with a device each, the run will have.")
    ] = 1,
    debug: Debug = False,
) -> None:
    """Show what would run, what is done and what memory it takes, without loading a model."""
    settings = load_config(config, overrides or ())
    from align.memory.cards import card_of
    from align.memory.plan import plan_memory
    from align.pipeline import Pipeline

    device = None if card is None else card_of(card)
    show_plan(Pipeline(settings).plan())
    folder = Path(settings.output_dir)
    show_memory(plan_memory(settings, folder, processes, on_gpu=device is not None), device)


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    debug: Debug = False,
) -> None:
    """Write the report of a run, finished or not, as one HTML page."""
    if not (run_dir / "run.json").is_file():
        raise ConfigError(f"{run_dir} is no run folder: it holds no run.json.")
    from align.report import write_report

    say(f"Report: {write_report(run_dir)}")


def schema(debug: Debug = False) -> None:
    """Print the JSON schema of a configuration file, for editors."""
    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "import": import_,
    "convert": convert,
    "inspect": inspect,
    "score": score,
    "serve-reward": serve_reward,
    "benchmark": benchmark,
    "select": select,
    "chat": chat,
    "export": export,
    "report": report,
    "compare": compare,
    "dashboard": dashboard,
    "schema": schema,
}
"""As `align --help` lists them."""
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


if __name__ == "__main__":
    sys.exit(main())
