"""Write ``docs/reference/parameters.md`` from the typed parameters and params.yaml.

``python -m docs.write_parameters`` writes the page; with ``--check`` it fails if the page is out of date.
"""

import argparse
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from tasks.params import Params, Section, load_params

PAGE = Path("docs/reference/parameters.md")

Defaults = Mapping[str, Any]
"""Dotted key -> value in params.yaml."""

HEAD = """# Parameters

All parameters are in `params.yaml`. `dvc exp run -S key=value` writes a value into this file. Every key is required
unless its entry says that it may be left out. Unknown keys, wrong types and wrong values stop a command before any work
begins.

Eps is always in units of 1/255 of the value range: with the norm `linf`, eps 8 changes a pixel of an 8-bit image by at
most 8 grey levels.

This page is generated from `tasks/params/` by `python -m docs.write_parameters`.
"""


def main() -> None:
    """Write or check the parameter reference."""
    parser = argparse.ArgumentParser(prog="python -m docs.write_parameters", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    page = parameters_page(load_params())
    if not parser.parse_args().check:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        sys.exit(f"{PAGE} is out of date. Run python -m docs.write_parameters")


def parameters_page(params: Params) -> str:
    """The page in Markdown: one heading for each section, one entry for each parameter."""
    defaults = params.flat()
    lines = [HEAD]
    for name, field in Params.model_fields.items():
        lines += section_lines(field.alias or name, field, defaults)
    lines += ["## Shared sections", "", "These sections occur in several places.", ""]
    for section in shared_sections():
        lines += [f"### {section.__name__}", "", doc_of(section), "", *field_lines(section, "", {})]
    return "\n".join(lines).rstrip() + "\n"


def section_lines(key: str, field: FieldInfo, defaults: Defaults) -> list[str]:
    """Heading and entries of one top-level key."""
    kinds = section_types(field.annotation)
    if not kinds:
        return [f"## `{key}`", "", *entry_lines(key, field, defaults)]
    lines = [f"## `{key}`", ""]
    if key == "defences":
        lines += ["Each key below `defences` is the name of a defence; `kind` selects its type.", ""]
        for kind in kinds:
            lines += [f"### kind `{kind_of(kind)}`", "", doc_of(kind), "", *field_lines(kind, "", {})]
        return lines
    if is_list(field.annotation):
        return [*lines, *entry_lines(key, field, defaults), *field_lines(kinds[0], f"{key}[].", {})]
    return [*lines, doc_of(kinds[0]), "", *field_lines(kinds[0], f"{key}.", defaults)]


def field_lines(section: type[Section], prefix: str, defaults: Defaults) -> list[str]:
    """Entries of all parameters of a section and of its subsections."""
    lines: list[str] = []
    for name, field in section.model_fields.items():
        if name == "kind" and kind_of(section):
            continue
        nested = section_types(field.annotation)
        if len(nested) != 1 or is_list(field.annotation) or nested[0] in shared_sections():
            lines += entry_lines(f"{prefix}{name}", field, defaults)
        for kind in nested:
            if kind in shared_sections():
                continue
            inner = f"{prefix}{name}[]." if is_list(field.annotation) else f"{prefix}{name}."
            if len(nested) > 1:
                of_kind = f"of kind `{kind_of(kind)}`" if kind_of(kind) else f"`{row_of(kind)}`"
                lines += [f"**`{prefix}{name}` {of_kind}**: {doc_of(kind)}", ""]
            lines += field_lines(kind, inner, defaults)
    return lines


def entry_lines(key: str, field: FieldInfo, defaults: Defaults) -> list[str]:
    """One parameter: type and bounds, default, meaning."""
    facts = [type_text(field.annotation, field.metadata)]
    below = {name.removeprefix(f"{key}."): value for name, value in defaults.items() if name.startswith(f"{key}.")}
    if key in defaults or below:
        facts.append(f"default `{yaml_text(defaults.get(key, below))}`")
    elif not field.is_required():
        facts.append("may be left out")
    meaning = plain(field.description or "")
    return [f"- **`{key}`** ({', '.join(facts)})" + (f"<br>{meaning}" if meaning else ""), ""]


@cache
def shared_sections() -> list[type[Section]]:
    """The section types that several fields have, in the order of their first use."""
    uses: Counter[type[Section]] = Counter()
    waiting: list[type[Section]] = [Params]
    while waiting:
        for field in waiting.pop(0).model_fields.values():
            for section in section_types(field.annotation):
                if section not in uses:
                    waiting.append(section)
                uses[section] += 1
    return [section for section, n_uses in uses.items() if n_uses > 1]


def section_types(annotation: Any) -> list[type[Section]]:
    """The section classes in an annotation, in their order."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in section_types(argument)]


def is_list(annotation: Any) -> bool:
    """Return whether an annotation is a list in params.yaml."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_origin(inner) is tuple


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The type and bounds of a parameter in words: ``whole number ≥ 1 and ≤ 256``."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return type_text(inner, [*more, *metadata])
    if type(None) in (kinds := get_args(annotation)):
        return f"{type_text(kinds[0], metadata)}, or null"
    constraints = [item for extra in metadata for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    bounds = " and ".join(filter(None, map(bound_text, constraints)))
    lengths = "".join(map(length_text, constraints))
    if get_origin(annotation) is tuple:
        item, *more = get_args(annotation)
        length = f" of {1 + len(more)}" if more != [Ellipsis] else ""
        single = f"{type_text(item)}, or " if any(isinstance(one, BeforeValidator) for one in constraints) else ""
        return f"{single}list{length}{lengths}; each {type_text(item)}"
    return f"{base_text(annotation)} {bounds}".strip() + lengths


def base_text(annotation: Any) -> str:
    """The type of a parameter without its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if sections := section_types(annotation):
        literals = [value for part in arguments if get_origin(part) is Literal for value in get_args(part)]
        kinds = [kind_of(section) for section in sections]
        if len(kinds) == 1:
            return f"section{link_to(sections[0])}"
        if all(kinds):
            return f"section of kind {alternatives(kinds)}"
        return alternatives([*literals, *map(row_of, sections)])
    if origin is Literal:
        return alternatives(arguments)
    if origin is dict:
        return "mapping of names to values" + ("" if arguments[1] is Any else f"; each {type_text(arguments[1])}")
    return {int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Any: "any value"}[annotation]


def alternatives(values: Iterable[Any]) -> str:
    """Allowed values in Markdown; a bare bar would end the cell of a table."""
    return " \\| ".join(f"`{value}`" for value in values)


def link_to(section: type[Section]) -> str:
    """Link to the heading of a shared section; empty for other sections."""
    return f" [{section.__name__}](#{section.__name__.lower()})" if section in shared_sections() else ""


def bound_text(constraint: Any) -> str:
    """A bound on the value; nothing for other metadata."""
    match constraint:
        case Ge(ge=value):
            return f"≥ {value}"
        case Gt(gt=value):
            return f"> {value}"
        case Le(le=value):
            return f"≤ {value}"
        case Lt(lt=value):
            return "" if value in (2**31, 2**32) else f"< {value}"
        case MultipleOf(multiple_of=value):
            return f"a multiple of {value}"
    return ""


def length_text(constraint: Any) -> str:
    """A bound on the length in words; nothing for other metadata."""
    match constraint:
        case MinLen(min_length=value):
            return f", at least {value} entries" if value > 1 else ", not empty"
        case MaxLen(max_length=value):
            return f", at most {value} entries"
    return ""


def kind_of(section: type[Section]) -> str:
    """The value of ``kind`` that selects a section; empty if it has no ``kind``, or several values are allowed."""
    kinds = get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()
    return str(kinds[0]) if len(kinds) == 1 else ""


def row_of(section: type[Section]) -> str:
    """A section without a kind, named by its first key: ``{art: ...}``."""
    return f"{{{next(iter(section.model_fields))}: ...}}"


def doc_of(section: type[Section]) -> str:
    """The docstring of a section in Markdown."""
    return plain(inspect.getdoc(section) or "")


def plain(text: str) -> str:
    """A docstring as Markdown text on one line."""
    return re.sub(r":\w+:`([^`]*)`", r"`\1`", " ".join(text.split()).replace("``", "`"))


def yaml_text(value: Any) -> str:
    """A default as params.yaml has it, shortened."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f"{len(value)} entries"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_text(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(yaml_text, value)) + "]" if isinstance(value, list) else str(value) or '""'


if __name__ == "__main__":
    main()
