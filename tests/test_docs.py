"""The documentation: links, generated pages, length of the README, and phrases that the style bans."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from ruamel.yaml import YAML

from docs.check_prose import matches, text_files
from docs.write_parameters import PAGE, parameters_page
from tasks.evaluation.comparison import COLUMNS
from tasks.params import Attack, load_params
from tasks.records.vocabulary import ART_REFERENCE, HOP_SKIP_JUMP, PGD_FIXED_DRAWS, SEARCHES
from tasks.reporting.names import ATTACK_NAMES
from tests.conftest import ROOT

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^()\s]+)\)")
MAX_README_LINES = 150


def without_code(path: Path) -> str:
    """Text of a Markdown file without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, which GitHub and zensical form in the same way for these headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    """Relative links and images of a Markdown file whose file or anchor does not exist."""
    broken = []
    for link in LINK.findall(without_code(path)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_exist(path: Path) -> None:
    assert broken_links(path) == []


def test_a_missing_file_and_a_missing_anchor_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title: two parts\n\n```\n[code](nowhere.md)\n```\n[1](page.md#a-title-two-parts) [2](#no-title) "
        "![3](no.png) [4](https://example.org/no) [5](page.md#code)\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["#no-title", "no.png", "page.md#code"]


def test_the_parameter_reference_is_up_to_date() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert page == parameters_page(load_params(ROOT / "params.yaml")), "run python -m docs.write_parameters"


def test_the_parameter_reference_has_every_key_of_params_yaml() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    keys = [key for key in load_params(ROOT / "params.yaml").flat() if not key.startswith("defences.")]
    learning = tuple(f"active_learning.{section}." for section in ("training", "reference_training", "oracle"))
    missing = [key for key in keys if f"- **`{key}`**" not in page and not key.startswith(("attack.pgd.", *learning))]
    assert missing == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_the_documentation_has_no_banned_phrase() -> None:
    files = [path for path in text_files(ROOT) if path.is_relative_to(ROOT / "docs") or path.name == "README.md"]
    assert files
    assert [match for path in files for match in matches(path)] == []


@pytest.mark.parametrize(
    ("line", "is_banned"),
    [
        ("The classifier is right on 98 % of the images.", True),
        ("An attacker who knows the defence.", True),
        ("The tracking server is out.", True),
        ("The model file says with which classes it was trained.", True),
        ("The pipeline does not know the patients.", True),
        ("For the checks see below. The attack needs gradients.", False),
        ("    '''", False),
        ('"""Whether the model is robust."""', True),
        ("## What is measured", True),
        ("## Where to start", False),
        ("The tracking server is out of date.", False),
        ("He initialisation; the weights are stored as they are.", False),
        ("Look at the figures in MLflow.", False),
        ("Accuracy is 98.2 %.", False),
    ],
)
def test_banned_phrases_are_found_and_plain_text_is_not(tmp_path: Path, line: str, is_banned: bool) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"{line}\n", encoding="utf-8")
    assert bool(matches(path)) == is_banned


def test_the_reference_of_outputs_has_every_column_of_the_comparison() -> None:
    page = (ROOT / "docs/reference/outputs.md").read_text(encoding="utf-8")
    table = page.split("\n`comparison.csv`:")[1].split("\n\n`")[0]
    documented = set(
        re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.splitlines() if "|" in line))
    )
    assert documented == {column for column in COLUMNS if not column.endswith(("_low", "_high"))}


def test_every_attack_has_a_display_name_and_a_row_in_the_concepts() -> None:
    kinds = get_args(get_args(Attack.model_fields["attacks"].annotation)[0])
    names = [name for kind in kinds for name in get_args(kind)]
    assert {"fgsm", "pgd", "pgd_8_bit"} <= set(names)
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for name in [*names, PGD_FIXED_DRAWS, *ART_REFERENCE, *SEARCHES, HOP_SKIP_JUMP]:
        assert re.search(rf"^\| .*`{name}`", concepts, re.MULTILINE), f"docs/concepts.md has no row for {name}"
    assert not [name for name in [*names, PGD_FIXED_DRAWS, *SEARCHES] if name not in ATTACK_NAMES]


def test_the_citation_has_the_version_and_the_licence_of_the_project() -> None:
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    assert str(citation["version"]) == project["version"]


def test_the_changelog_begins_with_the_changes_that_are_not_released() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert [
        heading for heading in headings[1:] if not re.fullmatch(r"\d+\.\d+\.\d+ \(\d{4}-\d\d-\d\d\)", heading)
    ] == []


def test_the_documentation_names_the_deployments_of_prefect_yaml() -> None:
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    # a flow has the name of its function
    names = {f"{each['entrypoint'].partition(':')[2]}/{each['name']}" for each in deployments}
    pages = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    assert set(re.findall(r"^\| `(\w+/[\w-]+)` \|", pages["several-machines.md"], flags=re.MULTILINE)) == names
    started = {name for page in pages.values() for name in re.findall(r"prefect deployment run (\S+)", page)}
    assert started <= names


def test_the_schedule_of_the_audit_is_paused() -> None:
    deployments = YAML(typ="safe").load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    schedules = {each["name"]: each["schedules"] for each in deployments if "schedules" in each}
    assert {name: [schedule["active"] for schedule in each] for name, each in schedules.items()} == {
        "robustness-audit": [False]
    }
