"""The flow ``promote``: the candidate takes the champion's place, if it is not worse where it counts.

``python -m flows.promote`` audits both on the same images, compares, and moves the alias ``champion`` or says why not;
``python -m flows.promote --back`` makes the champion before this one champion again.
"""

import argparse
from dataclasses import asdict, dataclass
from typing import Annotated

import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import Field

from flows.audit import AUDITS, Audit, checks_of, renewed, run_audit, set_up_audit
from flows.command import run_flow
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.params import Params, load_params
from tasks.records.vocabulary import spoken
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
    """What is to become of the candidate."""

    candidate: Registered
    champion: Registered | None
    alpha: float
    eps: float
    """In 1/255: of the adaptive attacks."""
    n_left_out: int
    """Test images that one of the two was trained or validated on."""
    comparisons: list[Comparison]
    """Clean and adaptive; none without a champion."""
    failed: dict[str, str]
    """Checks of the candidate that fail: key to explanation."""

    @property
    def objections(self) -> list[str]:
        """Why the candidate may not be champion; none if it may."""
        worse = [
            f"its {each.what} accuracy is significantly worse: {_shown(each.candidate)} against "
            f"{_shown(each.champion)}, {each.n_right_alone} : {each.n_wrong_alone} images that only one gets right, "
            f"p = {each.p_value:.2g}"
            for each in self.comparisons
            if each.is_worse(self.alpha)
        ]
        return worse + [f"its check {key} fails: {explanation}" for key, explanation in self.failed.items()]


@flow(name="promote")
def promote(
    name: Annotated[str, Field(pattern=r"^[\w .-]+$")] = EXPERIMENT,
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = ALPHA,
    back: bool = False,
) -> str:
    """Make the candidate champion, if neither its clean nor its adaptive accuracy is significantly worse.

    Args:
        name: of the registered model.
        alpha: significance level of McNemar's test.
        back: compare nothing, and make the champion before this one champion again.

    Returns:
        What became of it, in a few sentences.
    """
    if back:
        move = registry.champion_back(name)
        return f"version {move.version} of {name} is champion again, version {move.before} no longer"
    workspace, params = Workspace(), load_params()
    candidate = registry.holder_of(name, CANDIDATE)
    if candidate is None:
        raise ValueError(f"{name} has no {CANDIDATE}: register one first (python -m flows.register)")
    champion = registry.holder_of(name, CHAMPION)
    if champion == candidate:
        return f"{candidate.label} is both {CANDIDATE} and {CHAMPION}: nothing to compare, nothing is changed"

    audits = audit_side_by_side(workspace, candidate, champion, params)
    told, page = settle(audits, params, alpha)
    create_markdown_artifact(key="promotion", markdown=page, description=f"{candidate.label} as champion?")
    return f"{told} See {audits[0].workspace.root / 'promotion.md'}"


def settle(audits: list[Audit], params: Params, alpha: float) -> tuple[str, str]:
    """Decide, write down why beside the candidate's audit and in the registry, and move the alias if nothing objects.

    Args:
        audits: the candidate's first; their steps up to ``evaluate`` have run.
        params: of the current workspace.
        alpha: significance level.

    Returns:
        The decision in a few sentences, and as a page of Markdown.
    """
    decision = decide(audits, params, alpha)
    told, page, folder = sentence_of(decision), page_of(decision), audits[0].workspace.root
    (folder / "promotion.md").write_text(page, encoding="utf-8")
    write_json(asdict(decision) | {"objections": decision.objections}, folder / "promotion.json")
    registry.note_audit(decision.candidate, told, [folder / "promotion.md", folder / "promotion.json"])
    if not decision.objections:
        registry.move_champion(decision.candidate, told)
    return told, page


def audit_side_by_side(
    workspace: Workspace, candidate: Registered, champion: Registered | None, params: Params
) -> list[Audit]:
    """Audits of the candidate and, if there is one, the champion, on test images that neither has seen."""
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
    # both are set up before any is attacked: what can't be compared is found at once
    audits = [
        set_up_audit(workspace, model, bundle, Workspace(folder), params, seen)
        for model, bundle, folder in zip(models, bundles, folders, strict=True)
    ]
    for audit in audits:
        run_audit(audit, with_report=False)
    return audits


def decide(audits: list[Audit], params: Params, alpha: float) -> Decision:
    """Compare what the audits of the candidate and, if there is one, the champion found.

    Args:
        audits: the candidate's first; their steps up to ``evaluate`` have run.
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
                pd.read_parquet(audit.workspace.smallest_eps(audit.model.target)),
                audit.model.target,
                eps,
            )
            for audit in audits
        )
        comparisons = [
            compare(what, candidate[what], champion[what], groups, params.analyze.n_resamples, params.seed)
            for what in candidate
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


def sentence_of(decision: Decision) -> str:
    """What was decided, and why."""
    candidate, champion = decision.candidate.label, decision.champion
    if decision.objections:
        stays = f"{champion.label} stays" if champion else "there is still none"
        return f"{candidate} does not become champion, {stays}: {'; '.join(decision.objections)}."
    if champion is None:
        return f"{candidate} becomes champion: there was none to compare it with, and none of its checks fails."
    differences = ", ".join(
        f"{each.what} {_shown(each.candidate)} against {_shown(each.champion)} (p = {each.p_value:.2g})"
        for each in decision.comparisons
    )
    return (
        f"{candidate} becomes champion in place of {champion.label}: no check fails, and neither accuracy is "
        f"significantly worse on the same {decision.comparisons[0].n} images: {differences}."
    )


def page_of(decision: Decision) -> str:
    """The comparison in Markdown."""
    candidate, champion = decision.candidate, decision.champion
    against = f"{champion.label} ({spoken(champion.target)}), champion" if champion else "no champion yet"
    lines = [
        f"# {candidate.label} ({spoken(candidate.target)}), candidate, against {against}",
        "",
        sentence_of(decision),
        "",
        f"Adaptive: the worst of all adaptive attacks for each image at ε = {eps_text(decision.eps)}/255. Worse: "
        f"McNemar's exact test, two-sided, at {decision.alpha:g}. Test images left out since "
        f"{'one of the two' if champion else 'it'} was trained or validated on them: {decision.n_left_out}.",
        "",
    ]
    if decision.comparisons:
        lines += [
            "| accuracy | images | candidate [95 %] | champion [95 %] | difference [95 %] | only candidate : only "
            "champion | p | |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        lines += [
            f"| {each.what} | {each.n} | {_shown(each.candidate)} | {_shown(each.champion)} | {_shown(each.difference)}"
            f" | {each.n_right_alone} : {each.n_wrong_alone} | {each.p_value:.3g} | "
            f"{'**worse**' if each.is_worse(decision.alpha) else 'not worse'} |"
            for each in decision.comparisons
        ]
        lines.append("")
    lines += [f"- check **{key}** fails: {explanation}" for key, explanation in decision.failed.items()]
    lines += ["" if decision.failed else "No check of the candidate fails.", ""]
    return "\n".join(lines)


def _shown(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def main() -> None:
    """Command line of the flow."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description="Make the candidate champion.")
    parser.add_argument("--name", default=EXPERIMENT, help="of the registered model (%(default)s)")
    parser.add_argument("--alpha", default=ALPHA, type=float, help="significance level (%(default)s)")
    parser.add_argument("--back", action="store_true", help="make the champion before this one champion again")
    print(run_flow(promote, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
