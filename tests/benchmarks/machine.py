"""What every benchmark says of the machine and the versions, and how it writes its figures."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instructions of x86 processors on which the speed of networks hangs."""

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""


def machine(*packages: str) -> dict[str, Any]:
    """Processor, cores, memory, Python, and the versions of the named packages."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    # of the first core; the others are alike
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return {
        "processor": told.get("model name") or platform.processor() or platform.machine(),
        "vectors": " ".join(name for name in VECTORS if name in told.get("flags", "").split()),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def describe(facts: dict[str, Any]) -> str:
    """One line for people."""
    return "  ".join(f"{name} {value}" for name, value in facts.items())


def verdict(seconds: float, goal: float) -> str:
    """Seconds beside what they may be at most."""
    return f"{seconds:7.2f} s  (goal at most {goal:g}: {'met' if seconds <= goal else 'MISSED'})"


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Figures as JSON, where a file was asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
