"""Reading ``params.yaml``, and the errors for a file that is not valid."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from tasks.params.defences import Defence
from tasks.params.params import Params
from tasks.params.renamed import renamed_keys

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 2**20, 20, 100_000
"""Limits of the file, of nested sections, and of values with all aliases expanded. A short YAML text can expand to
billions of values, and deep nesting overflows the parser's stack."""


class ParamsError(ValueError):
    """The parameters are not valid; the message names the keys, the reasons and the allowed values."""


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the parameters.

    Raises:
        ParamsError: the file is missing, not readable or not a YAML mapping, or it has unknown keys or wrong values.
    """
    try:
        values = _parse(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ParamsError(f"{path} not found. Run the command in the folder that holds dvc.yaml") from None
    except OSError as error:
        raise ParamsError(f"{path} is not readable: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8 ({error}). Save it as UTF-8") from error
    except YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from error
    except ValueError as error:
        # for instance a date that does not exist
        raise ParamsError(f"{path} holds a value that is not valid: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold sections such as 'attack:', not {type(values).__name__}")
    return parse_params(values, name=str(path))


def parse_params(values: dict[str, Any], name: str = "parameters") -> Params:
    """Typed parameters from nested dicts.

    Raises:
        ParamsError: unknown keys or wrong values; the message lists all of them.
    """
    if problems := [*_not_plain(values), *renamed_keys(values)]:
        raise ParamsError("\n".join([f"{name} is not valid:", *(f"  {problem}" for problem in problems)]))
    try:
        # in JSON mode, strict typing accepts lists as tuples
        return Params.model_validate_json(json.dumps(values))
    except ValidationError as error:
        found = error.errors()
        # pydantic also reports a list as too short if its items were rejected
        deeper = {problem["loc"][:depth] for problem in found for depth in range(len(problem["loc"]))}
        lines = [f"  {_located(problem, values)}" for problem in found if problem["loc"] not in deeper]
        raise ParamsError("\n".join([f"{name} is not valid:", *lines])) from None


def read_defence(path: Path) -> Defence:
    """Settings of a trained defence, as the step train_defence wrote them.

    Raises:
        FileNotFoundError: the defence was not trained.
        ValueError: the file is damaged, or from another version of this project.
    """
    if not path.is_file():
        step = f"train_defence@{path.parent.name}"
        raise FileNotFoundError(f"{path} not found. Run the step {step} first (dvc repro {step})")
    try:
        defence: Defence = TypeAdapter(Defence).validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is damaged, or from another version. Run the step train_defence again") from error
    return defence


def _parse(text: str) -> Any:
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text)} characters; at most {MAX_BYTES} are allowed")
    depth = 0
    # parsing events needs no recursion; building the values does
    for event in YAML(typ="safe").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} nested sections")
    return YAML(typ="safe").load(text)


def _not_plain(values: Any) -> Iterator[str]:
    """Describe values that YAML allows and parameters do not, with their dotted keys."""
    waiting = [("", values, 0)]
    n_values = 0
    while waiting:
        key, value, depth = waiting.pop()
        n_values += 1
        if n_values > MAX_VALUES or depth > MAX_DEPTH:
            yield f"{key}: aliases (*) expand to too many values, or to themselves. Write the values out"
            return
        if isinstance(value, dict):
            for name, child in value.items():
                if isinstance(name, str):
                    waiting.append((f"{key}.{name}" if key else name, child, depth + 1))
                else:
                    yield f"{key}{'.' if key else ''}{name}: a key must be text. Put it between quotation marks"
        elif isinstance(value, list):
            waiting += [(f"{key}[{i}]", child, depth + 1) for i, child in enumerate(value)]
        elif isinstance(value, str):
            if any(unicodedata.category(character) == "Cs" for character in value):
                yield f"{key}: {value!r} holds half a character (a surrogate), which is not valid text"
        elif isinstance(value, int) and abs(value) >= 2**63:
            yield f"{key}: a whole number must have fewer than 64 bits"
        elif not isinstance(value, int | float | None):
            yield f"{key}: must be text, a number, true, false, a list or a section, not {type(value).__name__}"


def _located(problem: Any, values: Any) -> str:
    # an error about several sections has no location; its message names the keys
    return f"{_dotted(problem, values)}: {_explain(problem)}" if problem["loc"] else _explain(problem)


def _dotted(problem: Any, values: Any) -> str:
    text = ""
    for depth, part in enumerate(problem["loc"], start=1):
        # pydantic inserts the kind of a defence or transform between its name and its fields
        is_missing = problem["type"] == "missing" and depth == len(problem["loc"])
        if isinstance(values, dict) and part not in values and not is_missing:
            continue
        if isinstance(part, int):
            text += f"[{part}]"
            values = values[part] if isinstance(values, list) and part < len(values) else None
        else:
            text += f".{part}" if text else part
            values = values.get(part) if isinstance(values, dict) else None
    return text


def _explain(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    if problem["type"] == "missing":
        return "missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    if problem["type"] == "string_type" and isinstance(given, int | float):
        # for instance the names of classes 0, 1.5, yes and no
        value = json.dumps(given)
        return f'must be text, but YAML reads {value} as a number or truth value. Put it in quotation marks: "{value}"'
    return message if isinstance(given, dict) else f"{message}; got {given!r}"
