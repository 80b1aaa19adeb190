"""The commands of `align` that read and show data: import, convert, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table as RichTable
from rich.text import Text

from align.cli_options import Debug, Force, check_folder, check_new
from align.config import ConfigError, load_columns
from align.console import console, say, show_folder, show_import
from align.progress import progress
from preference_data.counts import counted, verb
from preference_data.exports import Pairs, Side, Ties, View
from preference_data.personal_data import SHORTEST_KEY
from preference_data.sources import Kind, PersonalData, import_data
from preference_data.sources.shards import shards_of
from preference_data.sources.store import IMPORT_FILE, RECORD_FILES

if TYPE_CHECKING:
    from preference_data.quality.page import Table


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
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Read labellers' files into a data folder, every row accounted for."""
    if key is not None:
        _check_key(key, kind, personal_data)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output: {output} is a file; an import writes a folder.")
    for name in (IMPORT_FILE, RECORD_FILES[kind]):
        check_new("--output", output / name, force)
    columns = load_columns(mapping) if mapping else None
    key_of_names = _read_key(pseudonym_key) if pseudonym_key else None
    with progress("import", unit="rows") as bar:
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
            pseudonym_key=key_of_names,
            advance=bar.advance,
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
            f"--pseudonym-key: {path} holds {counted(len(key), 'byte')}; a key needs "
            f"{SHORTEST_KEY} or more, and is drawn at random."
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
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Write judgements as rows for a trainer, another service or a spreadsheet."""
    check_folder(folder)
    if output.resolve().parent == folder.resolve() and output.name in RECORD_FILES.values():
        raise ConfigError(f"OUTPUT: {output} is the data folder's own; name another file.")
    check_new("OUTPUT", output, force)
    if seed and max_pairs_per_prompt is None:
        raise ConfigError("--seed draws for --max-pairs-per-prompt; give both, or leave it out.")
    from preference_data.exports import HeldOut, rows_of, write_rows
    from preference_data.sources.store import read_judgements

    options = {
        "ties": ties, "pairs": pairs, "max_pairs_per_prompt": max_pairs_per_prompt,
        "min_strength": min_strength, "seed": seed, "decided": decided, "neutralise": neutralise,
    }  # fmt: skip
    held_out = HeldOut(rows_of(view, read_judgements(folder), options, split))
    say(f"{counted(write_rows(held_out, output), 'row')}: {output}")
    if held_out.rows and split is None:
        say(
            f"{held_out.rows:,} of them {verb(held_out.rows, 'is', 'are')} held out: their column "
            "split says test or validation. "
            "--split train leaves them out."
        )


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
    force: Annotated[
        bool, typer.Option("--force", help="Replace the page if it is there.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what a folder of the toolkit holds, and how good its judgements are."""
    check_folder(folder)
    if (base is None) != (max_length is None):
        raise ConfigError("--base and --max-length go together; give both or neither.")
    preferences = (folder / RECORD_FILES["preferences"]).is_file() or bool(shards_of(folder))
    if not preferences and (html or as_json or base):
        raise ConfigError(f"{folder} holds no judgements, so that there is no quality to report.")
    if force and html is None:
        raise ConfigError("--force has no effect without --html; leave it out.")
    if html is not None:
        check_new("--html", html, force)
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
    check_folder(base)
    from align.base import load_renderer
    from align.quiet import quiet_libraries

    quiet_libraries()
    return load_renderer(str(base))
