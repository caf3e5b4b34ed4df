"""The contracts of the architecture: one truth for stages, steps, flow tasks, imports and parameters."""

import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.core.workspace import DEFENCE_STEPS, Workspace
from tasks.params import Params
from tasks.params.params import STEP_PARAMS
from tasks.tracking.origin import LIBRARIES
from tests.changed import imported_modules
from tests.conftest import ROOT, VALUES

STAGES: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
TRAININGS = ("train_classifier", "train_surrogates", "train_autoencoder", "train_defence", "simulate_labelling")
ATTACKS = ("attack", "attack_defence")
LATE = tuple(f"tasks/{name}/" for name in ("outcomes", "statistics", "analysis", "evaluation", "serving", "reporting"))
"""Packages of tables, statistics and the report. A change there makes no training and no attack stale."""

CANNOT_CHANGE_AN_OUTPUT = {
    "tasks/__init__.py": "sets variables of libraries before they are loaded; a change of them needs dvc repro --force",
    **{
        f"tasks/params/{name}.py": "DVC compares the values that a stage uses"
        for name in (
            *("__init__", "active_learning", "analyze", "attack", "classifier", "defences", "images", "params"),
            *("reading", "renamed", "section", "training"),
        )
    },
    "tasks/params/names.py": "puts an apostrophe before formulas, which only names and texts of the user can be",
    "tasks/core/checkpoints.py": "a resumed step computes the same bytes",
    "tasks/core/digests.py": "digests name checkpoints and bundles, never outputs",
    "tasks/core/locks.py": "makes processes wait",
    "tasks/core/made_with.py": "its digests of inputs are only compared",
    "tasks/core/durable.py": "renames files, changes no byte",
    "tasks/core/source.py": "compares files, makes nothing",
    "tasks/core/workspace.py": "a moved folder shows in outs and deps",
    "tasks/runner.py": "calls the step, makes nothing",
    "tasks/step_inputs.py": "locks and checks inputs, makes nothing",
    **{
        f"tasks/tracking/{name}.py": "writes to MLflow and its outbox, never to data/"
        for name in (
            *("__init__", "address", "digests", "errors", "masking", "open_runs", "origin", "outbox", "run", "store"),
            "tracker",
        )
    },
}


def own_params(stage: str) -> list[str]:
    """Entries of a stage's ``params`` that are keys of params.yaml."""
    return [entry for entry in STAGES[stage].get("params", []) if isinstance(entry, str)]


def step_modules() -> set[str]:
    """Modules of tasks/ that define a function named like themselves."""
    return {
        path.stem
        for path in (ROOT / "tasks").glob("*.py")
        if any(
            isinstance(node, ast.FunctionDef) and node.name == path.stem for node in ast.parse(path.read_text()).body
        )
    }


def local_imports(module: Path) -> set[Path]:
    """Files of this repository that a module imports, directly or through others, functions' imports included."""
    seen: set[Path] = set()
    waiting = [module]
    while waiting:
        path = waiting.pop()
        if path in seen or path.relative_to(ROOT).as_posix() in CANNOT_CHANGE_AN_OUTPUT:
            continue
        seen.add(path)
        waiting += [found for name in imported_names(path) for found in files_of(name)]
    return seen


@cache
def imported_names(path: Path) -> set[str]:
    return {name for name in imported_modules(path) if name.split(".")[0] in {"tasks", "flows"}}


@cache
def files_of(name: str) -> list[Path]:
    path = ROOT / Path(*name.split("."))
    package_files = [
        parent / "__init__.py" for parent in [path, *path.parents] if parent.is_relative_to(ROOT / "tasks")
    ]
    # an empty __init__ has nothing that could change an output
    with_code = [file for file in package_files if file.is_file() and len(ast.parse(file.read_text()).body) > 1]
    return [file for file in [path.with_suffix(".py")] if file.is_file()] + with_code


def test_stages_are_the_step_modules() -> None:
    assert set(STAGES) == step_modules()


def test_every_stage_runs_its_own_module_and_owns_its_own_folder() -> None:
    for name, stage in STAGES.items():
        of_defences = name in DEFENCE_STEPS
        assert stage["cmd"] == f"python -m tasks.{name}" + (" ${item}" if of_defences else "")
        folder = Workspace().step_folder(name, "${item.defence}" if of_defences else None).as_posix()
        assert stage["outs"] == [folder, *([{"data/summary": {"cache": False}}] if name == "report" else [])]
        assert stage.get("matrix") == ({"defence": "${selected_defences}"} if of_defences else None)


