"""Print the test files of the changed modules: ``python -m tests.changed [BASE]``, for ``make test-changed``.

A test file belongs to a module if it imports the module or its package by name. Changes are those of the working tree
against BASE (HEAD). Files in ``SLOW`` are left out; ``make test`` runs them.
"""

import ast
import subprocess
import sys
from pathlib import Path

SLOW = {"test_pipeline.py", "test_audit.py", "test_page_in_browser.py", "test_spread.py", "test_flow.py"}


def main() -> None:
    """Print the files, separated by spaces; nothing if no test file belongs to the changes."""
    changed = changed_files(sys.argv[1] if len(sys.argv) > 1 else "HEAD")
    modules = {path.removesuffix(".py").replace("/", ".") for path in changed if path.endswith(".py")}
    tests = [
        file
        for file in sorted(Path("tests").glob("test_*.py"))
        if file.name not in SLOW and (file.as_posix() in changed or modules & imported_modules(file))
    ]
    print(*tests)


def changed_files(base: str) -> set[str]:
    """Changed and new files of the working tree against a commit, relative to the repository."""
    commands = (["git", "diff", "--name-only", base], ["git", "ls-files", "--others", "--exclude-standard"])
    return {
        line
        for command in commands
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    }


def imported_modules(file: Path) -> set[str]:
    """Names of all modules that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


if __name__ == "__main__":
    main()
