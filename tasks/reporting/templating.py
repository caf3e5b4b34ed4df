"""Templates of the report: their environment, filters, and sentences that several documents share."""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tasks.outcomes.names import display_name
from tasks.reporting.formats import estimate, p_text, signed_points
from tasks.reporting.headline import Headline
from tasks.reporting.names import attack_name
from tasks.reporting.sections.active_learning import Gain
from tasks.statistics.formatting import eps_text, percent, points

TEMPLATES = Path(__file__).with_name("templates")
NBSP = "\N{NO-BREAK SPACE}"
MARKDOWN_SPECIAL = re.compile(r"\||(?<=])\(|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
"""Characters that Markdown does not show as text: a bar in a table, a link, an HTML tag, a character reference."""
MARKDOWN_ESCAPES = {"|": "\\|", "(": "\\(", "<": "&lt;", "&": "&amp;"}
"""No backslash before ``<`` and ``&``: the page of MLflow would show it."""


def environment(folder: Path = TEMPLATES, *, is_markdown: bool = False) -> Environment:
    """Return the environment of templates; every text from outside (class names, paths) is escaped.

    Args:
        folder: of the templates; those of the report by default.
        is_markdown: whether texts are escaped for Markdown; for HTML otherwise.
    """
    templates = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown has other special characters than HTML
        finalize=_markdown if is_markdown else None,
    )
    templates.filters |= {
        "attack": attack_name,
        "difference": lambda found: estimate(found._asdict(), signed_points),
        "eps": eps_text,
        "keep_together": keep_together,
        "p_text": p_text,
        "percent": percent,
        "points": points,
        "rate_of": lambda found: estimate(found._asdict(), percent),
        "rate": lambda row: estimate(row, percent),
        "display_name": display_name,
    }
    return templates


def headline_sentences(headline: Headline) -> str:
    """Return the headline result in three sentences, as plain text."""
    return _sentences("headline", headline)


def gain_sentence(gain: Gain) -> str:
    """Return the comparison of an acquisition function with random selection, as plain text."""
    return _sentences("gain", gain)


def keep_together(text: str) -> Markup:
    """Escape a text; use no-break spaces in intervals, before per-cent signs and around relation signs."""
    joined = re.sub(r"\[[^][<>]{1,60}\]", lambda match: match[0].replace(" ", NBSP), str(escape(text)))
    joined = joined.replace(" %", f"{NBSP}%").replace("% [", f"%{NBSP}[")
    for sign in ("=", "&lt;"):
        joined = joined.replace(f" {sign} ", f"{NBSP}{sign}{NBSP}")
    return Markup(joined)  # noqa: S704  escaped above  # nosec B704


def _sentences(name: str, value: Any) -> str:
    macros: Any = environment().get_template("sentences.j2").module
    return " ".join(getattr(macros, name)(value).unescape().split())


def _markdown(value: Any) -> Any:
    """Escape a text for a cell of a Markdown table, on one line; the result of a macro is escaped already.

    A bar would end the cell; a name could be a link, an HTML tag or a character reference.
    """
    if not isinstance(value, str):
        return value
    text = re.sub(r"\s+", " ", value)
    if isinstance(value, Markup):
        text = text.strip()
    else:
        text = MARKDOWN_SPECIAL.sub(lambda match: MARKDOWN_ESCAPES[match[0]], text)
    return Markup(text)  # noqa: S704  escaped above  # nosec B704
