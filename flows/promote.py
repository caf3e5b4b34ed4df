"""The flow ``promote``: make the candidate champion, if it is not significantly worse than the champion.

``python -m flows.promote`` audits both on the same images, compares them, and moves the alias ``champion`` or gives the
reasons against it. ``python -m flows.promote --back`` returns to the champion before.
"""

import argparse
from dataclasses import asdict, dataclass
from typing import Annotated

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.audit import AUDITS, Audit, checks_of, renewed, run_audit, set_up_audit
from flows.command import log_progress, run_flow
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.records.vocabulary import display_name
from tasks.serving import registry
from tasks.serving.bundle import read_seen
from tasks.serving.promotion import Comparison, compare, outcomes_of
from tasks.serving.registry import CANDIDATE, CHAMPION, Registered
from tasks.statistics.formatting import eps_text
from tasks.statistics.intervals import Estimate
from tasks.tracking import EXPERIMENT

ALPHA = 0.05


@dataclass(frozen=True)
class Decision:
    """The comparison of a candidate with the champion, and its outcome."""

    candidate: Registered
    champion: Registered | None
    alpha: float
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
            f"its {each.condition} accuracy is significantly worse: {_text(each.candidate)} against "
            f"{_text(each.champion)}, correct by only one of the two {each.n_only_candidate_correct} : "
            f"{each.n_only_champion_correct}, p = {each.p_value:.2g}"
            for each in self.comparisons
            if each.is_worse(self.alpha)
        ]
        return worse + [f"failed check {key}: {explanation}" for key, explanation in self.failed.items()]


@flow(name="promote")
def promote(
    name: Annotated[str, Field(pattern=r"^[\w .-]+$")] = EXPERIMENT,
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = ALPHA,
    back: bool = False,
) -> str:
    """Make the candidate champion, if neither its clean nor its adaptive accuracy is significantly worse.

    Args:
        name: name of the registered model.
        alpha: significance level of McNemar's test.
        back: compare nothing, and return to the champion before the present one.

    Returns:
        The outcome in a few sentences.
    """
    log_progress()
    if back:
        move = registry.restore_champion(name)
        return f"Version {move.version} of {name} is champion again, in place of version {move.before}."
    params, candidate = load_params(), registry.version_with(name, CANDIDATE)
    if candidate is None:
        raise ValueError(f"{name} has no {CANDIDATE}. Register a model first: python -m flows.register")
    champion = registry.version_with(name, CHAMPION)
    if champion == candidate:
        return f"{candidate.label} is {CANDIDATE} and {CHAMPION}. There is nothing to compare."

    audits = audit_both(Workspace(), candidate, champion, params)
    outcome, page = settle(audits, params, alpha)
    create_markdown_artifact(key="promotion", markdown=page, description=f"Promotion of {candidate.label}")
    return f"{outcome} See {audits[0].workspace.root / 'promotion.md'}"


def settle(audits: list[Audit], params: Params, alpha: float) -> tuple[str, str]:
    """Decide on the candidate, and move the alias ``champion`` if there is no objection.

    The decision is written beside the candidate's audit and to the registry.

    Args:
        audits: of the candidate and, if there is one, the champion; their steps up to ``evaluate`` have run.
        params: of the current workspace.
        alpha: significance level.

    Returns:
        The decision in a few sentences, and as a page of Markdown.
    """
    decision = decide(audits, params, alpha)
    outcome, page, folder = outcome_of(decision), page_of(decision), audits[0].workspace.root
    (folder / "promotion.md").write_text(page, encoding="utf-8")
    write_json(asdict(decision) | {"objections": decision.objections}, folder / "promotion.json")
    registry.log_audit(decision.candidate, outcome, [folder / "promotion.md", folder / "promotion.json"])
    if not decision.objections:
        registry.move_champion(decision.candidate, outcome)
    return outcome, page


