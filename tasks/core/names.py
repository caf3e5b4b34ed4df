"""Text in tables that spreadsheet programs would read as a formula."""

import re

from tasks.params.names import FORMULA, SIGN, has_unprintable_characters

__all__ = ["FORMULA", "has_unprintable_characters", "with_formulas", "without_formulas"]


def without_formulas(text: str) -> str:
    """Put an apostrophe before every formula, so that spreadsheet programs show it as text."""
    return FORMULA.sub(r"\1'", text)


def with_formulas(text: str) -> str:
    """Remove the apostrophes of :func:`without_formulas`."""
    return re.sub(f"(^|;)'{SIGN}", r"\1", text)
