"""The `align` command: arguments → one call. What is heavy is imported inside the commands."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table as RichTable
from rich.text import Text

from align import __version__
from align.config import Config, ConfigError, json_schema, load_columns, load_config
from align.config_errors import hint
from align.console import INTERRUPTED, console, exit_code, say, show_folder, show_import, show_plan
from align.console import show_summary as print_summary
from preference_data.exports import Pairs, Side, Ties, View
from preference_data.personal_data import SHORTEST_KEY
from preference_data.sources import Kind, PersonalData, import_data
from preference_data.sources.shards import shards_of
from preference_data.sources.store import RECORD_FILES

if TYPE_CHECKING:
    from preference_data.quality.page import Table

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
    encoding: Annotated[
        str | None, typer.Option(help="Of text files, where it is not found out rightly.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="Of tables, where it is not found out rightly.")
    ] = None,
    keep_raw: Annotated[
        bool, typer.Option("--keep-raw", help="Keep every judgement's row as it was read.")
    ] = False,
    personal_data: Annotated[
        PersonalData, typer.Option(help="What to do with rows that hold e-mails, phones and such.")
    ] = "keep",
    pseudonym_key: Annotated[
        Path | None,
        typer.Option(help="A file of 16 bytes or more that gives annotators pseudonyms."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Read only so many rows.")] = None,
    max_quarantined: Annotated[
        float, typer.Option(help="Share of unusable rows above which it fails.")
    ] = 0.05,
    key: Annotated[
        Path | None, typer.Option(help="key.jsonl of `align select`, whose questions these answer.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Read labellers' files into a data folder, every row accounted for."""
    if key is not None:
        _check_key(key, kind, personal_data)
    columns = load_columns(mapping) if mapping else None
    import_data(
        kind,
        source,
        output,
        format=format,
        columns=columns,
        limit=limit,
        max_quarantined=max_quarantined,
        encoding=encoding,
        delimiter=delimiter,
        keep_raw=keep_raw,
        personal_data=personal_data,
        pseudonym_key=_read_key(pseudonym_key) if pseudonym_key else None,
    )
    show_import(json.loads((output / "import.json").read_text(encoding="utf-8")))
    if key is not None:
        _join(output, key)


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--pseudonym-key: {path} cannot be read: {error.strerror}.") from None
    if len(key) < SHORTEST_KEY:
        raise ConfigError(
            f"--pseudonym-key: {path} holds {len(key)} bytes; a key needs {SHORTEST_KEY} or more, "
            "and is drawn at random."
        )
    return key


def _check_key(key: Path, kind: Kind, personal_data: PersonalData) -> None:
    """Raises before anything is imported."""
    if kind != "preferences":
        raise ConfigError(f"--key joins judgements; it has no effect on {kind}. Leave it out.")
    if personal_data == "mask":
        raise ConfigError(
            "--key restores the texts as they were asked, so that nothing stays masked. Leave out "
            "--personal-data mask, or --key."
        )
    from preference_data.labelling.files import read_key

    read_key(key)


def _join(folder: Path, key: Path) -> None:
    from align.select import joined_in_words
    from preference_data.labelling.files import apply_key

    say(joined_in_words(apply_key(folder, key), key))


@app.command()
def convert(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="A data folder.")],
    output: Annotated[Path, typer.Argument(help="The file to write: .jsonl, .parquet or .csv.")],
    view: Annotated[View, typer.Option(help="What its rows are.")] = "preference",
    ties: Annotated[Ties, typer.Option(help="Pairs: left out, or both ways with 0.5.")] = "drop",
    pairs: Annotated[Pairs, typer.Option(help="Which pairs of a ranking.")] = "all",
    max_pairs_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="A random choice of each prompt's pairs.")
    ] = None,
    min_strength: Annotated[
        float | None, typer.Option(min=0, max=1, help="Pairs: none that is known to be weaker.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of --max-pairs-per-prompt.")] = 0,
    split: Annotated[
        Side | None,
        typer.Option(help="train leaves out what is held out. If not said: all, marked."),
    ] = None,
    decided: Annotated[
        bool, typer.Option("--decided", help="Unpaired: winners are good, and losers bad.")
    ] = False,
    neutralise: Annotated[
        bool, typer.Option("--neutralise", help="CSV: no cell is run as a formula.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Write judgements as rows for a trainer, another service or a spreadsheet."""
    _check_folder(folder)
    if seed and max_pairs_per_prompt is None:
        raise ConfigError("--seed draws for --max-pairs-per-prompt; give both, or leave it out.")
    from preference_data.exports import HeldOut, rows_of, write_rows
    from preference_data.sources.store import read_judgements

    options = {
        "ties": ties, "pairs": pairs, "max_pairs_per_prompt": max_pairs_per_prompt,
        "min_strength": min_strength, "seed": seed, "decided": decided, "neutralise": neutralise,
    }  # fmt: skip
    held_out = HeldOut(rows_of(view, read_judgements(folder), options, split))
    say(f"{write_rows(held_out, output):,} rows: {output}")
    if held_out.rows and split is None:
        say(
            f"{held_out.rows:,} of them are held out: their column split says test or validation. "
            "--split train leaves them out."
        )


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="A data folder, a run or one of its steps.")],
    rows: Annotated[int, typer.Option(min=0, help="How many example rows to show.")] = 3,
    html: Annotated[
        Path | None, typer.Option(help="Write the quality of the judgements as a page, too.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the quality of the judgements as JSON alone.")
    ] = False,
    base: Annotated[
        Path | None, typer.Option(help="A model's folder: its tokenizer tells what is too long.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a conversation, with --base.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what a folder of the toolkit holds, and how good its judgements are."""
    _check_folder(folder)
    if (base is None) != (max_length is None):
        raise ConfigError("--base and --max-length go together; give both or neither.")
    preferences = (folder / RECORD_FILES["preferences"]).is_file() or bool(shards_of(folder))
    if not preferences and (html or as_json or base):
        raise ConfigError(f"{folder} holds no judgements, so that there is no quality to report.")
    if not as_json:
        show_folder(folder, rows)
    if preferences:
        _show_quality(folder, html, as_json, base, max_length)


def _show_quality(
    folder: Path, html: Path | None, as_json: bool, base: Path | None, max_length: int | None
) -> None:
    from preference_data.quality import inspect_folder
    from preference_data.quality.page import tables, write_page

    report = inspect_folder(folder, _renderer(base) if base else None, max_length)
    if html is not None:
        write_page(report, html)
    if as_json:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    for table in tables(report):
        _show_table(table)
    say("\nFindings" if report.findings else "\nNothing was found that calls for action.")
    for finding in report.findings:
        say(f"{finding.level}: {finding.sentence}\n  {finding.remedy}")
    if html is not None:
        say(f"\nPage: {html}")


def _show_table(table: Table) -> None:
    shown = RichTable(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    say(f"\n{table.title}")
    console().print(shown)
    if table.note:
        say(table.note)


def _renderer(base: Path) -> Any:
    _check_folder(base)
    from align.base import load_renderer
    from align.quiet import quiet_libraries

    quiet_libraries()
    return load_renderer(str(base))


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
        _check_folder(folder)
    from align.quiet import quiet_libraries

    quiet_libraries()
    selection = write_selection(source, load_scores(model), plan, output, earlier)
    say(f"{chosen_in_words(selection, plan)}\nTo label: {output / LABELS_FILE}")


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
