"""Expectations of a data set, validated on its manifest with Great Expectations."""

import html
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset.manifest import Manifest
from tasks.dataset.own_expectations import DatasetExpectation, exception_message, observed_text, own_expectations
from tasks.dataset.readers import FORMATS, MODES
from tasks.params import Intensity, Validate

if TYPE_CHECKING:
    import pandas as pd

MIN_STD = 0.02
"""Minimum standard deviation of the grey levels in [0, 1]; an image below it is blank."""
MAX_SATURATED_FRACTION = 0.8
"""Maximum fraction of black and white pixels of an image."""
MAX_NEAR_DUPLICATE_FRACTION = 0.1
"""Maximum fraction of images with a near-duplicate. Above it, a split of single images has much leakage."""
MAX_GROUP_FRACTION = 0.1
"""Maximum fraction of the images in one group. A larger group is probably more than one patient."""
MIN_USED_RANGE = 0.25
"""Minimum fraction of the values of more than 8 bits that a data set uses; below it the images lose grey levels."""
N_EXAMPLES = 5
"""Maximum number of examples of a result."""

SLACK_WEBHOOK = "CT_ROBUSTNESS_SLACK_WEBHOOK"
"""Environment variable: address of a webhook of Slack that gets a message if an expectation fails."""

FIXED_RUN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""Time in the Data Docs, in place of the time of the run, so that equal data give equal bytes."""


@dataclass(frozen=True)
class ExpectationResult:
    """Result of one expectation."""

    name: str
    description: str
    severity: str
    success: bool
    observed: str
    allowed: str
    n_unexpected: int
    """Number of images or classes that fail the expectation."""
    examples: list[str]
    """Paths of the first images, or names of the first classes, that fail the expectation."""
    unexpected: list[str]
    """All of them; of duplicates also the file that they repeat: ``ill/b.png = healthy/a.png``."""


def validate_manifest(
    manifest: Manifest,
    classes: tuple[str, ...],
    settings: Validate,
    data_docs: Path,
    intensity: Intensity | None = None,
) -> list[ExpectationResult]:
    """Validate all expectations and write the Data Docs. Equal manifests give equal bytes.

    Args:
        manifest: of the data set.
        classes: names of the classes.
        settings: limits of the expectations.
        data_docs: folder of the Data Docs.
        intensity: map of the values to [0, 1]; None: the full range of each file.

    Raises:
        ValueError: an entry of ``validate.expectations`` has the name of another expectation, or can't be computed.
    """
    # levels are set before and after the import: the import logs hundreds of lines, and sets the level of one logger
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from tasks.dataset.data_docs import SortedFilesystemStore

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    images = _images_table(manifest).assign(**scale_columns(manifest.table, intensity))
    tables = {"images": images, "classes": _classes_table(manifest, classes)}
    expectations = list(_expectations(tables["images"], tables["classes"], settings))
    expectations += own_expectations(settings.expectations, {expectation.name for expectation in expectations})

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    context.add_data_docs_site(
        site_name="data_docs",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": SortedFilesystemStore.__name__,
                "module_name": SortedFilesystemStore.__module__,
                "base_directory": str(data_docs.absolute()),
            },
        },
    )
    source = context.data_sources.add_pandas("manifest")
    results: dict[str, Any] = {}
    for name, table in tables.items():
        chosen = [expectation for expectation in expectations if expectation.table == name]
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        results |= _validate_table(context, name, table, batch, chosen)
    _remove_times_and_ids(data_docs)
    return [
        _expectation_result(expectation, results[expectation.name], tables[expectation.table])
        for expectation in expectations
    ]


def _validate_table(
    context: Any, name: str, table: "pd.DataFrame", batch: Any, expectations: list[DatasetExpectation]
) -> dict[str, Any]:
    """Validate one table with Great Expectations; return its results by name of the expectation."""
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.checkpoint.actions import SlackNotificationAction, UpdateDataDocsAction
    from great_expectations.core.run_identifier import RunIdentifier

    suite = gx.ExpectationSuite(
        name=name,
        expectations=[
            getattr(gxe, expectation.expectation_type)(
                severity="critical" if expectation.severity == "error" else "warning",
                notes=expectation.description,
                meta={"name": expectation.name},
                **({"column": expectation.column} if expectation.column else {}),
                **expectation.kwargs,
            )
            for expectation in expectations
        ],
    )
    definition = gx.ValidationDefinition(name=name, data=batch, suite=context.suites.add(suite))
    actions: list[Any] = [UpdateDataDocsAction(name="data_docs", site_names=["data_docs"])]
    if address := os.environ.get(SLACK_WEBHOOK):
        actions.append(SlackNotificationAction(name="ct-robustness", slack_webhook=address, notify_on="failure"))
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[context.validation_definitions.add(definition)],
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": [table.columns[0]]},
        actions=actions,
    )
    run = context.checkpoints.add(checkpoint).run(
        batch_parameters={"dataframe": _escape_html(table)},
        run_id=RunIdentifier(run_name="validate", run_time=FIXED_RUN_TIME),
    )
    (validated,) = run.run_results.values()
    return {result.expectation_config.meta["name"]: result for result in validated.results}


def _images_table(manifest: Manifest) -> "pd.DataFrame":
    """Table of all images, including unreadable ones: the manifest and further columns for the expectations."""
    import pandas as pd

    table = manifest.table.copy()
    same_pixels = table.groupby("sha256", sort=False)
    near_duplicates = table.groupby("near_duplicate_group", sort=False)
    table["shorter_side"] = table[["width", "height"]].min(axis=1)
    table["longer_side"] = table[["width", "height"]].max(axis=1)
    table["n_classes_of_pixels"] = same_pixels["class"].transform("nunique")
    table["is_exact_duplicate"] = table["sha256"].duplicated().astype(int)
    table["has_near_duplicate"] = (near_duplicates["path"].transform("size") > 1).astype(int)
    table["n_classes_of_near_duplicates"] = near_duplicates["class"].transform("nunique")
    table["group_share"] = table.groupby("group", sort=False)["path"].transform("size") / max(len(table), 1)
    table["decodes"] = 1
    unreadable = pd.DataFrame({"path": list(manifest.unreadable), "decodes": 0})
    return pd.concat([table, unreadable], ignore_index=True) if len(unreadable) else table


def scale_columns(table: "pd.DataFrame", intensity: Intensity | None) -> dict[str, "pd.Series[Any]"]:
    """Columns that tell if one map to [0, 1] suits all images.

    Args:
        table: readable images, with the columns of the manifest.
        intensity: the map; None: the full range of each file.

    Returns:
        ``used_range``: fraction of the possible values between the smallest and the largest value of all images with
        more than 8 bits, for those images; 1 for others, and if the map does not depend on the possible values.
        ``scale``: unit and depth of an image as far as they must be equal. ``is_common_scale``: 1 if the scale is
        that of the parameters, or of most images.
    """
    import pandas as pd

    kind = intensity.kind if intensity else "full_range"
    used = pd.Series(1.0, index=table.index)
    is_deep = (table["bits"] > 8) & (table["possible_values"] > 0)
    if kind == "full_range" and not (intensity and intensity.bits) and is_deep.any():
        deep = table[is_deep]
        span = deep["max_value"].max() - deep["min_value"].min()
        used[is_deep] = span / deep["possible_values"].max()
    depth = table["bits"].map(lambda bits: "8 bits" if bits == 8 else "other than 8 bits")
    if kind == "full_range":
        scale = table["unit"]
    elif kind == "file_window":
        scale = pd.Series("window of each file", index=table.index)
    else:
        scale = table["unit"].where(table["format"] == "DICOM", depth)
    is_dicom = table["format"] == "DICOM"
    expected = intensity.unit if intensity and kind in ("window", "percentiles") and is_dicom.any() else None
    if expected is None and len(table):
        expected = scale.mode()[0]
    return {"used_range": used, "scale": scale, "is_common_scale": (scale == expected).astype(int)}


def _classes_table(manifest: Manifest, classes: tuple[str, ...]) -> "pd.DataFrame":
    import pandas as pd

    n_images = [int((manifest.table["class"] == name).sum()) for name in classes]
    imbalance = [max(n_images) / max(n, 1) for n in n_images]
    return pd.DataFrame({"class": list(classes), "n_images": n_images, "imbalance": imbalance})


def _expectations(images: "pd.DataFrame", classes: "pd.DataFrame", settings: Validate) -> Iterator[DatasetExpectation]:
    """All expectations, in the order of the report.

    Args:
        images: of :func:`_images_table`.
        classes: of :func:`_classes_table`.
        settings: limits.
    """
    between, mean_between, in_set = (
        "ExpectColumnValuesToBeBetween",
        "ExpectColumnMeanToBeBetween",
        "ExpectColumnValuesToBeInSet",
    )
    readable = images[images["decodes"] == 1]

    def values(column: str) -> str:
        return ", ".join(sorted(readable[column].unique()))

    def value_range(table: "pd.DataFrame", column: str, format_: str, unit: str = "") -> str:
        if table.empty:
            return "no images"
        return f"{table[column].min():{format_}} to {table[column].max():{format_}}{unit}"

    fraction = readable[["is_exact_duplicate", "has_near_duplicate"]].mean().fillna(0)
    # fmt: off
    yield DatasetExpectation(
        "decodes", "Every image decodes", "error", "images",
        f"{len(readable)} of {len(images)}", "all", in_set, "decodes", {"value_set": [1]},
    )
    yield DatasetExpectation(
        "known_format", "Every image has a supported format", "error", "images",
        values("format"), ", ".join(FORMATS), in_set, "format", {"value_set": list(FORMATS)},
    )
    yield DatasetExpectation(
        "known_mode", "Every image has a supported pixel mode", "error", "images",
        values("mode"), "a mode of Pillow with 1, 8 or 16 bits, or real numbers",
        in_set, "mode", {"value_set": list(MODES)},
    )
    yield DatasetExpectation(
        "range_used", "The images use the range of their bits", "error", "images",
        f"{'no images' if readable.empty else format(readable['used_range'].min(), '.1%')} of the values",
        f"at least {MIN_USED_RANGE:.0%}. For a scan with fewer bits than its file set prepare.intensity.bits, such as "
        "12, or set prepare.intensity.kind to window or percentiles",
        between, "used_range", {"min_value": MIN_USED_RANGE},
    )
    yield DatasetExpectation(
        "one_scale", "The values of all images have one unit and depth", "error", "images",
        values("scale"), "one. Set prepare.intensity.unit to the unit of the files, convert the other files, or set "
        "prepare.intensity.kind to file_window",
        between, "is_common_scale", {"min_value": 1},
    )
    yield DatasetExpectation(
        "shorter_side", "No image is too small", "error", "images",
        value_range(readable, "shorter_side", ".0f", " pixels"),
        f"at least {settings.min_side} pixels (validate.min_side)",
        between, "shorter_side", {"min_value": settings.min_side},
    )
    yield DatasetExpectation(
        "longer_side", "No image is too large", "error", "images",
        value_range(readable, "longer_side", ".0f", " pixels"),
        f"at most {settings.max_side} pixels (validate.max_side)",
        between, "longer_side", {"max_value": settings.max_side},
    )
    yield DatasetExpectation(
        "class_present", "Every class has images", "error", "classes",
        value_range(classes, "n_images", "d"), "at least 1", between, "n_images", {"min_value": 1},
    )
    yield DatasetExpectation(
        "class_size", "Every class has enough images", "error", "classes",
        value_range(classes, "n_images", "d"),
        f"at least {settings.min_images_per_class} (validate.min_images_per_class)",
        between, "n_images", {"min_value": settings.min_images_per_class},
    )
    yield DatasetExpectation(
        "class_balance", "The largest class is not much larger than the smallest", "error", "classes",
        f"{classes['imbalance'].max():.2f} times",
        f"at most {settings.max_imbalance_ratio:g} times (validate.max_imbalance_ratio)",
        between, "imbalance", {"max_value": settings.max_imbalance_ratio},
    )
    yield DatasetExpectation(
        "pixels_in_one_class", "Identical pixels are in one class only", "error", "images",
        f"{(readable['n_classes_of_pixels'] > 1).sum()} images in several classes", "none",
        between, "n_classes_of_pixels", {"max_value": 1},
    )
    yield DatasetExpectation(
        "exact_duplicates", "Few images have the pixels of an earlier image", "error", "images",
        f"{fraction['is_exact_duplicate']:.2%}",
        f"at most {settings.max_exact_duplicate_fraction:.2%} (validate.max_exact_duplicate_fraction)",
        mean_between, "is_exact_duplicate", {"max_value": settings.max_exact_duplicate_fraction},
    )
    yield DatasetExpectation(
        "not_blank", "No image is blank", "error", "images",
        f"standard deviation {value_range(readable, 'std', '.3f')}", f"at least {MIN_STD}",
        between, "std", {"min_value": MIN_STD},
    )
    yield DatasetExpectation(
        "not_saturated", "No image has mostly black and white pixels", "warning", "images",
        f"fraction of black and white pixels {value_range(readable, 'saturated_fraction', '.2f')}",
        f"at most {MAX_SATURATED_FRACTION}", between, "saturated_fraction", {"max_value": MAX_SATURATED_FRACTION},
    )
    yield DatasetExpectation(
        "near_duplicates", "Few images have a near-duplicate", "warning", "images",
        f"{fraction['has_near_duplicate']:.2%}", f"at most {MAX_NEAR_DUPLICATE_FRACTION:.2%}",
        mean_between, "has_near_duplicate", {"max_value": MAX_NEAR_DUPLICATE_FRACTION},
    )
    yield DatasetExpectation(
        "near_duplicates_in_one_class", "Near-duplicates are in one class only", "warning", "images",
        f"{(readable['n_classes_of_near_duplicates'] > 1).sum()} images in several classes", "none",
        between, "n_classes_of_near_duplicates", {"max_value": 1},
    )
    yield DatasetExpectation(
        "group_size", "No group is too large to be one patient", "warning", "images",
        f"largest {readable['group_share'].max() if len(readable) else 0:.2%} of images",
        f"at most {MAX_GROUP_FRACTION:.0%}", between, "group_share", {"max_value": MAX_GROUP_FRACTION},
    )
    # fmt: on


def _expectation_result(expectation: DatasetExpectation, result: Any, table: "pd.DataFrame") -> ExpectationResult:
    """Convert a result of Great Expectations.

    Raises:
        ValueError: an expectation of the user can't be computed, for example since its table has no such column.
    """
    if message := exception_message(result.exception_info):
        columns = ", ".join(table.columns)
        raise ValueError(
            f"validate.expectations: {expectation.name} can't be computed: {message}. The table "
            f"{expectation.table} has the columns {columns}. Correct the arguments or the table of the expectation."
        )
    if expectation.expectation_type == "ExpectColumnMeanToBeBetween" and expectation.column in DUPLICATE_COLUMNS:
        unexpected = table.loc[table[expectation.column] == 1, table.columns[0]].tolist()
    else:
        entries = result.result.get("unexpected_index_list") or []
        unexpected = [html.unescape(entry[table.columns[0]]) for entry in entries]
    return ExpectationResult(
        name=expectation.name,
        description=expectation.description,
        severity=expectation.severity,
        success=bool(result.success),
        observed=expectation.observed or observed_text(result.result),
        allowed=expectation.allowed,
        n_unexpected=len(unexpected),
        examples=unexpected[:N_EXAMPLES],
        unexpected=with_twins(expectation.column, unexpected, table) if expectation.observed else unexpected,
    )


DUPLICATE_COLUMNS = {
    "is_exact_duplicate": "sha256",
    "n_classes_of_pixels": "sha256",
    "has_near_duplicate": "near_duplicate_group",
    "n_classes_of_near_duplicates": "near_duplicate_group",
}
"""Column of an expectation about duplicates -> column that is equal for duplicates."""


def with_twins(column: str, paths: list[str], images: "pd.DataFrame") -> list[str]:
    """Return the paths, each followed by the first other image with the same pixels or the same thumbnail.

    Args:
        column: of the expectation; paths of an expectation that is not about duplicates are returned unchanged.
        paths: of unexpected images.
        images: of :func:`_images_table`.
    """
    if column not in DUPLICATE_COLUMNS:
        return paths
    group_of = images.set_index("path")[DUPLICATE_COLUMNS[column]]
    members = group_of.groupby(group_of).groups
    return [f"{path} = {next(other for other in members[group_of[path]] if other != path)}" for path in paths]


def _escape_html(table: "pd.DataFrame") -> "pd.DataFrame":
    """Escape the paths or class names of a table, because Data Docs write them into HTML unescaped."""
    return table.assign(**{table.columns[0]: table[table.columns[0]].map(html.escape)})


def _remove_times_and_ids(data_docs: Path) -> None:
    """Replace times and random ids in the pages, which differ from run to run."""
    for page in sorted(data_docs.rglob("*.html")):
        page.write_text(_without_times_and_ids(page.read_text(encoding="utf-8")), encoding="utf-8")


def _without_times_and_ids(text: str) -> str:
    text = re.sub(r"\b\d{8}T\d{6}\.\d{6}Z", f"{FIXED_RUN_TIME:%Y%m%dT%H%M%S.%fZ}", text)
    ids: dict[str, str] = {}
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return re.sub(uuid, lambda match: ids.setdefault(match[0], f"id-{len(ids)}"), text)
