"""Documents, and the commands that keep results for them and write their tables."""

from pathlib import Path

RESULTS = Path("docs/evidence/results")
"""A folder a kept run."""