def test_stages_are_written_in_the_order_in_which_the_flow_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.dvc_pipeline import DvcPipeline

    monkeypatch.chdir(ROOT)
    steps = DvcPipeline().steps()
    assert {name.partition("@")[0] for name in steps} == set(STAGES)
    order = list(STAGES)
    for name, needed in steps.items():
        ranks = [order.index(step.partition("@")[0]) for step in (*needed, name)]
        assert all(earlier < ranks[-1] for earlier in ranks[:-1])


def test_every_stage_depends_on_the_check_of_the_parameters_and_names_reach_the_shell_in_quotes() -> None:
    ready = {"check_params"}
    for name, stage in STAGES.items():
        # DVC quotes the values of ${item}, which is a mapping
        assert "${" not in stage["cmd"].removesuffix(" ${item}")
        needed = {Path(dep).parts[1] for dep in stage["deps"] if dep.startswith("data/")}
        assert name == "check_params" or needed & ready
        ready.add(name)


@pytest.mark.parametrize("name", STAGES)
def test_the_deps_of_a_stage_cover_every_local_module_that_its_code_imports(name: str) -> None:
    imported = {path.relative_to(ROOT) for path in local_imports(ROOT / "tasks" / f"{name}.py")}
    deps = [Path(dep) for dep in STAGES[name]["deps"] if dep.startswith("tasks/")]
    assert [path for path in sorted(imported) if not any(path.is_relative_to(dep) for dep in deps)] == []
    assert [dep for dep in deps if not any(path.is_relative_to(dep) for path in imported)] == []


LOAD = """
import importlib, json, sys
loaded = {}
for name in sys.argv[1:]:
    for module in [each for each in sys.modules if each.partition(".")[0] == "tasks"]:
        del sys.modules[module]
    importlib.import_module(f"tasks.{name}")
    loaded[name] = [each.__file__ for key, each in sys.modules.items() if key.partition(".")[0] == "tasks"]
print(json.dumps(loaded))
"""
"""Program that imports steps, one after the other, and prints the files of ``tasks/`` that Python loads with each."""


@pytest.fixture(scope="module")
def loaded_files() -> dict[str, set[str]]:
    """Files of ``tasks/`` that Python loads with each training and attack step, before the step is called."""
    command = [sys.executable, "-c", LOAD, *TRAININGS, *ATTACKS]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    files = json.loads(printed.splitlines()[-1])
    return {
        name: {Path(file).relative_to(ROOT).as_posix() for file in of_step if file} for name, of_step in files.items()
    }


def imported_files(name: str) -> set[str]:
    """Files of ``tasks/`` that the code of a step imports, functions' imports included."""
    return {path.relative_to(ROOT).as_posix() for path in local_imports(ROOT / "tasks" / f"{name}.py")}


@pytest.mark.parametrize("name", [*TRAININGS, *ATTACKS])
def test_the_deps_of_a_training_or_an_attack_cover_every_module_that_it_loads(
    name: str, loaded_files: dict[str, set[str]]
) -> None:
    deps = [Path(dep) for dep in STAGES[name]["deps"]]
    assert f"tasks/{name}.py" in loaded_files[name]
    with_code = [file for file in loaded_files[name] if len(ast.parse((ROOT / file).read_text()).body) > 1]
    needed = sorted(set(with_code) - CANNOT_CHANGE_AN_OUTPUT.keys())
    assert [file for file in needed if not any(Path(file).is_relative_to(dep) for dep in deps)] == []


@pytest.mark.parametrize("name", [*TRAININGS, *ATTACKS])
def test_tables_statistics_and_the_report_make_no_training_and_no_attack_stale(
    name: str, loaded_files: dict[str, set[str]]
) -> None:
    deps = [dep for dep in STAGES[name]["deps"] if f"{dep}/".startswith(LATE)]
    files = [file for file in sorted(loaded_files[name] | imported_files(name)) if file.startswith(LATE)]
    assert (deps, files) == ([], [])
    assert "report" not in own_params(name)


def test_records_have_only_what_attacks_use() -> None:
    """Readers and names that only tables and the report use are in ``tasks/outcomes/``."""
    files = sorted(set().union(*map(imported_files, ATTACKS)))
    own = [file.relative_to(ROOT).as_posix() for file in sorted((ROOT / "tasks" / "records").glob("[!_]*.py"))]
    assert set(own) <= set(files)
    trees = {file: ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in files}
    used = {name for tree in trees.values() for node in ast.walk(tree) if (name := used_name(node))}
    unused = [(file, name) for file in own for name in defined_names(trees[file]) if name not in used]
    assert unused == []


