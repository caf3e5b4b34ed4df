"""The flow ``promote``: make the candidate champion, if it is shown to be no worse than the champion.

``python -m flows.promote`` audits both on the same images, compares them, and moves the alias ``champion`` or gives the
reasons against it. ``python -m flows.promote --back`` returns to the previous champion.
"""

import argparse
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.audit import READ_STEPS, Audit, run_audit, set_up_audit
from flows.audit_run import AUDITS, failed_checks, renewed
from flows.command import log_progress, run_flow
from flows.server import NOTIFY, set_audit_schedule
from tasks.core.files import write_json
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.outcomes.attack_outputs import parse_operating_points
from tasks.params import Params, load_params
from tasks.reporting.templating import environment
from tasks.serving import registry
from tasks.serving.bundle import read_seen
from tasks.serving.promotion import Comparison, compare, outcomes_of
from tasks.serving.registry import CANDIDATE, CHAMPION, Registered
from tasks.statistics.formatting import difference_text, points, rate_text
from tasks.tracking import EXPERIMENT, plain_markdown

TEMPLATES = Path(__file__).with_name("templates")
PROMOTION = "promotion"
"""Name of the lock that promotions hold."""
MARGIN = 0.05
"""Largest acceptable loss of balanced accuracy."""


@dataclass(frozen=True)
class Decision:
    """The comparison of a candidate with the champion, and its outcome."""

    candidate: Registered
    champion: Registered | None
    margin: float
    eps: float
    """Eps of the adaptive attacks, in units of 1/255."""
    n_left_out: int
    """Test images that one of the two was trained or validated on."""
    comparisons: list[Comparison]
    """Clean and adaptive; empty without a champion."""
    failed: dict[str, str]
    """Failed checks of the candidate: key to explanation."""

    @property
    def objections(self) -> list[str]:
        """Reasons why the candidate does not become champion."""
        worse = [
            f"its {each.condition} balanced accuracy is not shown to be at most {100 * self.margin:g} points below the "
            f"champion's: {rate_text(*each.candidate)} against {rate_text(*each.champion)}, "
            f"difference {difference_text(*each.difference)}, n = {each.n} in {each.n_groups} groups"
            for each in self.comparisons
            if not each.is_non_inferior(self.margin)
        ]
        return worse + [f"failed check {key}: {explanation}" for key, explanation in self.failed.items()]


@flow(name="promote", **NOTIFY)
def promote(
    name: Annotated[str, Field(pattern=r"^[\w .-]+$")] = EXPERIMENT,
    margin: Annotated[float, Field(gt=0, lt=1)] = MARGIN,
    back: bool = False,
    trust: bool = False,
) -> str:
    """Make the candidate champion, if its clean and its worst-case accuracy are not inferior.

    Args:
        name: name of the registered model.
        margin: largest acceptable loss of balanced accuracy, as a fraction.
        back: compare nothing, and return to the previous champion.
        trust: run code of the bundle's author when it is loaded, or send images to its server, if the bundle needs it.

    Returns:
        The outcome in a few sentences.
    """
    log_progress()
    params = load_params()
    # one promotion at a time: another one could change the champion during the audits
    with locked(AUDITS / ".locks", [PROMOTION]):
        if back:
            move = registry.restore_champion(name)
            return f"Version {move.version} of {name} is champion again, in place of version {move.before}."
        if (candidate := registry.version_with(name, CANDIDATE)) is None:
            raise ValueError(f"{name} has no {CANDIDATE}. Register a model first: python -m flows.register")
        champion = registry.version_with(name, CHAMPION)
        if champion == candidate:
            return f"{candidate.label} is {CANDIDATE} and {CHAMPION}. There is nothing to compare."
        # and none beside an audit of one of its models
        with locked(AUDITS / ".locks", [each.label for each in (candidate, champion) if each]):
            audits = audit_both(Workspace(), candidate, champion, params, trust)
            outcome, page = settle(audits, params, margin)
    if registry.version_with(EXPERIMENT, CHAMPION):
        set_audit_schedule(True)
    page = plain_markdown(page)
    create_markdown_artifact(key="promotion", markdown=page, description=f"Promotion of {candidate.label}")
    return f"{outcome} See {audits[0].workspace.root / 'promotion.md'}"


def settle(audits: list[Audit], params: Params, margin: float) -> tuple[str, str]:
    """Decide on the candidate, and move the alias ``champion`` if there is no objection.

    The decision is written beside the candidate's audit and to the registry.

    Args:
        audits: of the candidate and, if there is one, the champion; their steps up to ``evaluate`` have run.
        params: of the current workspace.
        margin: largest acceptable loss of balanced accuracy.

    Returns:
        The decision in a few sentences, and as a page of Markdown.
    """
    decision = decide(audits, params, margin)
    outcome, page, folder = outcome_of(decision), page_of(decision), audits[0].workspace.root
    (folder / "promotion.md").write_text(page, encoding="utf-8")
    record = _without_nan(asdict(decision)) | {"objections": decision.objections}
    write_json(record, folder / "promotion.json")
    registry.log_audit(decision.candidate, outcome, [folder / "promotion.md", folder / "promotion.json"])
    if not decision.objections:
        registry.move_champion(decision.candidate, outcome)
    return outcome, page


