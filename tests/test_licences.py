"""The page of licences, which is written from the installed packages."""

import pytest

from docs.write_licences import PAGE, is_permissive, locked
from tests.conftest import ROOT


def test_the_page_names_every_package_of_the_lock_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    of_all = PAGE.read_text(encoding="utf-8").partition("## All packages")[2]
    named = [line.split(" | ")[0].strip("| ") for line in of_all.splitlines()[4:]]
    assert named == locked(), "python -m docs.write_licences"


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
def test_a_licence_is_permissive_if_all_of_it_is(licence: str, permissive: bool) -> None:
    assert is_permissive(licence) == permissive
