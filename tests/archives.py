"""Check of the archives of the published results."""

from pathlib import Path

from ruamel.yaml import YAML

from docs.keep_results import FILES, INCOMPLETE, MANIFEST, definitions
from tasks.params.params import flatten
from tasks.reporting.results import read_json


def manifest_problems(results: Path) -> list[str]:
    """Archives that are incomplete or whose manifest does not fit.

    It must have no uncommitted changes, no phantoms, and the commit and the parameters of the others.

    Args:
        results: folder of the archives and of the definitions of the tables.
    """
    incomplete = sorted(path.parent.name for path in results.glob(f"*/{INCOMPLETE}"))
    problems = [f"{name}: incomplete, its writing was interrupted. Archive the results again" for name in incomplete]
    files = [path for path in sorted(results.glob(f"*/{MANIFEST}")) if path.parent.name not in incomplete]
    manifests = {path.parent.name: read_json(path) for path in files}
    problems += [f"{name}: computed with uncommitted changes" for name, each in manifests.items() if each["dirty"]]
    commits = {name: each["commit"] for name, each in manifests.items()}
    if len(set(commits.values())) > 1:
        problems.append(f"several commits: {', '.join(f'{name} {commit}' for name, commit in commits.items())}")
    infos = {name: read_json(results / name / FILES["dataset_info"]) for name in manifests}
    problems += [f"{name}: computed on phantoms" for name, info in infos.items() if info["is_phantom"]]
    for file in sorted(results.glob("*.yaml")):
        for name, values in definitions(file).items():
            if name in manifests:
                params = flatten(YAML(typ="safe").load(results / name / FILES["params_file"]))
                differing = [key for key, value in flatten(values).items() if params.get(key) != value]
                problems += [f"{name}: {key} differs from {file.name}" for key in differing]
    return problems
