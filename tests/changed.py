"""Print the test files of the changed modules: ``python -m tests.changed [BASE]``, for ``make test-changed``.

A test file belongs to a module if it imports the module or has its name (``test_<module>.py``). Changes are those of
the working tree against BASE (HEAD). Files in ``SLOW`` are left out unless they have changed; ``make test`` runs them.
"""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SLOW = {
    "test_attack.py",
    "test_audit.py",
    "test_flow.py",
    "test_labelling.py",
    "test_own_audit.py",
    "test_page_in_browser.py",
    "test_pipeline.py",
    "test_pipeline_flow.py",
    "test_planted.py",
    "test_workers.py",
}
MAX_FILES = 8
"""A module that more test files import has no tests of its own in them; only the file with its name is run."""


def main() -> None:
    """Print the files, separated by spaces, and on standard error the slow files that belong to the changes."""
    imports = {file.as_posix(): imported_modules(file) for file in sorted(Path("tests").glob("test_*.py"))}
    changed = changed_files(sys.argv[1] if len(sys.argv) > 1 else "HEAD")
    found = select_files(changed, imports)
    fast = [file for file in found if file in changed or Path(file).name not in SLOW]
    if slow := [file for file in found if file not in fast]:
        print(f"Left out, since they are slow: {' '.join(slow)}. make test runs them.", file=sys.stderr)
    print(*fast)


def select_files(changed: set[str], imports: Mapping[str, set[str]]) -> list[str]:
    """Return the test files that belong to changed files, in the order of ``imports``.

    Args:
        changed: paths of changed files, relative to the repository.
        imports: names of the imported modules by the path of the test file.
    """
    found = {file for file in imports if file in changed}
    for module in (path.removesuffix(".py").replace("/", ".") for path in changed if path.endswith(".py")):
        module = module.removesuffix(".__init__")
        importing = {file for file, names in imports.items() if module in names}
        own = f"tests/test_{module.rpartition('.')[2]}.py"
        found |= {own} & imports.keys()
        if len(importing) <= MAX_FILES:
            found |= importing
    return [file for file in imports if file in found]


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
