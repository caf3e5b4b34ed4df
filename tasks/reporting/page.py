"""The report as one HTML page that needs nothing else, and as Markdown for the tracking run's note."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.dataset.prepared import SPLITS
from tasks.records.vocabulary import spoken
from tasks.reporting import interactive
from tasks.reporting.findings import ATTACKERS, Headline, attack_name, attacks_of, curves_under, eps_of
from tasks.reporting.gallery import Drawn, confusions, trainings
from tasks.reporting.results import Results
from tasks.reporting.sections.data_changes import data_changes_section
from tasks.reporting.sections.features import SPACES
from tasks.reporting.sections.section import Section, estimate, fixed, point_of
from tasks.reporting.sections.verdict import area_sentence, area_table, badge_of, elsewhere, verdict_sentence
from tasks.statistics.formatting import eps_text, interval, percent, with_interval

OUTCOMES = ("FAIL", "WARN", "PASS")
PLAIN_METRICS = {
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "top1_error": "top-1 error",
    "mean_entropy": "entropy",
    "mean_margin": "margin",
    "mean_linf": "L∞",
    "mean_l2": "L2",
    "mean_reconstruction_error": "reconstruction error",
}
"""Columns of the robustness table that have no interval, and their heads."""
EPS_MEANING = {
    "linf": "the largest change of any pixel (L∞), in grey levels of 255.",
    "l2": "the root-mean-square change of a pixel, in grey levels of 255: an L2 ball of radius ε / 255 · √pixels.",
}
SPLIT_MEANING = {
    "stratified": "single images are drawn, each class in proportion; slices of one patient may straddle the split.",
    "grouped": "whole groups are drawn, so that no group straddles the split.",
}


def html(
    results: Results,
    headline: Headline,
    benchmark: Section,
    parts: Sequence[Section],
    gallery: dict[str, Drawn],
    params: dict[str, Any],
) -> str:
    """The whole page; every text from outside (class names, paths, ...) is escaped.

    Args:
        results: what the page is about.
        headline: of ``results.robustness``.
        benchmark: section about all targets side by side.
        parts: sections about the step ``analyze``.
        gallery: figures by name.
        params: all parameters by dotted key.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in params.items():
        sections.setdefault(key.partition(".")[0], {})[key] = value
    attack = f"Under {attack_name(headline.attack)} at ε = {eps_text(headline.eps)}/255"
    matrices: dict[str, list[str]] = {}
    for name, (_, eps) in confusions(headline).items():
        matrices.setdefault(attack if eps else "Clean images", []).append(name)
    scripts = interactive.scripts()
    return _render(
        "report.html.j2",
        results,
        headline,
        parts=parts,
        benchmark=benchmark,
        data_changes=data_changes_section(results),
        check_matrix=check_matrix(results.checks),
        targets=list(results.robustness["target"].unique()),
        gallery=gallery,
        confusions=matrices,
        parameters=sections,
        scripts=scripts,
        digests=" ".join(map(interactive.digest, scripts)),
        interactive_data=interactive.as_json(_interactive(results, headline, gallery)),
    )


def _interactive(results: Results, headline: Headline, gallery: dict[str, Drawn]) -> dict[str, Any]:
    """What the page's script draws."""
    embeddings = results.analysis.embeddings
    first = point_of(embeddings, headline)
    return {
        "plots": {name: drawn.plot for name, drawn in gallery.items() if drawn.plot},
        "explorer": interactive.explorer(embeddings, results.records, results.data, SPACES, (first.attack, first.eps))
        if first
        else None,
    }


def markdown(results: Results, headline: Headline, limit: int) -> str:
    """Headline, main table, checks and data, cut after a whole line where it would reach ``limit`` characters."""
    text = _render("report.md.j2", results, headline)
    if len(text) < limit:
        return text
    ending = "\n\n*Shortened: the whole is in report.html.*\n"
    return text[: text.rindex("\n", 0, limit - len(ending))] + ending


def value_text(value: Any) -> str:
    """A parameter or an observation in words: lists by commas, lists of mappings by semicolons."""
    match value:
        case None:
            return "–"
        case str():
            return value
        case float():
            return f"{value:.6g}"
        case list():
            return ("; " if any(isinstance(entry, dict | list) for entry in value) else ", ").join(
                map(value_text, value)
            )
        case dict():
            return ", ".join(f"{key}: {value_text(entry)}" for key, entry in value.items())
        case _:
            return json.dumps(value)


