"""Parameters of an audit of the user's classifier, from the command line and a parameter file."""

import argparse
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from tasks.dataset.folder import is_ignored
from tasks.dataset.table import read_columns
from tasks.params import Params, load_params, parse_params

FORMATS = {".pt2": "torch_export", ".onnx": "onnx", ".pt": "torchscript", ".torchscript": "torchscript"}
"""Suffix of a model file -> ``classifier.source``."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of the name of an audit."""
FACTORY = re.compile(r"(?P<file>.+\.py|[\w.]+):(?P<function>[\w.]+)")


def read_options(description: str | None) -> argparse.Namespace:
    """Parse the options of the command, and end with exit code 2 if they are wrong.

    Args:
        description: for ``--help``.
    """
    parser = command_line(description)
    options = parser.parse_args()
    own = [name for name in ("model", "weights", "images", "table", "plan") if getattr(options, name)]
    if options.registered and own:
        parser.error(f"--{own[0]}: not for the registered model {options.registered}. Remove one of them")
    return options


def command_line(description: str | None = None) -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m flows.audit", description=description)
    parser.add_argument("registered", nargs="?", metavar="MODEL", help="registered model: name@alias or name/version")
    parser.add_argument("--trust", action="store_true", help="run the code of the author of the model, if it has any")
    own = parser.add_argument_group("a trained classifier of your own")
    own.add_argument("--model", help=f"file ({', '.join(FORMATS)}), .yaml, models:/..., http://... or FILE.py:function")
    own.add_argument("--weights", help="file with the weights of a factory")
    own.add_argument("--images", help="folder of the images")
    own.add_argument("--table", help="CSV or Parquet file in the folder of the images")
    own.add_argument("--classes", nargs="+", help="classes in the order of the outputs (default: alphabetical)")
    own.add_argument("--positive-class", help="class of precision and recall (default: the last one)")
    own.add_argument("--params", default="params.yaml", help="file with the other parameters (default: %(default)s)")
    own.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a parameter; repeatable")
    own.add_argument(
        "--name", type=name_of_audit, default="classifier", help="folder below audits (default: %(default)s)"
    )
    own.add_argument("--plan", action="store_true", help="print the forecast of the time; run nothing")
    results = parser.add_argument_group("results, for continuous integration; exit code 3 if a threshold is not met")
    results.add_argument(
        "--min-clean-accuracy", type=share, metavar="SHARE", help="threshold, 0 to 1, also of the balanced accuracy"
    )
    results.add_argument("--min-robust-accuracy", type=share, metavar="SHARE", help="the same, in the worst case")
    results.add_argument("--no-failed-checks", action="store_true", help="exit code 3 also if a check fails")
    results.add_argument("--export", metavar="FOLDER", help="write the adversarial examples to a folder")
    return parser


def name_of_audit(text: str) -> str:
    """Return the name of an audit.

    Raises:
        argparse.ArgumentTypeError: it is not the name of a folder.
    """
    if not re.fullmatch(NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r}. Use letters, digits, points, hyphens and underscores")
    return text