def used_name(node: ast.AST) -> str:
    """Name that a node reads; empty for other nodes."""
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else ""


def defined_names(module: ast.Module) -> set[str]:
    """Names of the functions, classes and constants of a module."""
    stored = {
        each.id
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        for each in ast.walk(target)
        if isinstance(each, ast.Name)
    }
    return stored | {node.name for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_an_attack_method_that_no_training_uses_makes_no_training_stale() -> None:
    for name in TRAININGS:
        deps = [Path(dep) for dep in STAGES[name]["deps"]]
        assert not any(Path("tasks/attacks/square.py").is_relative_to(dep) for dep in deps)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_parameters_that_its_code_reads(name: str) -> None:
    read = {
        node.attr
        for module in local_imports(ROOT / "tasks" / f"{name}.py")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", getattr(node.value, "attr", "")) == "params"
    }
    listed = {entry.split(".")[0] for entry in own_params(name)}
    used = {field.removesuffix("_") for field in read & set(Params.model_fields)}
    # the report prints all parameters that its stage lists, and the runner of check_params reads all of them
    assert used <= listed if name in ("check_params", "report") else used == listed


def test_every_parameter_belongs_to_a_stage(params_with: Any) -> None:
    flat = params_with().flat()
    written = [entry for name in STAGES for entry in own_params(name)]
    named = {entry.replace("${item.defence}", defence) for entry in written for defence in VALUES["defences"]}
    listed = sorted(named)
    for key in flat:
        assert any(key == entry or key.startswith(f"{entry}.") for entry in listed), f"{key} is in no stage"
    for entry in listed:
        assert any(key == entry or key.startswith(f"{entry}.") for key in flat), f"{entry} is no parameter"


def test_imports_follow_the_architecture() -> None:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache", "--config", ROOT / "pyproject.toml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stdout


def test_nothing_of_ours_names_a_registry_or_a_download_address_in_the_lock_file() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in lock
    assert "--index-url" not in lock


def test_every_package_of_the_lock_file_has_a_hash_and_everything_else_a_digest() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", "")
    assert [line.split()[0] for line in lock.splitlines() if "--hash=sha256:" not in line] == []
    image = (ROOT / "containers" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^FROM (?!\S+@sha256:[0-9a-f]{64}$)", image) == []
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert re.findall(r"uses: \S+@(?![0-9a-f]{40}\b)", workflow) == []


@pytest.mark.parametrize("name", STAGES)
def test_step_params_are_the_params_of_the_stage_in_dvc_yaml(name: str) -> None:
    assert list(STEP_PARAMS[name]) == own_params(name)


@pytest.mark.parametrize("name", [*TRAININGS, *ATTACKS])
def test_a_new_version_of_a_library_makes_trainings_and_attacks_stale(name: str) -> None:
    environment = YAML(typ="safe").load((ROOT / "environment.yaml").read_text(encoding="utf-8"))
    (listed,) = [entry["environment.yaml"] for entry in STAGES[name]["params"] if isinstance(entry, dict)]
    assert {"numpy", "torch", "torchvision"} <= set(listed) <= set(environment)


def test_artifacts_are_outputs_of_stages_and_have_names_that_dvc_allows() -> None:
    artifacts = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["artifacts"]
    outputs = [out for stage in STAGES.values() for out in stage["outs"]]
    assert [name for name in artifacts if not re.fullmatch("[a-z]([a-z0-9-/]*[a-z0-9])?", name)] == []
    assert [artifact["path"] for artifact in artifacts.values() if artifact["path"] not in outputs] == []


def test_dvc_yaml_is_short() -> None:
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 200


def test_environment_yaml_has_the_versions_of_the_lock_file() -> None:
    locked: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        name, _, version = line.removesuffix(" \\").partition("==")
        locked.setdefault(name, []).append(version)
    environment = YAML(typ="safe").load((ROOT / "environment.yaml").read_text(encoding="utf-8"))
    assert environment == {name: ", ".join(locked[name]) for name in environment}


def test_runs_are_tagged_with_the_versions_of_the_libraries_of_environment_yaml() -> None:
    assert set(LIBRARIES) == set(YAML(typ="safe").load((ROOT / "environment.yaml").read_text(encoding="utf-8")))
