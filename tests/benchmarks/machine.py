"""Description of the machine and of library versions, and output of figures, for all benchmarks."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Vector instructions of x86 processors that determine the speed of networks."""

ROOT = Path(__file__).resolve().parents[2]
"""Root of the repository."""


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, memory, Python, and the versions of the named packages."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    # of the first core; all cores are equal
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "vectors": " ".join(name for name in VECTORS if name in facts.get("flags", "").split()),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def describe(facts: dict[str, Any]) -> str:
    """Return the facts as one line."""
    return "  ".join(f"{name} {value}" for name, value in facts.items())


def verdict(seconds: float, goal: float) -> str:
    """Return seconds, their goal, and whether the goal is met."""
    return f"{seconds:7.2f} s  (goal at most {goal:g}: {'met' if seconds <= goal else 'MISSED'})"


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures as JSON if a path is given."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
