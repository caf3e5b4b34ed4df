"""The documentation, and the commands that generate and check parts of it."""

from pathlib import Path

RESULTS = Path("docs/evidence/results")
"""Archived results, one folder for each run; relative to the repository."""
