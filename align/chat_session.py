"""Talking in a terminal: questions typed in, answers as they are sampled, commands in between."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from align.artifacts import write_json
from align.chat import Conversation, Sampling, Score, printable
from align.console import warn
from align.progress import on_terminal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table
    from torch import Tensor

SIDE_BY_SIDE = 80
"""Columns of a terminal from which on two answers stand beside each other."""
ASK = "> "


@dataclass
class Session:
    """Conversations with one policy, or with two that are asked the same."""

    conversations: Sequence[Conversation]
    sampling: Sampling
    score: Score | None = None
    asked: int = 0
    """Answers so far, each with draws of its own"""
    _cut: bool = field(default=False, init=False)

    def run(self) -> None:
        """Until the input ends, or /exit. Ctrl-C stops an answer, not the program."""
        if sys.stdin.isatty():
            with suppress(ImportError):
                import readline  # noqa: F401 - gives input() a history and keys
            names = " and ".join(one.voice.name for one in self.conversations)
            warn(f"Talking to {names}. /help shows the commands, Ctrl-D ends.")
        while (text := _read()) is not None:
            if text.startswith("/") and not text.startswith("//"):
                if not self._command(text):
                    return
            elif text:
                self.ask(text.removeprefix("/") if text.startswith("//") else text)

    def ask(self, text: str) -> bool:
        """Puts a question to all; whether there is an answer. What went wrong is said."""
        self.asked += 1
        draws = self.sampling.draws(self.asked)
        before = [len(one.turns) for one in self.conversations]
        try:
            self._answers(text, draws)
        except KeyboardInterrupt:
            print()
            warn("Stopped.")
        except ValueError as error:
            warn(f"This was not asked: {str(error).rstrip('.')}.")
        else:
            self._say_cut()
            return True
        if len(self.conversations) > 1:  # one without the other would no longer compare
            for one, turns in zip(self.conversations, before, strict=True):
                del one.turns[turns:]
        return False

    def _answers(self, text: str, draws: Tensor) -> None:
        shown = _Answers([one.voice.name for one in self.conversations])
        with shown:
            for place, one in enumerate(self.conversations):
                shown.begin(place)
                answer = one.ask(text, draws, self.sampling.temperature, shown.add)
                shown.end(self._scored(one, answer))

    def _scored(self, conversation: Conversation, answer: str) -> str:
        if self.score is None:
            return ""
        score = self.score(conversation.messages[:-1], answer)
        return "no score" if score is None else f"score {score:.2f}"

    def _say_cut(self) -> None:
        if not self._cut and any(one.forgotten for one in self.conversations):
            self._cut = True
            warn("The conversation is longer than the context: its oldest turns are left out.")

    # --- commands ---------------------------------------------------------------------------------

    def _command(self, text: str) -> bool:
        """Does what a line that begins with a slash says; False if it ends the session."""
        name, _, argument = text[1:].partition(" ")
        if name in ("exit", "quit"):
            return False
        command = COMMANDS.get(name)
        if command is None:
            warn(f"There is no command /{name}; /help shows them, //{name} says it to the policy.")
        else:
            command.do(self, argument.strip())
        return True

    def reset(self, _: str) -> None:
        for one in self.conversations:
            one.reset()
        warn("The conversation starts again.")

    def undo(self, _: str) -> None:
        taken = [one.undo() for one in self.conversations][-1]
        warn("There is nothing to take back." if taken is None else f"Taken back: {taken}")

    def retry(self, _: str) -> None:
        question = [one.undo() for one in self.conversations][-1]
        if question is None:
            warn("There is no question to ask again.")
        else:
            self.ask(question)

    def system(self, text: str) -> None:
        for one in self.conversations:
            one.system = text or None
        warn("The system message is set." if text else "There is no system message now.")

    def temperature(self, text: str) -> None:
        try:
            value = float(text)
            if not 0 <= value < float("inf"):
                raise ValueError
        except ValueError:
            warn(f"/temperature takes a number, 0 or more, not {text!r}.")
            return
        self.sampling = replace(self.sampling, temperature=value)
        warn(f"The temperature is {value:g}.")

    def save(self, name: str) -> None:
        path = Path(name)
        if not name:
            warn("/save takes the name of a file.")
        elif path.exists():
            warn(f"{path} is there already; name another file.")
        else:
            try:
                write_json(path, [one.to_json() for one in self.conversations])
                warn(f"Saved: {path}")
            except OSError as error:
                warn(f"{path} cannot be written: {error.strerror}.")

    def help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            warn(f"/{name} {command.takes}".ljust(16) + command.what)
        warn("/exit".ljust(16) + "End, as Ctrl-D does. Ctrl-C stops an answer.")


@dataclass(frozen=True)
class Command:
    """Something that a session does."""

    do: Callable[[Session, str], None]
    takes: str
    what: str


COMMANDS = {
    "reset": Command(Session.reset, "", "Forget the conversation."),
    "undo": Command(Session.undo, "", "Take the last question and its answer back."),
    "retry": Command(Session.retry, "", "Ask the last question again, with other draws."),
    "system": Command(Session.system, "TEXT", "Set the system message; without TEXT, remove it."),
    "temperature": Command(Session.temperature, "X", "Draw answers so; 0 takes the likeliest."),
    "save": Command(Session.save, "FILE", "Write the conversation as JSON."),
    "help": Command(Session.help, "", "Show this."),
}


def _read() -> str | None:
    """The next line, stripped; None at the end of the input. Ctrl-C empties the line."""
    try:
        # Without a terminal, only answers are printed.
        return (input(ASK) if sys.stdin.isatty() else input()).strip()
    except EOFError:
        if sys.stdin.isatty():
            print()
        return None
    except KeyboardInterrupt:
        print()
        return ""


class _Answers:
    """One answer as it comes; of two, beside each other where there is room, or one by one."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._texts = [""] * len(names)
        self._notes = [""] * len(names)
        self._at = 0
        self._out = Console()
        wide = sys.stdout.isatty() and on_terminal() and self._out.width >= SIDE_BY_SIDE
        self._live = self._beside() if len(names) > 1 and wide else None

    def _beside(self) -> Live:
        from rich.live import Live

        return Live(
            console=self._out,
            get_renderable=self._table,
            transient=True,
            redirect_stderr=False,
            redirect_stdout=False,
        )

    def __enter__(self) -> None:
        if self._live is not None:
            self._live.start()
            self._out.show_cursor(True)  # a process that is killed could not bring it back

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._out.print(self._table())

    def begin(self, place: int) -> None:
        self._at = place
        if self._live is None and len(self._names) > 1:
            print(f"{self._names[place]}:")

    def add(self, piece: str) -> None:
        piece = printable(piece)
        self._texts[self._at] += piece
        if self._live is None:
            print(piece, end="", flush=True)

    def end(self, note: str) -> None:
        self._notes[self._at] = note
        if self._live is None:
            print()
            if note:
                self._out.print(Text(f"({note})", "dim"), soft_wrap=True)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold cyan", expand=True)
        for name in self._names:
            table.add_column(Text(name), ratio=1, overflow="fold")
        table.add_row(*map(Text, self._texts))
        if any(self._notes):
            table.add_row(*(Text(f"({note})" if note else "", "dim") for note in self._notes))
        return table
