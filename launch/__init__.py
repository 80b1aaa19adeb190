"""Scripts for the launchers: argv → config → one call.

    deepspeed launch/ppo.py --config configs/quickstart.yaml deepspeed=configs/deepspeed/zero2.json
    torchrun --nproc_per_node 2 launch/pipeline.py --config configs/quickstart.yaml
    accelerate launch --config_file accelerate.yaml launch/sft.py --config configs/quickstart.yaml
    python launch/reward.py --config configs/quickstart.yaml

Each script runs the steps of its kind and whatever these need; `pipeline.py` runs everything.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from align.cli import run_config
from align.config import load_config
from align.console import exit_code
from align.launched import let_rank_0_speak

ROOT = Path(__file__).resolve().parent.parent
"""The repository: where a relative --config is looked for after the working directory."""


def main(argv: Sequence[str] | None = None, until_kind: str | None = None) -> int:
    """Runs a configuration up to its steps of `until_kind` (None: all). Returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))

    def call() -> None:
        path = arguments.config if arguments.config.exists() else ROOT / arguments.config
        path = path if path.exists() else arguments.config
        try:
            config = load_config(path, arguments.overrides, folders=[ROOT])
            run_config(config, until_kind=until_kind)
        except Exception:
            let_rank_0_speak()
            raise

    return exit_code(call, debug=arguments.debug)


def _parser() -> argparse.ArgumentParser:
    # Abbreviations are off, because torchrun would take a short form for an option of its own.
    parser = argparse.ArgumentParser(prog=Path(sys.argv[0]).name, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, help="the run's YAML file")
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=-1, help="set by the DeepSpeed launcher"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options of the configuration to replace"
    )
    return parser
