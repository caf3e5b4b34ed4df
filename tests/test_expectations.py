"""Expectations of a data set."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from tasks.dataset.manifest import Manifest
from tasks.dataset.own_expectations import check_own_expectations
from tasks.dataset.validation import SLACK_WEBHOOK, ExpectationResult, validate_manifest
from tasks.params import Intensity, OwnExpectation, Validate, parse_params
from tasks.tracking import digest_of
from tests.conftest import ROOT, with_overrides
from tests.receiver import receiver

CLASSES = ("healthy", "ill")


SETTINGS = Validate(
    min_side=100,
    max_side=500,
    max_megapixels=1,
    min_images_per_class=5,
    max_imbalance_ratio=2.0,
    max_exact_duplicate_fraction=0.1,
    near_duplicate_correlation=0.97,
    same_group_correlation=0.6,
    expectations=(),
)


def table(n_healthy: int = 10, n_ill: int = 10) -> pd.DataFrame:
    """A manifest of images that meet every expectation."""
    n = n_healthy + n_ill
    labels = np.repeat([0, 1], [n_healthy, n_ill])
    return pd.DataFrame(
        {
            "path": [f"{CLASSES[label]}/{number}.png" for number, label in enumerate(labels)],
            "class": [CLASSES[label] for label in labels],
            "label": labels,
            "width": 300,
            "height": 200,
            "mode": "L",
            "format": "PNG",
            "file_size": 1000,
            "sha256": [f"{number:064x}" for number in range(n)],
            "mean": 0.5,
            "std": 0.2,
            "saturated_fraction": 0.1,
            "bits": 8,
            "unit": "grey level",
            "min_value": 0.0,
            "max_value": 255.0,
            "possible_values": 255.0,
            "near_duplicate_group": range(n),
            "group": range(n),
        }
    )


def validate_table(
    frame: pd.DataFrame, folder: Path, unreadable: dict[str, str] | None = None
) -> list[ExpectationResult]:
    return validate_manifest(Manifest(frame, unreadable or {}), CLASSES, SETTINGS, folder)


UNREADABLE = {f"ill/bad {number}.png": "the file is empty" for number in range(7)}


def faulty_table() -> pd.DataFrame:
    """Images that fail every expectation about images."""
    frame = table()
    frame.loc[0, "format"] = "GIF"
    frame.loc[[0, 19], "mode"] = "F"
    frame.loc[2, "height"] = 99
    frame.loc[3, "width"] = 501
    frame.loc[5, "std"] = 0.0
    frame.loc[6, "saturated_fraction"] = 0.95
    frame.loc[[7, 8, 9, 10], "sha256"] = "0" * 63 + "7"
    frame.loc[[9, 10, 11], "near_duplicate_group"] = 9
    frame.loc[[1, 2, 3], "group"] = 1
    return frame


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, ExpectationResult], Path]:
    """Results for the faulty images, and the folder of their Data Docs."""
    folder = tmp_path_factory.mktemp("faults")
    found = validate_table(faulty_table(), folder, UNREADABLE)
    return {result.name: result for result in found}, folder


def test_values_at_the_limits_meet_every_expectation(tmp_path: Path) -> None:
    frame = table(10, 5)
    frame.loc[0, ["width", "height"]] = [500, 100]
    found = validate_table(frame, tmp_path)
    assert [result.name for result in found if not result.success] == []
    assert all(result.n_unexpected == 0 and result.examples == [] for result in found)
    assert len({result.name for result in found}) == len(found) >= 13


def test_a_failed_expectation_is_posted_to_the_webhook_and_met_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = table()
    with receiver() as (address, received):
        monkeypatch.setenv(SLACK_WEBHOOK, address)
        validate_table(frame, tmp_path)
        assert received == []

        frame.loc[2, "height"] = 99
        validate_table(frame, tmp_path)
    (message,) = received
    assert "ct-robustness - images - Failure" in str(message["blocks"])
    assert address not in "".join(page.read_text() for page in tmp_path.rglob("*.html"))


@pytest.mark.parametrize(
    ("name", "severity", "n_unexpected", "examples"),
    [
        ("decodes", "error", 7, [f"ill/bad {number}.png" for number in range(5)]),
        ("known_format", "error", 1, ["healthy/0.png"]),
        ("known_mode", "error", 2, ["healthy/0.png", "ill/19.png"]),
        ("shorter_side", "error", 1, ["healthy/2.png"]),
        ("longer_side", "error", 1, ["healthy/3.png"]),
        ("pixels_in_one_class", "error", 4, ["healthy/7.png", "healthy/8.png", "healthy/9.png", "ill/10.png"]),
        ("exact_duplicates", "error", 3, ["healthy/8.png", "healthy/9.png", "ill/10.png"]),
        ("not_blank", "error", 1, ["healthy/5.png"]),
        ("not_saturated", "warning", 1, ["healthy/6.png"]),
        ("near_duplicates", "warning", 3, ["healthy/9.png", "ill/10.png", "ill/11.png"]),
        ("near_duplicates_in_one_class", "warning", 3, ["healthy/9.png", "ill/10.png", "ill/11.png"]),
        ("group_size", "warning", 3, ["healthy/1.png", "healthy/2.png", "healthy/3.png"]),
    ],
)
def test_each_fault_fails_its_expectation(
    name: str, severity: str, n_unexpected: int, examples: list[str], faults: tuple[dict[str, ExpectationResult], Path]
) -> None:
    result = faults[0][name]
    assert (result.success, result.severity, result.n_unexpected) == (False, severity, n_unexpected)
    assert result.examples == examples


def test_faulty_images_do_not_fail_expectations_about_classes(
    faults: tuple[dict[str, ExpectationResult], Path],
) -> None:
    assert {name for name, result in faults[0].items() if result.success} == {
        "class_present",
        "class_size",
        "class_balance",
        "range_used",
        "one_scale",
    }
    assert faults[0]["decodes"].observed == "20 of 27"
    assert faults[0]["exact_duplicates"].observed == "15.00%"


def test_small_class_fails_size_and_balance(tmp_path: Path) -> None:
    found = {result.name: result for result in validate_table(table(9, 4), tmp_path)}
    assert {name: result.examples for name, result in found.items() if not result.success} == {
        "class_size": ["ill"],
        "class_balance": ["ill"],
    }
    assert found["class_balance"].observed == "2.25 times"


def test_classes_are_missing_without_readable_images(tmp_path: Path) -> None:
    found = validate_table(table(0, 0), tmp_path, UNREADABLE)
    failed = [result.name for result in found if not result.success]
    assert failed[:1] == ["decodes"]
    assert {"class_present", "class_size"} <= set(failed)


def test_data_docs_of_equal_manifests_have_equal_bytes(
    faults: tuple[dict[str, ExpectationResult], Path], tmp_path: Path
) -> None:
    _, folder = faults
    validate_table(faulty_table(), tmp_path, UNREADABLE)
    assert digest_of(tmp_path) == digest_of(folder)
    pages = {page.relative_to(tmp_path).as_posix(): page.read_text() for page in tmp_path.rglob("*.html")}
    assert "index.html" in pages
    assert any("validations/images" in page and "healthy/5.png" in text for page, text in pages.items())
    assert not any(str(tmp_path) in text for text in pages.values())


@pytest.mark.parametrize("name", ["p$FOO", "p${FOO}", "p$", "p\\$FOO"])
def test_data_docs_are_written_to_the_folder_itself_if_its_name_is_that_of_a_variable(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOO", "/../outside")
    validate_table(table(), tmp_path / "workspace" / name)
    assert (tmp_path / "workspace" / name / "index.html").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["workspace"]
    assert [path.name for path in (tmp_path / "workspace").iterdir()] == [name]


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York", "America/Sao_Paulo"])
def test_data_docs_do_not_depend_on_the_time_zone(
    zone: str, faults: tuple[dict[str, ExpectationResult], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tzlocal.get_localzone", lambda: ZoneInfo(zone))
    validate_table(faulty_table(), tmp_path, UNREADABLE)
    assert digest_of(tmp_path) == digest_of(faults[1])
    assert "1970-01-01 00:00:00 UTC" in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("reverse", [False, True])
def test_data_docs_do_not_depend_on_the_order_of_files_in_the_file_system(
    reverse: bool, faults: tuple[dict[str, ExpectationResult], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = os.walk

    def walk_in_order(top: str | Path, **options: bool) -> Iterator[tuple[str, list[str], list[str]]]:
        for folder, folders, files in walk(top, **options):
            folders.sort(reverse=reverse)
            yield folder, folders, sorted(files, reverse=reverse)

    monkeypatch.setattr(os, "walk", walk_in_order)
    validate_table(faulty_table(), tmp_path, UNREADABLE)
    assert digest_of(tmp_path) == digest_of(faults[1])


def deep_table(max_value: float, n_healthy: int = 10) -> pd.DataFrame:
    """A manifest whose ill images have 16 bits and values up to ``max_value``."""
    frame = table(n_healthy)
    is_ill = frame["class"] == "ill"
    frame.loc[is_ill, ["bits", "max_value", "possible_values"]] = [16, max_value, 65535.0]
    return frame


def failed(frame: pd.DataFrame, folder: Path, **intensity: Any) -> dict[str, ExpectationResult]:
    values = {"kind": "full_range", "bits": 0, "window": (0.0, 1.0), "percentiles": (0.0, 99.0), "unit": "HU"}
    found = validate_manifest(Manifest(frame, {}), CLASSES, SETTINGS, folder, Intensity(**values | intensity))
    return {result.name: result for result in found if not result.success}


def test_a_class_of_8_bits_and_a_class_of_dark_16_bits_are_refused_with_what_to_set(tmp_path: Path) -> None:
    found = failed(deep_table(4095), tmp_path)
    assert set(found) == {"range_used"}
    assert found["range_used"].n_unexpected == 10
    assert found["range_used"].observed == "6.2% of the values in the class ill"
    assert (
        "set prepare.intensity.bits, such as 12, or set prepare.intensity.kind to window" in found["range_used"].allowed
    )


def test_a_class_of_12_bit_scans_in_16_bit_files_is_refused_beside_a_class_of_true_16_bits(tmp_path: Path) -> None:
    frame = deep_table(65_000).assign(bits=16, possible_values=65535.0)
    frame.loc[frame["class"] == "healthy", "max_value"] = 4095.0
    found = failed(frame, tmp_path)
    assert set(found) == {"range_used"}
    assert found["range_used"].n_unexpected == 10
    assert found["range_used"].observed == "6.2% of the values in the class healthy"
    frame.loc[frame["class"] == "healthy", "max_value"] = 40_000.0
    assert failed(frame, tmp_path) == {}


def test_a_class_of_8_bits_and_a_class_of_bright_16_bits_are_allowed_by_full_range_alone(tmp_path: Path) -> None:
    assert failed(deep_table(50_000), tmp_path) == {}
    assert set(failed(deep_table(50_000), tmp_path, kind="window")) == {"one_scale"}
    assert set(failed(deep_table(50_000), tmp_path, kind="percentiles")) == {"one_scale"}


def test_dicom_files_must_have_the_unit_of_the_window(tmp_path: Path) -> None:
    frame = table().assign(format="DICOM", bits=12, unit="HU", possible_values=4095.0, min_value=-1024, max_value=3071)
    assert failed(frame, tmp_path) == {}
    assert failed(frame, tmp_path, kind="window") == {}
    found = failed(frame, tmp_path, kind="window", unit="grey level")
    assert (set(found), found["one_scale"].n_unexpected) == ({"one_scale"}, 20)
    frame.loc[3, "unit"] = "grey level"
    assert failed(frame, tmp_path)["one_scale"].examples == ["healthy/3.png"]


def test_every_duplicate_is_listed_with_the_file_that_it_repeats(tmp_path: Path) -> None:
    frame = table()
    repeated = [1, 2, *range(4, 10)]
    frame.loc[repeated, "sha256"] = frame.loc[0, "sha256"]
    result = failed(frame, tmp_path)["exact_duplicates"]
    assert len(result.examples) == 5
    assert result.unexpected == [f"healthy/{number}.png = healthy/0.png" for number in repeated]


def own(name: str = "square", **values: Any) -> OwnExpectation:
    """An expectation that the images of :func:`table` meet."""
    given = {"description": "The images have the width of the scanner", "severity": "error", "table": "images"}
    given |= {"type": "ExpectColumnValuesToBeInSet", "arguments": {"column": "width", "value_set": [300]}}
    return OwnExpectation(**{"name": name, **given, **values})


def results_of_own(folder: Path, *expectations: OwnExpectation) -> list[ExpectationResult]:
    """Results of the user's expectations for a table with one wider image."""
    frame = table()
    frame.loc[4, "width"] = 301
    settings = SETTINGS.model_copy(update={"expectations": expectations})
    return validate_manifest(Manifest(frame, {}), CLASSES, settings, folder)[-len(expectations) :]


