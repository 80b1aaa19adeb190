"""Runs proximal policy optimisation of a configuration, and what it needs."""

from __future__ import annotations

import sys

from launch import main

if __name__ == "__main__":
    sys.exit(main(until_kind="ppo"))
