"""The page of licences, which is written from the metadata of the installed packages."""

import pytest

from docs.write_licences import PAGE, is_permissive, locked_packages
from tests.conftest import ROOT


def test_the_page_names_every_package_of_the_lock_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table = PAGE.read_text(encoding="utf-8").partition("## All packages")[2]
    names = [line.split(" | ")[0].strip("| ") for line in table.splitlines()[4:]]
    assert names == locked_packages(), "run python -m docs.write_licences"


@pytest.mark.parametrize(
    ("licence", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 WITH LLVM-exception AND BSD-2-Clause", True),
        ("MPL-2.0 AND MIT", False),
        ("Apache-2.0 OR GPL-2.0-or-later", False),
        ("GPLv2 with linking exception", False),
        ("LicenseRef-NVIDIA-Proprietary", False),
        ("", False),
    ],
)
def test_a_licence_is_permissive_if_all_its_parts_are(licence: str, permissive: bool) -> None:
    assert is_permissive(licence) == permissive
