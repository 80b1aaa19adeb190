"""The memory of a run: estimated before it, measured in it."""
