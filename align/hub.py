"""An export on the Hugging Face hub: which files go where, and sending them as one commit.

A repository is private unless it is said otherwise, and a commit is made whole or not at all, so
that its branch never shows half an export. The token comes from where huggingface_hub looks for it,
and is neither printed nor stored.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from align.config import ConfigError

MAIN = "main"
OURS = (
    "README.md", "adapter_config.json", "adapter_model.safetensors", "config.json",
    "generation_config.json", "model*.safetensors", "model.safetensors.index.json", "scoring.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "merged/*", "members/*",
)  # fmt: skip
"""What an export puts into a repository. Such files of an earlier one are deleted: the
`adapter_config.json` of an adapter beside whole weights would change what they compute. All other
files, such as a licence or pictures, stay."""
Content = Path | bytes
"""A file to send, or the bytes of one."""


class PushError(RuntimeError):
    """A push that did not end well though it was asked for rightly; one or two sentences."""


@dataclass(frozen=True)
class Repository:
    """Where an export goes on the hub. Raises ConfigError for a name that no repository has."""

    name: str
    """owner/name"""
    public: bool = False
    revision: str | None = None
    """The branch, made if it is not there; None is `main`."""

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        problem = ""
        if not re.fullmatch(r"[^/\s]+/[^/\s]+", self.name):
            problem = "it has the form owner/name"
        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            problem = problem or str(error).rstrip(".")
        if problem:
            raise ConfigError(f"--push {self.name}: this is no repository's name; {problem}.")

    @property
    def branch(self) -> str:
        return self.revision or MAIN


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now."""

    url: str
    """Of the repository's page."""
    commit: str
    created: bool
    """Whether the repository was made for this."""
    private: bool


# --- what goes there -----------------------------------------------------------------------------


def layout(folder: Path, whole: bool) -> dict[str, Path]:
    """The files of the export `folder` by their path in the repository, without the card.

    What loads by itself lies at the top, where `from_pretrained("owner/name")` looks: an adapter
    whose base is on the hub, or whole weights. With `whole`, the merged weights alone are sent.
    """
    if whole:
        return dict(_below(folder / "merged", ""))
    top = [folder / "adapter", folder / "model"]
    nested = [folder / name for name in ("members", "merged")]
    places = [(part, "") for part in top] + [(part, f"{part.name}/") for part in nested]
    return {name: file for part, prefix in places for name, file in _below(part, prefix)}


def _below(part: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for file in sorted(part.rglob("*")):
        if file.is_file():
            yield prefix + file.relative_to(part).as_posix(), file


def size_of(content: Content) -> int:
    """Bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


# --- sending it ----------------------------------------------------------------------------------


@contextmanager
def no_network() -> Iterator[None]:
    """Lets the hub's libraries read their cache alone."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def show_progress() -> None:
    """Shows the client's own bars of an upload, on a terminal."""
    from huggingface_hub import constants
    from huggingface_hub.utils import enable_progress_bars

    if sys.stderr.isatty() and not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()


def find_token() -> str:
    """The token of HF_TOKEN, or of an earlier login. Raises ConfigError if there is none."""
    from huggingface_hub import get_token

    token = get_token()
    if token is None:
        raise ConfigError(
            "There is no token for the hub: set HF_TOKEN to one with write access, or log in once "
            "with `hf auth login`."
        )
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # a header with it would be quoted in an error
        raise ConfigError("The token for the hub holds characters that no token has; set it again.")
    return token


def push(
    repository: Repository, files: Mapping[str, Content], message: str, endpoint: str | None = None
) -> Pushed:
    """Makes the repository if it is not there, and sends `files` as one commit to its branch.

    1 make; 2 upload; 3 commit. Large files that the hub has already are not sent again, so that the
    same call goes on where an interrupted one ended. Raises ConfigError for what the user has to
    change: the token, the name, or who may see it; PushError where the way to the hub failed.
    """
    from huggingface_hub import HfApi

    token = find_token()
    api = HfApi(endpoint=endpoint, token=token, library_name="align-toolkit")
    told = _Told(repository, token, api.endpoint)
    with told.when_it("could not be reached or made", "Nothing was sent; run it again."):
        created = _make(api, repository)  # 1
        info = api.model_info(repository.name, revision=repository.branch)
    with told.when_it(
        "did not take all files",
        f"Its branch {repository.branch} shows the old files or all new ones, never a part; run "
        f"the same command again, which sends what is missing.",
    ):
        operations = _operations(files, [file.rfilename for file in info.siblings or ()])
        commit = api.create_commit(  # 2, 3
            repository.name,
            operations,
            commit_message=message,
            revision=repository.branch,
            parent_commit=info.sha,
        )
    url = f"{api.endpoint}/{repository.name}"
    return Pushed(url, commit.oid, created, bool(info.private))


def _make(api: Any, repository: Repository) -> bool:
    """Whether the repository had to be made."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        there = api.model_info(repository.name)
    except RepositoryNotFoundError:  # or it is one that the token may not see
        there = None
    if there is None:
        api.create_repo(repository.name, private=not repository.public)
    elif not there.private and not repository.public:
        raise ConfigError(
            f"{repository.name} exists and is public, and what is pushed to it would be; add "
            f"--public if that is meant, or name another repository."
        )
    if repository.revision is not None:
        api.create_branch(repository.name, branch=repository.revision, exist_ok=True)
    return there is None


def _operations(files: Mapping[str, Content], there: Iterable[str]) -> list[Any]:
    """Adds the files, and deletes those of an earlier export that this one has not."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    stale = [
        name
        for name in there
        if name not in files
        and any(fnmatch(name, pattern) for pattern in OURS if "/" in pattern or "/" not in name)
    ]
    added = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
    return [*added, *(CommitOperationDelete(name, is_folder=False) for name in stale)]


