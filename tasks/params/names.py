"""Names and texts in tables: characters that tables cannot show, and formulas of spreadsheet programs."""

import re
import unicodedata

UNPRINTABLE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that tables and messages cannot contain unescaped: control characters, surrogates
(which stand for bytes that are not UTF-8), line separators and paragraph separators."""

SIGN = "(?=\\s*[=+\\-@\uff1d\uff0b\uff0d\uff20])"
FORMULA = re.compile(f"(^|;){SIGN}")
"""Start of a formula: =, +, - or @, also full-width, at the start of a text or after a semicolon.
A semicolon separates cells in languages with a decimal comma."""


def has_unprintable_characters(name: str) -> bool:
    """Return whether tables and messages cannot contain the name unescaped."""
    return any(unicodedata.category(character) in UNPRINTABLE_CATEGORIES for character in name)


def name_problem(name: str) -> str:
    """Return the reason why a class or a column cannot have this name; empty if it can."""
    if has_unprintable_characters(name):
        return "contains a control character, such as a tab or a line break, which tables cannot show. Rename it"
    if FORMULA.search(name):
        return (
            "has =, +, - or @ at its start or after a semicolon. Spreadsheet programs read it as a formula. Rename it"
        )
    return ""


def without_formulas(text: str) -> str:
    """Put an apostrophe before every formula, so that spreadsheet programs show it as text."""
    return FORMULA.sub(r"\1'", text)


def with_formulas(text: str) -> str:
    """Remove the apostrophes of :func:`without_formulas`."""
    return re.sub(f"(^|;)'{SIGN}", r"\1", text)
