"""The flow ``robustness_audit``: attack and evaluate a registered model with current data and parameters.

``python -m flows.audit --model ... --images ...`` audits another classifier: :mod:`flows.own_audit`.
``python -m flows.audit ct-robustness@champion`` creates a workspace below ``audits/`` and runs the steps there. The
networks come from the registered model; data and parameters come from the current workspace.
"""

import json
import logging
import shutil
import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field
from ruamel.yaml import YAML

from flows.audit_export import export_examples
from flows.audit_forecast import forecast, forecast_text, measure_costs
from flows.audit_options import audit_params, read_options
from flows.audit_run import (
    AUDITS,
    MISSED,
    Thresholds,
    attack_steps,
    describe_result,
    link_or_copy,
    missed_thresholds,
    renewed,
    run_steps,
)
from flows.command import log_progress, run_flow
from flows.own_audit import check_outside, classifier_audit, count_images, try_import, write_workspace
from flows.server import NOTIFY
from tasks.core.files import write_json
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.dataset.leakage import measure_leakage
from tasks.dataset.prepared import Prepared, load_prepared
from tasks.params import UNDEFENDED, Autoencoder, Params, load_params, parse_params
from tasks.runner import log_to_stderr
from tasks.serving import registry
from tasks.serving.bundle import OF_TRAINING, Bundle, digests_of_images, network_folders, read_bundle, read_seen
from tasks.serving.registry import Registered
from tasks.tracking import EXPERIMENT, masked, plain_markdown