def test_expectations_of_the_user_are_validated_beside_those_that_always_run(tmp_path: Path) -> None:
    width, mean, rows, classes = results_of_own(
        tmp_path,
        own(),
        own("mean", type="ExpectColumnMeanToBeBetween", arguments={"column": "mean", "min_value": 0.6}),
        own("rows", type="ExpectTableRowCountToBeBetween", arguments={"min_value": 20}, severity="warning"),
        own(
            "classes",
            type="ExpectColumnValuesToBeInSet",
            table="classes",
            arguments={"column": "n_images", "value_set": [10]},
        ),
    )
    assert (width.success, width.n_unexpected, width.examples) == (False, 1, ["healthy/4.png"])
    assert (width.observed, width.allowed) == ("1 of 20 unexpected", "width: value_set [300] (validate.expectations)")
    assert (mean.success, mean.observed, mean.examples) == (False, "0.5", [])
    assert (rows.success, rows.observed, rows.severity) == (True, "20", "warning")
    assert rows.allowed == "min_value 20 (validate.expectations)"
    assert classes.success
    assert any("width of the scanner" in page.read_text() for page in tmp_path.rglob("*.html"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "decodes"}, r"validate\.expectations\[0\]\.name: 'decodes'.*Rename"),
        (
            {"arguments": {"column": "age", "value_set": [1]}},
            "validate.expectations: square cannot be computed: .*age.*n_classes",
        ),
    ],
)
def test_a_name_or_a_column_that_does_not_fit_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        results_of_own(tmp_path, own(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "ExpectColumnValuesToBeInTheSet"}, r"expectations\[1\]\.type: .*such as ExpectColumnValuesToBeInSet"),
        ({"type": "Expectation"}, r"expectations\[1\]\.type: "),
        ({"arguments": {"value_set": [1]}}, r"expectations\[1\]\.arguments: .*column"),
        ({"arguments": {"column": "width", "value_set": [1], "mostly": 2}}, r"expectations\[1\]\.arguments: .*mostly"),
        ({"arguments": {"column": "width", "value_set": [1], "max": 2}}, r"expectations\[1\]\.arguments: .*max"),
    ],
)
def test_a_type_or_arguments_that_great_expectations_refuses_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_own_expectations((own(), own("other", **values)))


def test_the_names_of_expectations_must_differ() -> None:
    with pytest.raises(ValueError, match="must differ: square, square"):
        Validate(**SETTINGS.model_dump() | {"expectations": (own(), own())})


@pytest.mark.parametrize(
    "name", ["min_side", "max_side", "min_images_per_class", "max_imbalance_ratio", "max_exact_duplicate_fraction"]
)
def test_the_limit_of_an_expectation_names_its_parameter(
    name: str, faults: tuple[dict[str, ExpectationResult], Path]
) -> None:
    assert len([result for result in faults[0].values() if f"(validate.{name})" in result.allowed]) == 1


def test_the_expectations_of_the_documentation_are_valid() -> None:
    page = (ROOT / "docs" / "how-to" / "own-images.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(validate:.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    entries = YAML(typ="safe").load(block)["validate"]["expectations"]
    expectations = parse_params(with_overrides({"validate.expectations": entries})).validate_.expectations
    assert [expectation.name for expectation in expectations] == ["scanner_width", "brightness"]
    check_own_expectations(expectations)
