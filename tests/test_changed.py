"""The choice of the tests that ``make test-changed`` runs."""

from pathlib import Path

from tests.changed import MAX_FILES, SLOW, imported_modules, select_files

IMPORTS = {
    "tests/test_apgd.py": {"tasks.attacks.apgd", "tasks.core.workspace"},
    "tests/test_suite.py": {"tasks.attacks.apgd", "tasks.attacks"},
    "tests/test_workspace.py": {"tasks.core.workspace"},
    **{f"tests/test_{number}.py": {"tasks.core.workspace"} for number in range(MAX_FILES)},
}


def test_the_tests_of_a_module_import_it_or_have_its_name() -> None:
    assert select_files({"tasks/attacks/apgd.py"}, IMPORTS) == ["tests/test_apgd.py", "tests/test_suite.py"]
    assert select_files({"tasks/attacks/suite.py"}, IMPORTS) == ["tests/test_suite.py"]
    assert select_files({"tasks/attacks/__init__.py"}, IMPORTS) == ["tests/test_suite.py"]


def test_a_module_that_most_tests_import_is_tested_by_the_file_with_its_name_alone() -> None:
    assert select_files({"tasks/core/workspace.py"}, IMPORTS) == ["tests/test_workspace.py"]


def test_a_changed_test_file_is_run_and_other_files_have_no_tests() -> None:
    assert select_files({"tests/test_3.py", "README.md"}, IMPORTS) == ["tests/test_3.py"]


def test_imports_inside_functions_count() -> None:
    assert "tests.changed" in imported_modules(Path(__file__))
    assert "tests.test_pipeline" in imported_modules(Path(__file__).parent / "conftest.py")


def test_all_slow_files_exist() -> None:
    assert {name for name in SLOW if not (Path(__file__).parent / name).exists()} == set()
