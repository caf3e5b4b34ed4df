"""Write ``docs/reference/parameters.md`` from the typed parameters and params.yaml.

``python -m docs.write_parameters`` writes the page; with ``--check`` it fails if the page is out of date.
"""

import argparse
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic.fields import FieldInfo

from tasks.params import Params, Section, load_params

PAGE = Path("docs/reference/parameters.md")

HEAD = """# Parameters

All parameters are in `params.yaml`. `dvc exp run -S key=value` and `dvc repro` read the same file.
Every key is required. Unknown keys, wrong types and wrong values stop a command before any work begins.

eps is always in units of 1/255 of the value range: eps 8 changes a pixel of an 8-bit image by at most 8 grey levels.

This page is generated from `tasks/params/` by `python -m docs.write_parameters`.
"""


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(prog="python -m docs.write_parameters", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
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
    return "\n".join(lines).rstrip() + "\n"


def section_lines(key: str, field: FieldInfo, defaults: dict[str, Any]) -> list[str]:
    """Heading and entries of one top-level key."""
    kinds = section_types(field.annotation)
    if not kinds:
        return [f"## `{key}`", "", *entry_lines(key, field, defaults)]
    lines = [f"## `{key}`", ""]
    if key == "defences":
        lines += ["Each key below `defences` is the name of a defence; `kind` selects its type.", ""]
        for kind in kinds:
            lines += [f"### kind `{literal_of(kind)}`", "", doc_of(kind), "", *field_lines(kind, "", {})]
        return lines
    lines += [doc_of(kinds[0]), ""]
    return lines + field_lines(kinds[0], f"{key}.", defaults)


def field_lines(section: type[Section], prefix: str, defaults: dict[str, Any]) -> list[str]:
    """Entries of all parameters of a section, subsections included."""
    lines: list[str] = []
    for name, field in section.model_fields.items():
        nested = section_types(field.annotation)
        if not nested or is_list(field.annotation):
            lines += entry_lines(f"{prefix}{name}", field, defaults)
        for kind in nested:
            inner = f"{prefix}{name}[]." if is_list(field.annotation) else f"{prefix}{name}."
            if len(nested) > 1:
                lines += [f"**`{prefix}{name}` of kind `{literal_of(kind)}`**: {doc_of(kind)}", ""]
            lines += field_lines(kind, inner, defaults)
    return lines


def entry_lines(key: str, field: FieldInfo, defaults: dict[str, Any]) -> list[str]:
    """One parameter: type and bounds, default, meaning."""
    facts = [type_text(field.annotation, field.metadata)]
    if key in defaults:
        facts.append(f"default `{yaml_text(defaults[key])}`")
    meaning = plain(field.description or "")
    return [f"- **`{key}`** ({', '.join(facts)})" + (f"<br>{meaning}" if meaning else ""), ""]


def section_types(annotation: Any) -> list[type[Section]]:
    """The section classes in an annotation, in their order."""
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return [annotation]
    return [kind for argument in get_args(annotation) for kind in section_types(argument)]


def is_list(annotation: Any) -> bool:
    """Return whether an annotation is a list in params.yaml."""
    inner = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return get_origin(inner) is tuple


def type_text(annotation: Any, metadata: list[Any]) -> str:
    """The type and bounds of a parameter in words."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return type_text(inner, [*more, *metadata])
    constraints = [item for extra in metadata for item in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    return " ".join([base_text(annotation), *filter(None, map(bound_text, constraints))]).strip()


def base_text(annotation: Any) -> str:
    """The type of a parameter without its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " \\| ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return "section"
    if origin is tuple:
        item = type_text(arguments[0], [])
        return f"list of {item}" if len(arguments) == 2 and arguments[1] is Ellipsis else f"{len(arguments)} values, {item}"
    if origin is dict:
        return f"mapping of names to {type_text(arguments[1], [])}"
    names = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
    return names.get(annotation, "section")


def bound_text(constraint: Any) -> str:
    """A bound in words; nothing for other metadata."""
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
            return f"multiple of {value}"
        case MinLen(min_length=value):
            return f"at least {value}" if value > 1 else "not empty"
        case MaxLen(max_length=value):
            return f"at most {value}"
    return ""


def literal_of(section: type[Section]) -> str:
    """The ``kind`` of a section."""
    return str(get_args(section.model_fields["kind"].annotation)[0])


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
    return "[" + ", ".join(map(yaml_text, value)) + "]" if isinstance(value, list) else str(value)


if __name__ == "__main__":
    main()