def audit_both(current: Workspace, candidate: Registered, champion: Registered | None, params: Params) -> list[Audit]:
    """Audit the candidate and, if there is one, the champion, on test images that neither of them has seen."""
    if champion is None:
        models, folders = [candidate], [AUDITS / f"{candidate.label}-alone"]
    else:
        models = [candidate, champion]
        folders = [
            AUDITS / f"{candidate.label}-against-v{champion.version}",
            AUDITS / f"{champion.label}-against-v{candidate.version}",
        ]
    bundles = [
        registry.download(model, renewed(folder / "model")) for model, folder in zip(models, folders, strict=True)
    ]
    seen = set().union(*(digests for bundle in bundles for digests in read_seen(bundle).values()))
    # both are set up before an attack runs, so that models that cannot be compared are refused at once
    audits = [
        set_up_audit(current, model, bundle, Workspace(folder), params, seen)
        for model, bundle, folder in zip(models, bundles, folders, strict=True)
    ]
    for audit in audits:
        run_audit(audit, with_report=False)
    return audits


def decide(audits: list[Audit], params: Params, alpha: float) -> Decision:
    """Compare the results of the candidate with those of the champion.

    Args:
        audits: of the candidate and, if there is one, the champion; their steps up to ``evaluate`` have run.
        params: of the current workspace.
        alpha: significance level.
    """
    eps = params.analyze.eps
    comparisons = []
    if len(audits) == 2:
        groups = pd.read_parquet(audits[0].workspace.split)["group"]
        candidate, champion = (
            outcomes_of(
                pd.read_parquet(audit.workspace.records(audit.model.target)),
                pd.read_parquet(audit.workspace.minimum_eps(audit.model.target)),
                audit.model.target,
                eps,
            )
            for audit in audits
        )
        comparisons = [
            compare(
                condition, candidate[condition], champion[condition], groups, params.analyze.n_resamples, params.seed
            )
            for condition in candidate
        ]
    failed = {check["key"]: check["explanation"] for check in checks_of(audits[0]) if check["status"] == "FAIL"}
    return Decision(
        candidate=audits[0].model,
        champion=audits[1].model if len(audits) == 2 else None,
        alpha=alpha,
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
        f"{each.condition} {_text(each.candidate)} against {_text(each.champion)} (p = {each.p_value:.2g})"
        for each in decision.comparisons
    )
    return (
        f"{candidate} becomes champion in place of {champion.label}: none of its checks failed, and no accuracy is "
        f"significantly worse (n = {decision.comparisons[0].n}): {accuracies}."
    )


def page_of(decision: Decision) -> str:
    """The comparison in Markdown."""
    candidate, champion = decision.candidate, decision.champion
    other = f"the champion {champion.label} ({display_name(champion.target)})" if champion else "no champion"
    models = "one of the two models" if champion else "the model"
    lines = [
        f"# The candidate {candidate.label} ({display_name(candidate.target)}) against {other}",
        "",
        outcome_of(decision),
        "",
        f"The adaptive accuracy is the worst case of each image over all adaptive attacks at ε = "
        f"{eps_text(decision.eps)}/255. The p-values are those of McNemar's exact two-sided test; the significance "
        f"level is {decision.alpha:g}. {decision.n_left_out} test images were left out, because {models} was trained "
        "or validated on them.",
        "",
    ]
    if decision.comparisons:
        lines += [
            "| accuracy | images | candidate [95 %] | champion [95 %] | difference [95 %] | correct by candidate only "
            ": by champion only | p | |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        lines += [
            f"| {each.condition} | {each.n} | {_text(each.candidate)} | {_text(each.champion)} | "
            f"{_text(each.difference)} | {each.n_only_candidate_correct} : {each.n_only_champion_correct} | "
            f"{each.p_value:.3g} | "
            f"{'**worse**' if each.is_worse(decision.alpha) else 'not worse'} |"
            for each in decision.comparisons
        ]
        lines.append("")
    lines += [f"- Failed check **{key}**: {explanation}" for key, explanation in decision.failed.items()]
    lines += ["" if decision.failed else "No check of the candidate failed.", ""]
    return "\n".join(lines)


def _text(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def main() -> None:
    """Make the candidate champion, or return to the champion before."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=main.__doc__)
    parser.add_argument("--name", default=EXPERIMENT, help="name of the registered model (default: %(default)s)")
    parser.add_argument(
        "--alpha", default=ALPHA, type=float, help="significance level of McNemar's test (default: %(default)s)"
    )
    parser.add_argument("--back", action="store_true", help="return to the champion before the present one")
    print(run_flow(promote, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
