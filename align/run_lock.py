"""One run at a time in a folder: two would write the same checkpoints and the same logs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from align.config import ConfigError


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds the folder while the block runs; the system lets go of it with the process, however
    that ends. A folder that was made for it and is still empty then is removed.

    Raises ConfigError if another process holds it. A file system without locks holds nothing.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # opens no folders
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        try:
            yield
        finally:
            if made:
                with suppress(OSError):  # it holds something
                    folder.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"Another run is at work in output_dir {str(folder)!r}. Wait for its end, or name "
            f"another folder."
        ) from None
    except OSError:  # NFS locks no folders
        return
