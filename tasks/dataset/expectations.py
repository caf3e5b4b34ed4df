"""What is expected of a data set, checked with Great Expectations over its manifest."""

import html
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks.dataset.images import FORMATS, MODES
from tasks.dataset.manifest import Manifest
from tasks.params import Validate

if TYPE_CHECKING:
    import pandas as pd

MIN_STD = 0.02
"""Standard deviation of grey in [0, 1] below which an image is blank."""
MAX_SATURATED = 0.8
"""Share of black and white pixels above which an image is suspicious."""
MAX_NEAR_DUPLICATES = 0.1
"""Share of images with a near-duplicate above which a split by single images is suspicious."""
MAX_GROUP_SHARE = 0.1
"""Share of all images above which one group is suspicious: it can hardly be one patient."""
N_EXAMPLES = 5

NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Check:
    """An expectation of Great Expectations, and how it is told."""

    name: str
    description: str
    severity: Literal["error", "warning"]
    table: Literal["images", "classes"]
    """Which table it is about: one row an image, or one row a class."""
    observed: str
    allowed: str
    type: str
    """Great Expectations' name of the class."""
    column: str
    bounds: dict[str, Any]
    """Arguments of the expectation besides the column."""


@dataclass(frozen=True)
class Outcome:
    """What came of a check."""

    name: str
    description: str
    severity: str
    success: bool
    observed: str
    allowed: str
    n_unexpected: int
    examples: list[str]
    """Paths, or names of classes, of the first unexpected ones."""


def validate_manifest(
    manifest: Manifest, classes: tuple[str, ...], settings: Validate, data_docs: Path
) -> list[Outcome]:
    """Run all checks and write Great Expectations' Data Docs; equal manifests give equal bytes."""
    # before the import, which logs hundreds of lines; the second sets a level of its own
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.checkpoint.actions import UpdateDataDocsAction
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from tasks.dataset.data_docs import SortedFiles

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    tables = {"images": _images_table(manifest), "classes": _classes_table(manifest, classes)}
    checks = list(_checks(tables["images"], tables["classes"], settings))

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    context.add_data_docs_site(
        site_name="data_docs",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": SortedFiles.__name__,
                "module_name": SortedFiles.__module__,
                "base_directory": str(data_docs.absolute()),
            },
        },
    )
    source = context.data_sources.add_pandas("manifest")
    results = {}
    for name, table in tables.items():
        expectations = [
            getattr(gxe, check.type)(
                column=check.column,
                severity="critical" if check.severity == "error" else "warning",
                notes=check.description,
                meta={"name": check.name},
                **check.bounds,
            )
            for check in checks
            if check.table == name
        ]
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [table.columns[0]]},
            actions=[UpdateDataDocsAction(name="data_docs", site_names=["data_docs"])],
        )
        run = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": _escaped(table)}, run_id=RunIdentifier(run_name="validate", run_time=NO_TIME)
        )
        (validated,) = run.run_results.values()
        for result in validated.results:
            assert result.expectation_config
            results[result.expectation_config.meta["name"]] = result
    _remove_times_and_ids(data_docs)
    return [_outcome(check, results[check.name], tables[check.table]) for check in checks]


def _images_table(manifest: Manifest) -> "pd.DataFrame":
    """The manifest, unreadable images included, with what the checks look at."""
    import pandas as pd

    table = manifest.table.copy()
    pixels = table.groupby("sha256", sort=False)
    near = table.groupby("near_duplicate_group", sort=False)
    table["shorter_side"] = table[["width", "height"]].min(axis=1)
    table["longer_side"] = table[["width", "height"]].max(axis=1)
    table["n_classes_of_pixels"] = pixels["class"].transform("nunique")
    table["is_exact_duplicate"] = table["sha256"].duplicated().astype(int)
    table["has_near_duplicate"] = (near["path"].transform("size") > 1).astype(int)
    table["n_classes_of_near_duplicates"] = near["class"].transform("nunique")
    table["group_share"] = table.groupby("group", sort=False)["path"].transform("size") / max(len(table), 1)
    table["decodes"] = 1
    unreadable = pd.DataFrame({"path": list(manifest.unreadable), "decodes": 0})
    return pd.concat([table, unreadable], ignore_index=True) if len(unreadable) else table


def _classes_table(manifest: Manifest, classes: tuple[str, ...]) -> "pd.DataFrame":
    import pandas as pd

    n_images = [int((manifest.table["class"] == name).sum()) for name in classes]
    imbalance = [max(n_images) / max(n, 1) for n in n_images]
    return pd.DataFrame({"class": list(classes), "n_images": n_images, "imbalance": imbalance})