def _render(template: str, results: Results, headline: Headline, **more: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # a bar or a line break would end the cell of a Markdown table
        finalize=_one_cell if template.endswith(".md.j2") else None,
    )
    environment.filters |= {
        "attack": attack_name,
        "badge": badge_of,
        "elsewhere": elsewhere,
        "claimed": _claimed,
        "eps": eps_text,
        "interval": interval,
        "number": _number,
        "outcome": _outcome,
        "percent": percent,
        "spoken": spoken,
        "value": value_text,
        "with_interval": with_interval,
    }
    table, data = results.robustness, results.data
    attacks = attacks_of(table)
    threat_models = list(dict.fromkeys(threat for curves in headline.defences.values() for threat in curves))
    expectations = results.validation["expectations"]
    outcomes = [_outcome(expectation) for expectation in expectations]
    return environment.get_template(template).render(
        source_name=results.dataset_info["name"],
        is_phantom=data.is_phantom,
        headline=headline,
        attackers=ATTACKERS,
        threat_models=threat_models,
        n_attacked=headline.undefended.at(headline.eps)["n"],
        n_test=len(data.indices("test")),
        norm=table["norm"].iloc[0],
        eps_meaning=EPS_MEANING[table["norm"].iloc[0]],
        eps_grid=eps_of(table),
        attacks=attacks,
        curves={attack: curves_under(table, attack) for attack in attacks},
        rows=table.to_dict("records"),
        plain_metrics=PLAIN_METRICS,
        n_classes=len(data.classes),
        max_entropy=math.log(len(data.classes)),
        positive_class=data.classes[data.positive],
        leaked=results.dataset_info["leakage"]["group_in_train"],
        sheet=_sheet(results),
        splits=[*SPLITS, "all"],
        split_counts=_split_counts(results.dataset_info),
        expectations=expectations,
        expectation_counts=_counts(outcomes),
        validation_sentence=_validation_sentence(len(results.manifest), outcomes),
        training_sentence=_training_sentence(results),
        verdict=results.analysis.verdict,
        verdict_sentence=verdict_sentence(results.analysis.verdict),
        area=area_table(results.analysis.robustness_area),
        area_sentence=area_sentence(results.analysis.robustness_area, headline),
        checks=results.checks,
        check_counts=_counts([check["status"] for check in results.checks]),
        **more,
    )


def check_matrix(checks: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Outcome of each check by its name and by target; those about the data have no target and are left out."""
    matrix: dict[str, dict[str, str]] = {}
    for check in checks:
        if check["target"]:
            matrix.setdefault(check["name"], {})[check["target"]] = check["status"]
    return matrix


def _sheet(results: Results) -> dict[str, str]:
    """The data set in terms and sentences."""
    info, manifest, data = results.dataset_info, results.manifest, results.data
    sides = manifest[["width", "height"]].agg(["min", "max", "median"])
    height, width = data.pixels.shape[2:]
    smallest, largest, middle = (f"{sides.loc[at, 'width']:g} × {sides.loc[at, 'height']:g}" for at in sides.index)
    leakage = info["leakage"]
    return {
        "source": f"{info['name']} (acquire.source: {info['source']})",
        "files": f"{info['n']}: {_counted(manifest['format'])}; modes: {_counted(manifest['mode'])}",
        "sizes": f"{smallest} to {largest} pixels (width × height), median {middle}",
        "prepared": f"grey, {width} × {height} pixels, values in [{data.value_range[0]:g}, {data.value_range[1]:g}]",
        "split": f"{info['strategy']}: {SPLIT_MEANING[info['strategy']]}",
        "groups": (
            f"{info['n_groups']}. Slices that follow each other and look alike are taken for one patient's, and so are "
            "near-duplicates."
        ),
        "leakage": (
            f"{percent(leakage['near_duplicate_in_train'])} of the test images have a near-duplicate in training, "
            f"{percent(leakage['group_in_train'])} another image of their group. The larger these shares, the less "
            "the accuracy says about new patients."
        ),
    }


def _counted(values: "pd.Series[str]") -> str:
    """Values with their counts, the most frequent first: ``PNG (640), JPEG (2)``."""
    return ", ".join(f"{value} ({n})" for value, n in values.value_counts(sort=True).items())


def _split_counts(info: dict[str, Any]) -> dict[str, list[int]]:
    """Images of each class in training, validation, test, and all of them."""
    counts = {name: [info["n_images"][split][name] for split in SPLITS] for name in info["classes"]}
    return {name: [*row, sum(row)] for name, row in counts.items()}


def _validation_sentence(n_images: int, outcomes: list[str]) -> str:
    counts = _counts(outcomes)
    return (
        f"{len(outcomes)} expectations of {n_images} images: {counts['PASS']} met, "
        f"{counts['WARN']} suspicious (warnings), {counts['FAIL']} failed (errors)."
    )


def _training_sentence(results: Results) -> str:
    parts = []
    for training in trainings(results).values():
        history = training.history
        best = history[history["best"] == 1].iloc[0]
        accuracy = f", accuracy {percent(best['validation_accuracy'])}" if "validation_accuracy" in history else ""
        parts.append(
            f"Of the {training.of}'s {len(history)} epochs, epoch {best['epoch']:.0f} was kept "
            f"(validation loss {best['validation_loss']:.4g}{accuracy})."
        )
    return " ".join(parts)


def _counts(outcomes: list[str]) -> dict[str, int]:
    return {outcome: outcomes.count(outcome) for outcome in OUTCOMES}


def _outcome(expectation: dict[str, Any]) -> str:
    if expectation["success"]:
        return "PASS"
    return "WARN" if expectation["severity"] == "warning" else "FAIL"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _claimed(claim: dict[str, Any]) -> str:
    """The figure of a claim with its interval; the table knows None where others have NaN."""
    numbers = {name: math.nan if claim[name] is None else claim[name] for name in ("value", "low", "high")}
    return estimate(numbers, fixed(3))


def _one_cell(value: Any) -> Any:
    # type(value), so that what is escaped already stays Markup
    return type(value)(" ").join(value.split()).replace("|", "\\|") if isinstance(value, str) else value