def share(text: str) -> float:
    """Return a number from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: it is another value.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}. Use a number from 0 to 1")
    return value


def audit_params(options: argparse.Namespace) -> Params:
    """Parameters of an audit: those of the parameter file, changed by the other options.

    Args:
        options: of the command line.

    Raises:
        ValueError: an option or a parameter is not valid.
        OSError: a folder cannot be read.
    """
    values = load_params(Path(options.params)).model_dump(mode="json", by_alias=True, exclude_unset=True)
    if options.model:
        values["classifier"] = classifier_section(options.model, options.weights)
    elif options.weights:
        raise ValueError(
            "--weights: --model is missing. Weights belong to a factory. Add --model package.module:function"
        )
    acquire = values["acquire"]
    if options.images:
        acquire |= {"source": "folder", "folder": options.images}
    if options.table:
        acquire["table"] |= table_section(Path(acquire["folder"]), Path(options.table))
    if options.images or options.classes:
        acquire["classes"] = options.classes or found_classes(Path(acquire["folder"]), acquire["table"])
        acquire["positive_class"] = options.positive_class or acquire["classes"][-1]
    elif options.positive_class:
        acquire["positive_class"] = options.positive_class
    for entry in options.set:
        change_value(values, entry)
    # the workspace of the audit is another folder
    for section in (values["acquire"], values["classifier"]):
        section["folder"] = str(Path(section["folder"]).expanduser().resolve())
    params = parse_params(values, f"{options.params} with the options of the command")
    if params.classifier.source == "train":
        raise ValueError("--model: missing. Name a model file, an address or a factory.")
    return params


def classifier_section(model: str, weights: str | None) -> dict[str, Any]:
    """The section ``classifier`` for the option ``--model``.

    Args:
        model: a model file, a YAML file with the section, ``models:/...``, ``http://...`` or a factory.
        weights: file with the weights of a factory.

    Raises:
        ValueError: another form, or there is no such file.
    """
    path = Path(model).expanduser()
    if path.suffix in (".yaml", ".yml"):
        section = read_section(path)
        folder = section.get("folder")
        return section | {"folder": str(path.parent if folder is None else folder)}
    if model.startswith(("models:/", "runs:/")):
        return {"source": "mlflow", "folder": "models", "uri": model}
    if model.startswith(("http://", "https://")):
        return {"source": "http", "folder": "models", "address": model}
    if path.suffix in FORMATS:
        check_file(path, "--model")
        return {"source": FORMATS[path.suffix], "folder": str(path.parent), "file": path.name}
    if not (found := FACTORY.fullmatch(model)):
        raise ValueError(
            f"--model: {model!r}. Allowed are a file ({', '.join(FORMATS)}), a YAML file with the section classifier, "
            "models:/name/version, http://address, FILE.py:function and package.module:function. Correct the option."
        )
    module, function = Path(found["file"]).expanduser(), found["function"]
    section = {"source": "factory", "folder": "models", "factory": model}
    if module.suffix == ".py":
        check_file(module, "--model")
        section |= {"folder": str(module.parent), "factory": f"{module.stem}:{function}"}
    if weights:
        file = Path(weights).expanduser().resolve()
        check_file(file, "--weights")
        folder = Path(section["folder"]).resolve() if module.suffix == ".py" else file.parent
        if not file.is_relative_to(folder):
            raise ValueError(f"--weights: {weights} is not in {folder}, the folder of the factory. Move it there.")
        section |= {"folder": str(folder), "weights": file.relative_to(folder).as_posix()}
    return section


def read_section(path: Path) -> dict[str, Any]:
    """The section ``classifier`` of a YAML file, with or without its heading.

    Raises:
        ValueError: the file is missing or holds no section.
    """
    check_file(path, "--model")
    try:
        section = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--model: {path} is not valid YAML: {error}. Correct the file.") from error
    section = section.get("classifier", section) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"--model: {path} has no keys. It must hold the section classifier. Correct the file.")
    return dict(section)


def check_file(path: Path, option: str) -> None:
    """Check that a file exists.

    Raises:
        ValueError: it does not.
    """
    if not path.is_file():
        raise ValueError(f"{option}: {path} not found. It must be a file. Correct the path.")


def table_section(folder: Path, file: Path) -> dict[str, str]:
    """Keys of ``acquire.table`` for a table. The columns ``patient`` and ``split`` are used if it has them.

    Raises:
        ValueError: the table is missing, or not in the folder of the images.
    """
    check_file(file, "--table")
    if not file.resolve().is_relative_to(folder.expanduser().resolve()):
        raise ValueError(
            f"--table: {file} is not in {folder}. The table must lie in the folder of the images. Move it."
        )
    columns = read_columns(file, f"--table: {file}")
    name = file.resolve().relative_to(folder.expanduser().resolve()).as_posix()
    return {"file": name} | {column: column for column in ("patient", "split") if column in columns}


def found_classes(folder: Path, table: dict[str, Any]) -> list[str]:
    """Names of the classes in alphabetical order: the labels of the table or, without one, the subfolders.

    Raises:
        ValueError: there are none.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"--images: {folder} is not a folder. It must hold the images. Correct the path.")
    if table["file"]:
        columns = read_columns(folder / table["file"], f"--table: {folder / table['file']}")
        classes = sorted(set(columns[table["label"]])) if table["label"] in columns else []
        # with a wrong header, a cell could be the id of a patient
        found = f"the column {table['label']} of {table['file']} has {len(classes)} labels"
    else:
        classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_ignored(path))
        found = f"the subfolders of {folder} are {classes}"
    if len(classes) < 2:
        raise ValueError(f"--images: {found}. At least 2 classes are needed. Name them with --classes.")
    return classes


def change_value(values: dict[str, Any], entry: str) -> None:
    """Change one value of nested dicts.

    Args:
        values: parameters; unknown keys are refused when they are parsed.
        entry: ``dotted.key=value``; the value is YAML.

    Raises:
        ValueError: another form.
    """
    dotted, equals, text = entry.partition("=")
    *sections, key = dotted.split(".")
    try:
        value = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"--set: {entry!r} is not valid YAML: {error}. Write KEY=VALUE.") from error
    for name in sections:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            equals = ""
            break
    if not (equals and key):
        raise ValueError(f"--set: {entry!r}. Write KEY=VALUE, such as prepare.image_size=224.")
    values[key] = value