READ_STEPS = ("active_learning", "prepare", "train_surrogates", "validate")
"""Steps of the current workspace whose outputs an audit reads."""
SEEN = "seen"
"""Split of the images that an audit leaves out, because the model was trained or validated on them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """A workspace in which a model is audited."""

    model: Registered
    workspace: Workspace
    params: Params
    """Parameters of the steps in this workspace."""
    n_test: int
    """Test images; the model was not trained or validated on any of them."""
    n_left_out: int
    """Test images of the current workspace that are left out."""


@flow(name="robustness_audit", **NOTIFY)
def robustness_audit(
    model: Annotated[str, Field(min_length=3)] = f"{EXPERIMENT}@{registry.CHAMPION}",
    trust: bool = False,
) -> str:
    """Attack a registered model with the current attacks on the current data, evaluate it, and write a report.

    Args:
        model: ``name@alias`` or ``name/version``.
        trust: run code of the bundle's author when it is loaded, or send images to its server, if the bundle needs it.

    Returns:
        The result in a few sentences.
    """
    log_progress()
    params, version = load_params(), registry.find(model)
    workspace = Workspace(AUDITS / version.label)
    with locked(AUDITS / ".locks", [version.label]):
        bundle = registry.download(version, renewed(workspace.root / "model"), trust)
        with locked(Workspace().locks, reads=READ_STEPS):
            audit = set_up_audit(Workspace(), version, bundle, workspace, params, with_report=True)
        run_audit(audit, with_report=True)
        outcome = outcome_of(audit)
        files = [workspace.report_html, workspace.metrics, workspace.checks, workspace.comparison]
        registry.log_audit(version, outcome, files)
    create_markdown_artifact(key="audit", markdown=plain_markdown(outcome), description=f"Audit of {version.label}")
    return outcome


def set_up_audit(
    current: Workspace,
    model: Registered,
    bundle: Path,
    workspace: Workspace,
    params: Params,
    also_left_out: Set[str] = frozenset(),
    with_report: bool = False,
) -> Audit:
    """Create the workspace of an audit. Results of an earlier audit there are removed, checkpoints are kept.

    The test split loses the images that the model was trained or validated on. The validation split, which sets the
    thresholds of detectors, loses the images that the model was trained on.

    Args:
        current: the current workspace; it does not change.
        model: the version to audit.
        bundle: folder of its files.
        workspace: the new workspace.
        params: parameters of the current workspace. Those of the networks are replaced by the bundle's.
        also_left_out: digests of further test images to leave out.
        with_report: whether analyses and report will run; they need more results of the current workspace.

    Raises:
        FileNotFoundError: a step has not run in the current workspace.
        ValueError: the images were prepared in another way, or no test or validation image is left.
    """
    about, seen, data = read_bundle(bundle), read_seen(bundle), load_prepared(current)
    linked = (current.validate, current.active_learning) if with_report else ()
    if missing := [path for path in linked if not path.is_dir()]:
        step = current.step_of(missing[0])
        raise FileNotFoundError(f"{missing[0]} not found. Run the step {step} first: dvc repro {step}")
    check_images(current, model, about, data, params)
    digests = pd.Series(digests_of_images(data.pixels), index=data.table.index)
    table, n_left_out = without_seen(data.table, digests, seen, also_left_out)
    n_test = int((table["split"] == "test").sum())
    if not n_test:
        raise ValueError(
            f"no test images are left for {model.label}: it was trained or validated on all {n_left_out}. "
            "Add new images, or audit another model."
        )
    if not (table["split"] == "validation").any():
        raise ValueError(
            f"no validation images are left for {model.label}: it was trained on all of them. Detectors need them for "
            "their thresholds. Add new images, or audit another model."
        )

    renewed(workspace.data)
    for path in linked:
        shutil.copytree(path, workspace.root / path.relative_to(current.root), copy_function=link_or_copy)
    if with_report:
        shutil.copyfile(current.reference, workspace.reference)
    # nothing else of a bundle, which could replace the linked files of the current workspace
    for folder in network_folders(Workspace(bundle), about.target):
        shutil.copytree(folder, workspace.root / folder.relative_to(bundle))
    link_surrogates(current, workspace)
    write_prepared(current, workspace, data, table, split_of_model(table["split"], digests, seen["train"]))
    params = params_of(about, params)
    with workspace.params_file.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(params.model_dump(mode="json", by_alias=True), file)
    log.info("%s: %d test images, %d left out", workspace.root, n_test, n_left_out)
    return Audit(model, workspace, params, n_test, n_left_out)


def write_prepared(
    current: Workspace, workspace: Workspace, data: Prepared, table: pd.DataFrame, split: "pd.Series[str]"
) -> None:
    """Write the results of ``prepare`` for an audit: the same images with another split.

    Args:
        current: the current workspace.
        workspace: of the audit.
        data: prepared data set of the current workspace.
        table: of its images, with the split of the audit.
        split: of the images, for the measurement of leakage.
    """
    workspace.prepare.mkdir()
    link_or_copy(str(current.pixels), str(workspace.pixels))
    table.to_parquet(workspace.split, index=False)
    leakage = measure_leakage(table.assign(split=split), data.pixels)
    write_json(leakage, workspace.leakage)
    info = json.loads(current.dataset_info.read_text(encoding="utf-8"))
    counts = pd.crosstab(table["split"], table["class"]).reindex(columns=list(data.classes), fill_value=0)
    info["n_images"] = {name: counts.loc[name].to_dict() for name in info["n_images"] if name in counts.index}
    info["leakage"] = leakage["fractions"]
    write_json(info, workspace.dataset_info)
    row_of = {path: row for row, path in enumerate(table["path"]) if table["split"].iloc[row] == "test"}
    shortcut = pd.read_csv(current.shortcut_predictions)
    shortcut = shortcut[shortcut["path"].isin(row_of)]
    shortcut.assign(image=shortcut["path"].map(row_of)).to_csv(workspace.shortcut_predictions, index=False)


def run_audit(audit: Audit, with_report: bool) -> None:
    """Run the steps from the attack on in order, each as a Prefect task.

    Args:
        audit: its workspace and parameters.
        with_report: run the analyses and write the report, too.
    """
    defences, target = audit.params.selected_defences, audit.model.target
    steps = [("train_defence", name) for name in defences if name != target]
    steps += attack_steps(defences, with_report)
    run_steps(steps, audit.workspace, audit.params, audit.model.label)


def outcome_of(audit: Audit) -> str:
    """The result of an audit in a few sentences."""
    seen = f" {audit.n_left_out} test images were left out, because the model was trained or validated on them."
    note = seen * (audit.n_left_out > 0)
    model = audit.model
    return describe_result(audit.workspace, audit.params, model.target, model.label, audit.n_test, note)


def check_images(current: Workspace, model: Registered, about: Bundle, data: Prepared, params: Params) -> None:
    """Check that the images of the current workspace were prepared as for the model.

    Otherwise, the images of its training would not be recognised among the test images.

    Raises:
        ValueError: classes, channels, image size, value range, intensity or resizing differ.
    """
    info = json.loads(current.dataset_info.read_text(encoding="utf-8"))
    resize = info.get("resize", "stretch")
    taken = {
        "classes": about.classes,
        "images (channels, height, width)": (about.channels, *about.image_size),
        "value range": about.value_range,
        "intensity": about.intensity or "full range",
        "resize": about.resize,
        "crop ratio": about.crop_ratio if about.resize == "crop" else 1.0,
    }
    found = {
        "classes": data.classes,
        "images (channels, height, width)": data.pixels.shape[1:],
        "value range": data.value_range,
        "intensity": info.get("intensity") or "full range",
        "resize": resize,
        "crop ratio": params.prepare.crop_ratio if resize == "crop" else 1.0,
    }
    if differing := [name for name in taken if taken[name] != found[name]]:
        wrong = "; ".join(f"{name} {found[name]}, but {model.label} takes {taken[name]}" for name in differing)
        raise ValueError(
            f"{current.prepare} has {wrong}. Prepare the images as for the training of the model (acquire.classes, "
            "prepare)."
        )


def without_seen(
    table: pd.DataFrame, digests: "pd.Series[str]", seen: dict[str, set[str]], also_left_out: Set[str]
) -> tuple[pd.DataFrame, int]:
    """Move the images that a model was trained or validated on to the split ``seen``.

    Args:
        table: of the prepared data set.
        digests: of its images.
        seen: digests of the images that the model was trained and validated on.
        also_left_out: digests of further test images to leave out.

    Returns:
        The table, and the number of test images that were moved.
    """
    is_test, is_validation = (table["split"] == split for split in ("test", "validation"))
    left_out = is_test & digests.isin(seen["train"] | seen["validation"] | set(also_left_out))
    split = table["split"].mask(left_out | (is_validation & digests.isin(seen["train"])), SEEN)
    return table.assign(split=split), int(left_out.sum())


def split_of_model(split: "pd.Series[str]", digests: "pd.Series[str]", trained_on: Set[str]) -> "pd.Series[str]":
    """The split for the measurement of leakage: ``train`` are the images that the model itself was trained on."""
    return split.where(split == "test", digests.isin(trained_on).map({True: "train", False: SEEN}))


def params_of(about: Bundle, params: Params) -> Params:
    """The current parameters, with those of the model's networks from the bundle."""
    values = params.model_dump(mode="json", by_alias=True)
    # a bundle of an earlier version of this project has no section classifier
    values |= {name: about.params[name] for name in OF_TRAINING if name in about.params}
    # the analyses need one denoising autoencoder, also if the audited target is another defence
    autoencoder = [name for name in params.selected_defences if isinstance(params.defences[name], Autoencoder)][:1]
    if about.target == UNDEFENDED:
        values["selected_defences"] = autoencoder
    else:
        values["defences"][about.target] = about.params["defence"]
        values["selected_defences"] = list(dict.fromkeys([*autoencoder, about.target]))
    return parse_params(values, "params.yaml with the networks of the model")


