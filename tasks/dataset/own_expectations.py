"""Expectations of the user: the entries of ``validate.expectations``."""

import difflib
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tasks.params import OwnExpectation

KEY = "validate.expectations"
"""Dotted key of the list."""
MAX_TEXT = 200
"""Maximum number of characters of an observed value."""


@dataclass(frozen=True)
class DatasetExpectation:
    """An expectation of Great Expectations, with its description and its observed value."""

    name: str
    description: str
    severity: Literal["error", "warning"]
    table: Literal["images", "classes"]
    """Validated table: one row for each image, or one row for each class."""
    observed: str
    """Empty: the observed value of Great Expectations."""
    allowed: str
    expectation_type: str
    """Class name in Great Expectations."""
    column: str
    """Empty: the class takes no column."""
    kwargs: dict[str, Any]
    """Arguments of the class besides the column."""


def own_expectations(
    expectations: tuple[OwnExpectation, ...], other_names: Collection[str]
) -> list[DatasetExpectation]:
    """Return the expectations of the user.

    Args:
        expectations: entries of the list.
        other_names: names of the expectations that always run.

    Raises:
        ValueError: an entry has the name of an expectation that always runs.
    """
    own = []
    for index, entry in enumerate(expectations):
        if entry.name in other_names:
            raise ValueError(
                f"{KEY}[{index}].name: {entry.name!r} is an expectation that always runs. A new name is allowed. "
                "Rename the entry."
            )
        others = {name: value for name, value in entry.arguments.items() if name != "column"}
        column = str(entry.arguments.get("column", ""))
        limits = ", ".join(f"{name} {value}" for name, value in others.items()) or "all"
        allowed = f"{column and f'{column}: '}{limits} ({KEY})"
        own.append(
            DatasetExpectation(
                entry.name, entry.description, entry.severity, entry.table, "", allowed, entry.type, column, others
            )
        )
    return own


def check_own_expectations(expectations: tuple[OwnExpectation, ...]) -> None:
    """Check the types and the arguments, before the images are read.

    Raises:
        ValueError: Great Expectations has no such type, or the type refuses the arguments.
    """
    if not expectations:
        return
    # before the import, which logs hundreds of lines
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations.expectations as gxe

    types = [name for name in dir(gxe) if name.startswith("Expect") and name != "Expectation"]
    for index, expectation in enumerate(expectations):
        if expectation.type not in types:
            near = difflib.get_close_matches(expectation.type, types) or ["ExpectColumnValuesToBeBetween"]
            raise ValueError(
                f"{KEY}[{index}].type: {expectation.type!r} is no expectation of Great Expectations. A class of its "
                f"gallery is allowed, such as {', '.join(near)}. Correct the name."
            )
        try:
            getattr(gxe, expectation.type)(**expectation.arguments)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{KEY}[{index}].arguments: {expectation.arguments}. {reason}. Write the arguments that "
                f"{expectation.type} takes."
            ) from None


def observed_text(result: Mapping[str, Any]) -> str:
    """Describe the result of Great Expectations: its observed value, or the number of unexpected values."""
    if "observed_value" in result:
        value = result["observed_value"]
        return f"{value:.6g}" if isinstance(value, float) else str(value)[:MAX_TEXT]
    return f"{result.get('unexpected_count', 0)} of {result.get('element_count', 0)} unexpected"


def exception_message(information: Mapping[str, Any]) -> str:
    """Return the message of an exception inside Great Expectations; empty if there was none.

    Args:
        information: ``exception_info`` of a result: of the expectation, or of each of its metrics.
    """
    entries = [information] if "raised_exception" in information else list(information.values())
    messages = [str(entry["exception_message"]) for entry in entries if entry["raised_exception"]]
    return messages[0] if messages else ""
