"""Defences side by side: which withstands the worst of all attacks, and is the next one really worse."""

import pandas as pd

from tasks.evaluation.records import spoken
from tasks.paths import UNDEFENDED
from tasks.reporting.findings import ATTACKERS, Headline, eps_text, with_interval
from tasks.reporting.results import Results
from tasks.reporting.sections.section import Section, Table

SIGNIFICANT = 0.05
"""McNemar's p-value below which two targets are said to differ."""


def benchmark_section(results: Results, headline: Headline) -> Section:
    """The targets ranked by how many images withstand every adaptive attack at the headline's ε."""
    table = results.benchmark
    at_eps = table[table["eps"] == headline.eps]
    of_eps = {str(threat): rows for threat, rows in at_eps.groupby("threat_model", sort=False)}
    ranked = of_eps["adaptive"]
    others = {threat: rows.set_index("target") for threat, rows in of_eps.items() if threat != "adaptive"}
    rows = []
    for _, row in ranked.iterrows():
        elsewhere = [
            with_interval(other.loc[row["target"]]) if row["target"] in other.index else "–"
            for other in others.values()
        ]
        rows.append(
            [
                f"{row['rank']}. {spoken(row['target'])}",
                with_interval(row, "clean_accuracy"),
                *elsewhere,
                with_interval(row),
                compared(row),
            ]
        )
    head = [
        "target",
        "clean images",
        *(ATTACKERS[threat] for threat in others),
        ATTACKERS["adaptive"],
        "against the next",
    ]
    caption = (
        f"Accuracy on the {ranked['n'].iloc[0]} attacked images, each under the worst of all attacks for it, at "
        f"ε = {eps_text(headline.eps)}/255, with 95 % Wilson intervals; ranked by the attacker who knows the defence."
    )
    return Section(
        key="defences",
        short="Defences",
        title="Defences side by side",
        answer=_answer(ranked, headline),
        notes=[
            "Against the next: on how many images only this target is right, on how many only the next in rank, and "
            "McNemar's exact p-value that chance alone would part them so far. A rank says nothing where it is large."
        ],
        tables=[Table(caption, head, rows, is_sortable=True), _everywhere(table)],
    )


def _answer(ranked: pd.DataFrame, headline: Headline) -> str:
    best = ranked.iloc[0]
    sentence = (
        f"Of {len(ranked)} targets, {_named(best['target'])} withstands the attacker who knows of it best: "
        f"{with_interval(best)} at ε = {eps_text(headline.eps)}/255, {with_interval(best, 'clean_accuracy')} on clean "
        f"images."
    )
    if len(ranked) == 1:
        return sentence
    verb = "differs" if best["p_value"] < SIGNIFICANT else "can't be told"
    return f"{sentence} The next, {_named(best['next'])}, {verb} from it ({_p_text(best['p_value'])})."


def _named(target: str) -> str:
    return "the bare classifier" if target == UNDEFENDED else f"the {spoken(target)}"


def _p_text(p_value: float) -> str:
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def compared(row: "pd.Series[float]") -> str:
    """On how many images a target alone is right, on how many the next in rank, and McNemar's p-value."""
    if pd.isna(row["p_value"]):
        return "–"
    return f"{row['n_right_alone']:.0f} : {row['n_wrong_alone']:.0f}, {_p_text(row['p_value'])}"


def _everywhere(table: pd.DataFrame) -> Table:
    rows = [
        [
            spoken(row["target"]),
            str(row["threat_model"]),
            eps_text(row["eps"]),
            str(row["rank"]),
            with_interval(row, "clean_accuracy"),
            with_interval(row),
            compared(row),
        ]
        for _, row in table.iterrows()
    ]
    head = ["target", "threat model", "ε in 1/255", "rank", "clean images", "worst case", "against the next"]
    caption = "The same at every ε and for every attacker"
    return Table(caption, head, rows, is_folded=True, is_sortable=True)