def _checks(images: "pd.DataFrame", classes: "pd.DataFrame", settings: Validate) -> Iterator[Check]:
    """All checks, in the order in which they are told."""
    between, mean_between, in_set = (
        "ExpectColumnValuesToBeBetween",
        "ExpectColumnMeanToBeBetween",
        "ExpectColumnValuesToBeInSet",
    )
    readable = images[images["decodes"] == 1]

    def values(column: str) -> str:
        return ", ".join(sorted(readable[column].unique()))

    def span(table: "pd.DataFrame", column: str, form: str) -> str:
        return f"{table[column].min():{form}} to {table[column].max():{form}}" if len(table) else "nothing"

    share = readable[["is_exact_duplicate", "has_near_duplicate"]].mean().fillna(0)
    # fmt: off
    yield Check(
        "decodes", "Every image decodes", "error", "images",
        f"{len(readable)} of {len(images)}", "all", in_set, "decodes", {"value_set": [1]},
    )
    yield Check(
        "known_format", "The format of every image is known", "error", "images",
        values("format"), ", ".join(FORMATS), in_set, "format", {"value_set": list(FORMATS)},
    )
    yield Check(
        "known_mode", "The mode of every image is known", "error", "images",
        values("mode"), ", ".join(MODES), in_set, "mode", {"value_set": list(MODES)},
    )
    yield Check(
        "shorter_side", "No image is too small", "error", "images",
        span(readable, "shorter_side", ".0f") + " pixels", f"at least {settings.min_side} pixels",
        between, "shorter_side", {"min_value": settings.min_side},
    )
    yield Check(
        "longer_side", "No image is too large", "error", "images",
        span(readable, "longer_side", ".0f") + " pixels", f"at most {settings.max_side} pixels",
        between, "longer_side", {"max_value": settings.max_side},
    )
    yield Check(
        "class_present", "Every class has images", "error", "classes",
        span(classes, "n_images", "d"), "at least 1", between, "n_images", {"min_value": 1},
    )
    yield Check(
        "class_size", "Every class has enough images", "error", "classes",
        span(classes, "n_images", "d"), f"at least {settings.min_images_per_class}",
        between, "n_images", {"min_value": settings.min_images_per_class},
    )
    yield Check(
        "class_balance", "The largest class is not much larger than any other", "error", "classes",
        f"{classes['imbalance'].max():.2f} times", f"at most {settings.max_imbalance:g} times",
        between, "imbalance", {"max_value": settings.max_imbalance},
    )
    yield Check(
        "pixels_in_one_class", "Identical pixels are in one class only", "error", "images",
        f"{(readable['n_classes_of_pixels'] > 1).sum()} images in several", "none",
        between, "n_classes_of_pixels", {"max_value": 1},
    )
    yield Check(
        "exact_duplicates", "Few images repeat the pixels of another", "error", "images",
        f"{share['is_exact_duplicate']:.2%}", f"at most {settings.max_exact_duplicates:.2%}",
        mean_between, "is_exact_duplicate", {"max_value": settings.max_exact_duplicates},
    )
    yield Check(
        "not_blank", "No image is blank", "error", "images",
        f"standard deviation {span(readable, 'std', '.3f')}", f"at least {MIN_STD}",
        between, "std", {"min_value": MIN_STD},
    )
    yield Check(
        "not_saturated", "No image is nearly all black and white", "warning", "images",
        f"share of black and white pixels {span(readable, 'saturated', '.2f')}", f"at most {MAX_SATURATED}",
        between, "saturated", {"max_value": MAX_SATURATED},
    )
    yield Check(
        "near_duplicates", "Few images have a near-duplicate", "warning", "images",
        f"{share['has_near_duplicate']:.2%}", f"at most {MAX_NEAR_DUPLICATES:.2%}",
        mean_between, "has_near_duplicate", {"max_value": MAX_NEAR_DUPLICATES},
    )
    yield Check(
        "near_duplicates_in_one_class", "Near-duplicates are in one class only", "warning", "images",
        f"{(readable['n_classes_of_near_duplicates'] > 1).sum()} images in several", "none",
        between, "n_classes_of_near_duplicates", {"max_value": 1},
    )
    yield Check(
        "group_size", "No group of slices is too large to be one patient's", "warning", "images",
        f"largest {readable['group_share'].max() if len(readable) else 0:.2%} of images",
        f"at most {MAX_GROUP_SHARE:.0%}", between, "group_share", {"max_value": MAX_GROUP_SHARE},
    )
    # fmt: on


def _outcome(check: Check, result: Any, table: "pd.DataFrame") -> Outcome:
    assert not result.exception_info["raised_exception"], result.exception_info
    if check.type == "ExpectColumnMeanToBeBetween":
        unexpected = table.loc[table[check.column] == 1, table.columns[0]].tolist()
    else:
        listed = result.result.get("unexpected_index_list") or []
        unexpected = [html.unescape(entry[table.columns[0]]) for entry in listed]
    told = {key: value for key, value in asdict(check).items() if key in Outcome.__dataclass_fields__}
    return Outcome(**told, success=bool(result.success), n_unexpected=len(unexpected), examples=unexpected[:N_EXAMPLES])


def _escaped(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table as Data Docs may show it: they write names of files and classes into their pages as they are."""
    return table.assign(**{table.columns[0]: table[table.columns[0]].map(html.escape)})


def _remove_times_and_ids(data_docs: Path) -> None:
    """Replace what differs from run to run in the pages: when they were made, and random ids."""
    for page in sorted(data_docs.rglob("*.html")):
        page.write_text(_without_times_and_ids(page.read_text(encoding="utf-8")), encoding="utf-8")


def _without_times_and_ids(text: str) -> str:
    text = re.sub(r"\b\d{8}T\d{6}\.\d{6}Z", f"{NO_TIME:%Y%m%dT%H%M%S.%fZ}", text)
    ids: dict[str, str] = {}
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return re.sub(uuid, lambda match: ids.setdefault(match[0], f"id-{len(ids)}"), text)