# --- errors --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Told:
    """Turns what the hub's client raises into sentences, without the token.

    The client's own exceptions are not chained: nothing says what a server or a library quotes.
    """

    repository: Repository
    token: str
    endpoint: str

    @contextmanager
    def when_it(self, failed: str, left: str) -> Iterator[None]:
        """`left` says how things are then, and what to do."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            raise self._told(error, failed, left) from None

    def _told(self, error: Exception, failed: str, left: str) -> Exception:
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        cause = _cause(error, lambda one: isinstance(one, HfHubHTTPError)) or error
        name, owner = self.repository.name, self.repository.name.partition("/")[0]
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if isinstance(error, OfflineModeIsEnabled):
            return ConfigError(
                "HF_HUB_OFFLINE is set, so that nothing can be pushed; unset it, or add --dry-run."
            )
        if status == 401:
            return ConfigError(
                "The hub refuses the token (401): it is wrong, or was withdrawn. Make one with "
                "write access in the hub's settings and set HF_TOKEN to it."
            )
        if status == 403:
            return ConfigError(
                f"The token may not write to {name} (403): it needs write access to what belongs "
                f"to {owner}."
            )
        if status in (409, 412):
            return PushError(
                f"{name} was changed by somebody else in the meantime; run the same command again."
            )
        if status is not None:
            reason = f"the hub answered {status}: {_first_line(cause)}"
        elif _cause(error, _is_network):
            reason = f"the connection to {self.endpoint} failed"
        else:
            first = _cause(error, lambda one: one.__cause__ is None) or error
            reason = f"{type(first).__name__}: {_first_line(first)}"
        reason = reason.replace(self.token, "<token>").rstrip(".")
        return PushError(f"{name} {failed} ({reason}). {left}")


def _cause(error: BaseException, wanted: Callable[[BaseException], bool]) -> BaseException | None:
    """The first of the error and its causes that is wanted."""
    one: BaseException | None = error
    while one is not None and not wanted(one):
        one = one.__cause__
    return one


def _is_network(error: BaseException) -> bool:
    """httpx has no parent among Python's own errors."""
    names = [f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__]
    return isinstance(error, ConnectionError | TimeoutError) or any(
        re.fullmatch(r"httpx\d*\.TransportError", name) for name in names
    )


def _first_line(error: BaseException) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    said = error.server_message if isinstance(error, HfHubHTTPError) else None
    return (said or str(error)).strip().partition("\n")[0]
