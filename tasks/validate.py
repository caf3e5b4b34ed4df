"""Look at every raw image, and stop the pipeline where the data set is not what it should be."""

import json
import logging
from dataclasses import asdict, replace

from tasks.core.workspace import Workspace
from tasks.dataset.expectations import Outcome, validate_manifest
from tasks.dataset.manifest import build_manifest
from tasks.params import Params
from tasks.tracking import Tracker

MAX_TOLD = 20
"""Images that an error names with the reason; the file names all."""

log = logging.getLogger(__name__)


class ValidationFailed(ValueError):
    """The data set fails expectations; the message names them and the first files."""


def validate(workspace: Workspace, params: Params, tracker: Tracker) -> None:
    """Write ``manifest.parquet``, ``validation.json`` and Great Expectations' Data Docs, then judge.

    Raises:
        ValidationFailed: an expectation of severity error is not met; all outputs are written before.
    """
    settings, classes = params.validate_, params.acquire.classes
    manifest = build_manifest(
        workspace.images,
        classes,
        settings.max_megapixels,
        settings.near_duplicate_correlation,
        settings.neighbour_correlation,
    )
    if workspace.refused.exists():
        refused = json.loads(workspace.refused.read_text(encoding="utf-8"))
        manifest = replace(manifest, unreadable=refused | manifest.unreadable)
    manifest.table.to_parquet(workspace.manifest, index=False)

    outcomes = validate_manifest(manifest, classes, settings, workspace.data_docs)
    errors = [outcome for outcome in outcomes if not outcome.success and outcome.severity == "error"]
    warnings = [outcome for outcome in outcomes if not outcome.success and outcome.severity == "warning"]
    result = {
        "success": not errors,
        "expectations": [asdict(outcome) for outcome in outcomes],
        "unreadable": [{"path": path, "reason": reason} for path, reason in manifest.unreadable.items()],
    }
    workspace.validation.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    tracker.dataset(workspace.images, "raw", "raw")
    tracker.artifact(workspace.manifest)
    tracker.artifact(workspace.validation)
    tracker.artifact(workspace.data_docs, "data_docs")
    n_images = len(manifest.table)
    tracker.metrics(
        {
            "data/n_images": n_images,
            "data/n_unreadable": len(manifest.unreadable),
            "data/n_groups": manifest.table["group"].nunique(),
            "data/near_duplicate_share": manifest.table["near_duplicate_group"].duplicated(keep=False).mean()
            if n_images
            else 0.0,
            "data/n_failed_errors": len(errors),
            "data/n_failed_warnings": len(warnings),
        }
    )
    for outcome in warnings:
        log.warning("suspicious: %s", _told(outcome))
    if errors:
        lines = [
            f"{len(errors)} of {len(outcomes)} expectations failed; everything is in {workspace.validation.as_posix()}"
        ]
        lines += [_told(outcome) for outcome in errors]
        lines += [f"{path}: {reason}" for path, reason in list(manifest.unreadable.items())[:MAX_TOLD]]
        if (left := len(manifest.unreadable) - MAX_TOLD) > 0:
            lines.append(f"and {left} more images that can't be used, in the same file")
        raise ValidationFailed("\n  ".join(lines))
    log.info("%d images in %d groups meet %d expectations", n_images, manifest.table["group"].nunique(), len(outcomes))


def _told(outcome: Outcome) -> str:
    text = f"{outcome.name} ({outcome.description}): observed {outcome.observed}, allowed {outcome.allowed}"
    if not outcome.examples:
        return text
    more = ", ..." if outcome.n_unexpected > len(outcome.examples) else ""
    return f"{text}; {outcome.n_unexpected} unexpected: {', '.join(outcome.examples)}{more}"


if __name__ == "__main__":
    from tasks.runner import main

    main(validate)
