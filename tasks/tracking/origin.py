"""Tags of a run that say with which code and on which machine it was computed."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    *("adversarial-robustness-toolbox", "imagecodecs", "nibabel", "numpy", "pillow", "pydicom", "scikit-learn"),
    *("scipy", "tifffile", "torch", "torchvision"),
)
"""Libraries that compute; ``environment.yaml`` has the same ones."""

CPU_FACTS = Path("/proc/cpuinfo")


def origin_tags(*also_own: str) -> dict[str, str]:
    """Return commit, uncommitted changes, DVC experiment, versions of Python and the libraries, and processor.

    Tags that do not apply are missing: those of git outside of a repository, ``dvc_experiment`` outside of
    ``dvc exp run``, and versions of libraries that are not installed.

    Args:
        also_own: files and folders whose changes do not count, besides those that the pipeline writes.
    """
    tags = {"processor": processor(), "version.python": platform.python_version()}
    for library in LIBRARIES:
        try:
            tags[f"version.{library}"] = version(library)
        except PackageNotFoundError:
            continue
    # DVC sets the variable for the commands of an experiment
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = name
    if commit := git_output("rev-parse", "HEAD"):
        # the names that MLflow itself uses. The pipeline writes dvc.lock and files in data/, so these do not count
        own = [f":(top,exclude){path}" for path in ("dvc.lock", "data", *also_own)]
        changed = git_output("status", "--porcelain", "--untracked-files=no", "--", ":/", *own)
        tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(changed != "").lower()}
    return tags


def processor() -> str:
    """Name of the processor, as the operating system gives it."""
    lines = CPU_FACTS.read_text(encoding="utf-8").splitlines() if CPU_FACTS.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_output(*arguments: str) -> str | None:
    """Output of a git command; None if it fails, for example outside of a repository."""
    try:
        command = ["git", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603  fixed  # nosec B603
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
