"""Validation of a data set with Great Expectations: the results of all expectations, and the Data Docs."""

import html
import logging
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dataset.expectations import classes_table, fixed_expectations, images_table
from tasks.dataset.manifest import Manifest
from tasks.dataset.own_expectations import DatasetExpectation, exception_message, observed_text, own_expectations
from tasks.params import Intensity, Validate

if TYPE_CHECKING:
    import pandas as pd

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
        ValueError: an entry of ``validate.expectations`` has the name of another expectation, or cannot be computed.
    """
    # levels are set before and after the import: the import logs hundreds of lines, and sets the level of one logger
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    from tasks.dataset.data_docs import SortedFilesystemStore

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    tables = {"images": images_table(manifest, intensity), "classes": classes_table(manifest, classes)}
    expectations = list(fixed_expectations(tables["images"], tables["classes"], settings))
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
                # otherwise Great Expectations replaces $NAME by the environment variable
                "base_directory": str(data_docs.absolute()).replace("$", r"\$"),
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


def _expectation_result(expectation: DatasetExpectation, result: Any, table: "pd.DataFrame") -> ExpectationResult:
    """Convert a result of Great Expectations.

    Raises:
        ValueError: an expectation of the user cannot be computed, for example since its table has no such column.
    """
    if message := exception_message(result.exception_info):
        columns = ", ".join(table.columns)
        raise ValueError(
            f"validate.expectations: {expectation.name} cannot be computed: {message}. The table "
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
        images: of :func:`tasks.dataset.expectations.images_table`.
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
    # the index page has the time in the local time zone
    text = re.sub(r"\b(1969-12-31|1970-01-01) \d\d:\d\d:\d\d [\w+-]+", f"{FIXED_RUN_TIME:%Y-%m-%d %H:%M:%S %Z}", text)
    ids: dict[str, str] = {}
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return re.sub(uuid, lambda match: ids.setdefault(match[0], f"id-{len(ids)}"), text)
