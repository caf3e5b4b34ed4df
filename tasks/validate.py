"""Read every raw image, and validate the expectations of the data set."""

import json
import logging
from dataclasses import asdict, replace

from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.dataset.images import reading_of, with_percentiles
from tasks.dataset.manifest import Manifest, build_manifest, image_paths
from tasks.dataset.own_expectations import check_own_expectations
from tasks.dataset.validation import ExpectationResult, validate_manifest
from tasks.params import Params
from tasks.tracking import Tracker

MAX_LISTED_FILES = 20
"""Maximum number of rejected files in an error message; ``validation.json`` lists all of them."""

log = logging.getLogger(__name__)


class ValidationFailed(ValueError):
    """The data set fails expectations. The message names them and the first rejected files."""


def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write ``manifest.parquet``, ``validation.json`` and the Data Docs, then check the results.

    Raises:
        ValidationFailed: an expectation of severity ``error`` fails; all outputs are written before.
        ValueError: an entry of ``validate.expectations`` is invalid.
    """
    settings, classes, intensity = params.validate_, params.acquire.classes, params.prepare.intensity
    check_own_expectations(settings.expectations)
    reading = reading_of(params.acquire, params.prepare)
    # the split is not drawn yet, so the percentiles of this step are those of all images
    paths = image_paths(workspace.images, classes, reading) if intensity.kind == "percentiles" else []
    manifest = build_manifest(
        workspace.images,
        classes,
        settings.max_megapixels,
        settings.near_duplicate_correlation,
        settings.same_group_correlation,
        with_percentiles(reading, intensity, paths, settings.max_megapixels),
    )
    if workspace.rejected.exists():
        rejected = json.loads(workspace.rejected.read_text(encoding="utf-8"))
        manifest = replace(manifest, unreadable=rejected | manifest.unreadable)
    manifest.table.to_parquet(workspace.manifest, index=False)

    results = validate_manifest(manifest, classes, settings, workspace.data_docs, intensity)
    errors = [result for result in results if not result.success and result.severity == "error"]
    warnings = [result for result in results if not result.success and result.severity == "warning"]
    validation = {
        "success": not errors,
        "expectations": [asdict(result) for result in results],
        "unreadable": [{"path": path, "reason": reason} for path, reason in manifest.unreadable.items()],
    }
    write_json(validation, workspace.validation)

    tracker.dataset(workspace.images, "raw", "raw")
    tracker.artifact(workspace.manifest)
    tracker.artifact(workspace.validation)
    tracker.artifact(workspace.data_docs, "data_docs")
    n_images, n_groups = len(manifest.table), manifest.table["group"].nunique()
    has_near_duplicate = manifest.table["near_duplicate_group"].duplicated(keep=False)
    tracker.metrics(
        {
            "data/n_images": n_images,
            "data/n_unreadable": len(manifest.unreadable),
            "data/n_groups": n_groups,
            "data/near_duplicate_fraction": has_near_duplicate.mean() if n_images else 0.0,
            "data/n_failed_errors": len(errors),
            "data/n_failed_warnings": len(warnings),
        }
    )
    for result in warnings:
        log.warning("failed expectation: %s", _format_result(result))
    if errors:
        summary = (
            f"{len(errors)} of {len(results)} expectations failed; all details are in {workspace.validation.as_posix()}"
        )
        raise ValidationFailed("\n  ".join([summary, *_error_lines(errors, manifest)]))
    n_met = len(results) - len(warnings)
    log.info("%d images in %d groups; %d of %d expectations are met", n_images, n_groups, n_met, len(results))


def _error_lines(errors: list[ExpectationResult], manifest: Manifest) -> list[str]:
    """The failed expectations, and the first rejected files with their reasons."""
    lines = [_format_result(result) for result in errors]
    lines += [f"{path}: {reason}" for path, reason in list(manifest.unreadable.items())[:MAX_LISTED_FILES]]
    if (n_more := len(manifest.unreadable) - MAX_LISTED_FILES) > 0:
        lines.append(f"and {n_more} more rejected files")
    return lines


def _format_result(result: ExpectationResult) -> str:
    text = f"{result.name} ({result.description}): observed {result.observed}, allowed {result.allowed}"
    if not result.examples:
        return text
    shown = result.unexpected[: len(result.examples)]
    more = ", ..." if result.n_unexpected > len(shown) else ""
    return f"{text}; {result.n_unexpected} unexpected: {', '.join(shown)}{more}"


if __name__ == "__main__":
    from tasks.runner import main

    main(validate)
