"""How ``params.yaml`` is read, and what is said of a file that can't be used."""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent

from tasks.params.params import Params

MAX_BYTES, MAX_DEPTH, MAX_VALUES = 2**20, 20, 100_000
"""Of a file, of its sections in sections, of its values with all aliases followed: a short text can stand for billions,
and the parser's own stack ends the process where nesting is too deep."""


class ParamsError(ValueError):
    """The parameters can't be used; the message says where, why, and what is allowed."""


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the parameters.

    Raises:
        ParamsError: the file is missing, can't be read or is no YAML mapping; unknown keys, impossible values.
    """
    try:
        values = _parse(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ParamsError(f"{path} not found: run from the folder that holds dvc.yaml") from None
    except OSError as error:
        raise ParamsError(f"{path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ParamsError(f"{path} is not UTF-8 ({error}); save it as that") from error
    except YAMLError as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from error
    except ValueError as error:
        # a date or a number that is none
        raise ParamsError(f"{path} holds an impossible value: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold sections such as 'attack:', but holds {type(values).__name__}")
    return parse_params(values, name=str(path))


def parse_params(values: dict[str, Any], name: str = "parameters") -> Params:
    """Typed parameters from nested dicts, as YAML gives them.

    Raises:
        ParamsError: unknown keys or impossible values, all of them in one message.
    """
    if problems := list(_not_plain(values)):
        raise ParamsError("\n".join([f"{name} can't be used:", *(f"  {problem}" for problem in problems)]))
    try:
        # JSON keeps strict typing but lets YAML's lists be tuples
        return Params.model_validate_json(json.dumps(values))
    except ValidationError as error:
        found = error.errors()
        # a list is also called too short once its only items are refused
        deeper = {problem["loc"][:-1] for problem in found if problem["loc"]}
        lines = [f"  {_located(problem, values)}" for problem in found if problem["loc"] not in deeper]
        raise ParamsError("\n".join([f"{name} can't be used:", *lines])) from None


def _parse(text: str) -> Any:
    if len(text) > MAX_BYTES:
        raise ValueError(f"{len(text)} characters; parameters take {MAX_BYTES} at most")
    depth = 0
    # events come one by one; building the values calls itself for each level
    for event in YAML(typ="safe").parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} sections in each other")
    return YAML(typ="safe").load(text)


def _not_plain(values: Any) -> Iterator[str]:
    """What YAML can hold and parameters can't, with its dotted key."""
    waiting = [("", values, 0)]
    n_values = 0
    while waiting:
        key, value, depth = waiting.pop()
        n_values += 1
        if n_values > MAX_VALUES or depth > MAX_DEPTH:
            yield f"{key}: aliases (*) that stand for too much, or for themselves; write the values out"
            return
        if isinstance(value, dict):
            for name, child in value.items():
                if isinstance(name, str):
                    waiting.append((f"{key}.{name}" if key else name, child, depth + 1))
                else:
                    yield f"{key}{'.' if key else ''}{name}: a key must be text; put it between quotation marks"
        elif isinstance(value, list):
            waiting += [(f"{key}[{i}]", child, depth + 1) for i, child in enumerate(value)]
        elif isinstance(value, str):
            if any(unicodedata.category(character) == "Cs" for character in value):
                yield f"{key}: half a character (a surrogate) is no text; got {value!r}"
        elif isinstance(value, int) and abs(value) >= 2**63:
            yield f"{key}: a whole number must have less than 64 bits"
        elif not isinstance(value, int | float | None):
            yield f"{key}: must be text, a number, true, false, a list or a section, not {type(value).__name__}"


def _located(problem: Any, values: Any) -> str:
    # what is about several sections names its keys itself
    return f"{_dotted(problem, values)}: {_explain(problem)}" if problem["loc"] else _explain(problem)


def _dotted(problem: Any, values: Any) -> str:
    text = ""
    for depth, part in enumerate(problem["loc"], start=1):
        # pydantic puts the kind of a defence, and the method of a step, between its name and its fields
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
    return message if isinstance(given, dict) else f"{message}; got {given!r}"