def link_surrogates(current: Workspace, workspace: Workspace) -> None:
    """Give an audit the independent surrogates of the current workspace: a bundle has none, as they attack any model.

    Without surrogates in the current workspace, the audit has none.
    """
    if current.surrogates.is_file():
        shutil.copytree(current.train_surrogates, workspace.train_surrogates, copy_function=link_or_copy)
    else:
        workspace.train_surrogates.mkdir()
        write_json([], workspace.surrogates)


def main() -> None:
    """Audit a registered model, or a trained classifier of your own with --model and --images."""
    options = read_options(main.__doc__)
    log_to_stderr()
    try:
        if options.registered:
            model = registry.find(options.registered)
            flow_of: Any = robustness_audit
            arguments: dict[str, Any] = {"model": f"{model.name}/{model.version}", "trust": options.trust}
            workspace, target = Workspace(AUDITS / model.label), model.target
        else:
            params = audit_params(options)
            check_outside(options.name, params)
            parts = forecast(params, sum(count_images(params).values()), measure_costs(try_import(params), params))
            print(forecast_text(parts), flush=True)
            if options.plan:
                return
            flow_of, arguments = classifier_audit, {"name": options.name}
            workspace, target = write_workspace(options.name, params), UNDEFENDED
        if options.export:
            Path(options.export).mkdir(parents=True, exist_ok=True)  # an error now, not after hours
    except (ValueError, OSError) as error:
        sys.exit(masked(f"audit: {error}"))
    print(run_flow(flow_of, **arguments))
    params = load_params(workspace.params_file)
    if options.export:
        n_examples = export_examples(workspace, params, target, Path(options.export))
        print(f"{n_examples} adversarial examples: {options.export}")
    thresholds = Thresholds(options.min_clean_accuracy, options.min_robust_accuracy, options.no_failed_checks)
    if missed := missed_thresholds(workspace, params, target, thresholds):
        print(*missed, sep="\n", file=sys.stderr)
        sys.exit(MISSED)


if __name__ == "__main__":
    main()