def audit_both(
    current: Workspace, candidate: Registered, champion: Registered | None, params: Params, trust: bool
) -> list[Audit]:
    """Audit the candidate and, if there is one, the champion.

    The test images are those on which neither of the two was trained or validated.
    """
    if champion is None:
        models, folders = [candidate], [AUDITS / f"{candidate.label}-alone"]
    else:
        models = [candidate, champion]
        folders = [
            AUDITS / f"{candidate.label}-against-v{champion.version}",
            AUDITS / f"{champion.label}-against-v{candidate.version}",
        ]
    bundles = [
        registry.download(model, renewed(folder / "model"), trust)
        for model, folder in zip(models, folders, strict=True)
    ]
    seen = set().union(*(digests for bundle in bundles for digests in read_seen(bundle).values()))
    # both are set up before an attack runs, so that models that cannot be compared are refused at once
    with locked(current.locks, reads=READ_STEPS):
        audits = [
            set_up_audit(current, model, bundle, Workspace(folder), params, seen)
            for model, bundle, folder in zip(models, bundles, folders, strict=True)
        ]
    for audit in audits:
        run_audit(audit, with_report=False)
    return audits


def decide(audits: list[Audit], params: Params, margin: float) -> Decision:
    """Compare the results of the candidate with those of the champion.

    Args:
        audits: of the candidate and, if there is one, the champion; their steps up to ``evaluate`` have run.
        params: of the current workspace.
        margin: largest acceptable loss of balanced accuracy.
    """
    eps = params.analyze.eps
    comparisons = []
    if len(audits) == 2:
        candidate, champion = (
            outcomes_of(
                pd.read_parquet(audit.workspace.records(audit.model.target)),
                pd.read_parquet(audit.workspace.minimum_eps(audit.model.target)),
                parse_operating_points(
                    audit.workspace.operating_points(audit.model.target).read_text(encoding="utf-8")
                ),
                audit.model.target,
                eps,
            )
            for audit in audits
        )
        comparisons = [compare(condition, candidate[condition], champion[condition]) for condition in candidate]
    failed = failed_checks(audits[0].workspace, audits[0].model.target)
    return Decision(
        candidate=audits[0].model,
        champion=audits[1].model if len(audits) == 2 else None,
        margin=margin,
        eps=eps,
        n_left_out=audits[0].n_left_out,
        comparisons=comparisons,
        failed=failed,
    )


def outcome_of(decision: Decision) -> str:
    """The decision and its reasons in a few sentences."""
    candidate, champion = decision.candidate.label, decision.champion
    if decision.objections:
        stays = f"{champion.label} stays champion" if champion else "there is no champion"
        return f"{candidate} does not become champion, {stays}: {'; '.join(decision.objections)}."
    if champion is None:
        return f"{candidate} becomes champion: there is no other champion, and none of its checks failed."
    accuracies = ", ".join(
        f"{each.condition} {rate_text(*each.candidate)} against {rate_text(*each.champion)}, "
        f"difference {difference_text(*each.difference)}"
        for each in decision.comparisons
    )
    return (
        f"{candidate} becomes champion in place of {champion.label}: none of its checks failed, and its "
        f"balanced accuracies are at most {100 * decision.margin:g} points lower (n = {decision.comparisons[0].n} in "
        f"{decision.comparisons[0].n_groups} groups): {accuracies}."
    )


def page_of(decision: Decision) -> str:
    """The comparison in Markdown."""
    return (
        environment(TEMPLATES, is_markdown=True)
        .get_template("promotion.md.j2")
        .render(
            decision=decision,
            candidate=decision.candidate,
            champion=decision.champion,
            outcome=outcome_of(decision),
            rate_text=rate_text,
            difference_text=difference_text,
            difference_or_dash=lambda difference: "–" if math.isnan(difference) else points(difference),
        )
    )


def _without_nan(values: Any) -> Any:
    """The same nested values, with None for NaN (too few groups), which JSON does not have."""
    match values:
        case dict():
            return {name: _without_nan(value) for name, value in values.items()}
        case list() | tuple():
            return [_without_nan(value) for value in values]
        case float() if math.isnan(values):
            return None
        case _:
            return values


def main() -> None:
    """Make the candidate champion, or return to the previous champion."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=main.__doc__)
    parser.add_argument("--name", default=EXPERIMENT, help="name of the registered model (default: %(default)s)")
    parser.add_argument(
        "--margin", default=MARGIN, type=float, help="largest acceptable loss of accuracy (default: %(default)s)"
    )
    parser.add_argument("--back", action="store_true", help="return to the previous champion")
    parser.add_argument("--trust", action="store_true", help="run the code of the author of the model, if it has any")
    print(run_flow(promote, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
