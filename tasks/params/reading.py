"""How ``params.yaml`` is read, and what is said of a file that can't be used."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks import paths
from tasks.params.params import Params


class ParamsError(ValueError):
    """The parameters can't be used; the message says where, why, and what is allowed."""


def load_params(path: Path = paths.PARAMS) -> Params:
    """Read and check the parameters.

    Raises:
        ParamsError: the file is missing, is no YAML mapping, or holds unknown keys or impossible values.
    """
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} not found: run from the folder that holds dvc.yaml") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParamsError(f"{path} must hold sections such as 'attack:', but holds {type(values).__name__}")
    return parse_params(values, name=str(path))


def parse_params(values: dict[str, Any], name: str = "parameters") -> Params:
    """Typed parameters from nested dicts, as YAML gives them.

    Raises:
        ParamsError: unknown keys or impossible values, all of them in one message.
    """
    try:
        # JSON keeps strict typing but lets YAML's lists be tuples
        return Params.model_validate_json(json.dumps(values))
    except (TypeError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise ParamsError(f"{name}: {error}") from error
        problems = error.errors()
        # a list is also called too short once its only items are refused
        deeper = {problem["loc"][:-1] for problem in problems if problem["loc"]}
        lines = [f"  {_located(problem, values)}" for problem in problems if problem["loc"] not in deeper]
        raise ParamsError("\n".join([f"{name} can't be used:", *lines])) from None


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
