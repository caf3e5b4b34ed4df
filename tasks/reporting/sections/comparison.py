"""Defences side by side: which withstands the worst of all attacks, and is the next one really worse."""

import math

import numpy as np
import pandas as pd

from tasks.params import UNDEFENDED
from tasks.records.vocabulary import spoken
from tasks.reporting.findings import ATTACKERS, Headline
from tasks.reporting.panels import Line, line_over_eps, over_eps
from tasks.reporting.results import Results
from tasks.reporting.sections.section import Drawing, Section, Table, estimate, lines_drawing, plain, share
from tasks.statistics.formatting import eps_text, with_interval

SIGNIFICANT = 0.05
"""McNemar's p-value below which two targets are said to differ."""
MAX_LINES = 7
"""Of a figure: as many as there are colours."""


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
                *cost_of(row),
                checked(row),
            ]
        )
    head = [
        "target",
        "clean images",
        *(ATTACKERS[threat] for threat in others),
        ATTACKERS["adaptive"],
        "against the next",
        "parameters",
        "multiply-adds an image",
        "checks",
    ]
    caption = (
        f"Accuracy on the {ranked['n'].iloc[0]} attacked images, each under the worst of all attacks for it, at "
        f"ε = {eps_text(headline.eps)}/255, with 95 % Wilson intervals; ranked by the attacker who knows the defence."
    )
    shown = list(ranked["target"][:MAX_LINES])
    if UNDEFENDED not in shown:
        shown[-1] = UNDEFENDED
    return Section(
        key="defences",
        short="Defences",
        title="Defences side by side",
        answer=_answer(ranked, headline),
        notes=[
            "Against the next: on how many images only this target is right, on how many only the next in rank, and "
            "McNemar's exact p-value that chance alone would part them so far. A rank says nothing where it is large. "
            "Parameters and multiply-adds are those of the networks, over all looks at an image."
        ],
        drawings=[_worst_drawing(results, shown, headline), _minimal_drawing(results, shown, headline)],
        tables=[
            Table(caption, head, rows, is_sortable=True),
            _minimal_table(results.minimal_eps, ranked),
            *_certified_tables(results.certified),
            _everywhere(table),
        ],
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


def _worst_drawing(results: Results, shown: list[str], headline: Headline) -> Drawing:
    table, certified = results.benchmark, results.certified
    lines = []
    for target in shown:
        points = table[(table["target"] == target) & (table["threat_model"] == "adaptive")]
        clean = points.iloc[:1].assign(eps=0.0, **{f"accuracy{end}": points[f"clean_accuracy{end}"] for end in ENDS})
        both, style = pd.concat([clean, points]), headline.styles[target]
        lines.append(line_over_eps(spoken(target), both, "accuracy", style))
        vouched = certified[certified["target"] == target]
        if len(vouched):
            lines.append(line_over_eps(f"{spoken(target)}, certified", vouched, "accuracy", style, "dashed"))
    caption = (
        "Share of images that withstand every attack of who knows the defence, with 95 % Wilson bands"
        f"{_chosen(results, shown)}."
    )
    if certified["target"].isin(shown).any():
        caption += (
            " Dashed: the certified share, of some of the images: nothing in an L2 ball, which holds the L∞ ball of "
            "the same ε, turns the vote of infinitely many noisy looks."
        )
    panel = over_eps("accuracy in the worst case", lines, y_scale="share", y_range=(-0.02, 1.02))
    alt = "Accuracy in the worst case against ε for each target; a table below has the numbers"
    return lines_drawing("defences-worst", [panel], alt, caption, is_interactive=True)


ENDS = ("", "_low", "_high")


def _minimal_drawing(results: Results, shown: list[str], headline: Headline) -> Drawing:
    by_image = results.smallest_eps.groupby(["target", "image"])["minimal_eps"].min()
    grid = tuple(sorted(results.benchmark["eps"].unique()))
    lines = []
    for target in shown:
        sizes = np.sort(by_image[target][by_image[target] > 0])
        if not len(sizes):
            continue
        within = sizes[sizes <= grid[-1]]
        left = 1 - np.arange(len(within) + 1) / len(sizes)
        # a stair: each image holds until its own size
        x = np.append(np.repeat([0, *within], 2)[1:], grid[-1])
        lines.append(Line(spoken(target), x, np.repeat(left, 2), headline.styles[target]))
    caption = (
        "How small a perturbation has to be: the share of the images that were right and that no smaller one, of all "
        f"that were found, turns wrong{_chosen(results, shown)}."
    )
    panel = over_eps("images that still hold", lines, y_scale="share", y_range=(-0.02, 1.02), drawn="lines", ticks=grid)
    alt = "Share of images against the size of the smallest perturbation that breaks them; a table has the quartiles"
    return lines_drawing("defences-minimal-eps", [panel], alt, caption)


def _chosen(results: Results, shown: list[str]) -> str:
    n_targets = results.benchmark["target"].nunique()
    return (
        f"; of {n_targets} targets the first {len(shown) - 1} in rank and the bare one" if n_targets > MAX_LINES else ""
    )


def _minimal_table(minimal: pd.DataFrame, ranked: pd.DataFrame) -> Table:
    by_target = minimal.set_index("target")
    rows = []
    for target in ranked["target"]:
        row = by_target.loc[target]
        quartiles = [size_text(row["q25"]), estimate(row, size_text, "median"), size_text(row["q75"])]
        rows.append([spoken(target), f"{row['n']:.0f}", *quartiles, share(row["withstood"])])
    head = ["target", "images", "first quarter", "median", "third quarter", "not broken"]
    caption = (
        "Size of the smallest perturbation that breaks an image, ε in 1/255, over the images that were right: an upper "
        "bound, found by all attacks and shortened towards the image; the median with its 95 % interval."
    )
    return Table(caption, head, rows, is_sortable=True)


def size_text(value: float) -> str:
    """The size of a perturbation; infinite is what no ε of the grid reaches."""
    return "beyond the grid" if math.isinf(value) else plain(value)


def _certified_tables(certified: pd.DataFrame) -> list[Table]:
    if certified.empty:
        return []
    grid = sorted(certified["eps"].unique())
    rows = [
        [spoken(str(target)), f"{of_target['n'].iloc[0]}", *(with_interval(row) for _, row in of_target.iterrows())]
        for target, of_target in certified.groupby("target", sort=False)
    ]
    head = ["target", "images", *(f"ε = {eps_text(eps)}/255" for eps in grid)]
    caption = (
        "Certified accuracy: the share of these images on which the vote of infinitely many noisy looks is right, and "
        "stays so whatever lies within an L2 ball, which holds the L∞ ball of the same ε. It is told of that vote, to "
        "which the average of a few looks that was attacked comes near, and vouches for no more than the noise and the "
        "number of samples allow, however good the classifier."
    )
    return [Table(caption, head, rows)]


def _named(target: str) -> str:
    return "the bare classifier" if target == UNDEFENDED else f"the {spoken(target)}"


def _p_text(p_value: float) -> str:
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def compared(row: "pd.Series[float]") -> str:
    """On how many images a target alone is right, on how many the next in rank, and McNemar's p-value."""
    if pd.isna(row["p_value"]):
        return "–"
    return f"{row['n_right_alone']:.0f} : {row['n_wrong_alone']:.0f}, {_p_text(row['p_value'])}"


def cost_of(row: "pd.Series[float]") -> tuple[str, str]:
    """Parameters, and multiply-adds of a prediction, in millions."""
    return f"{row['parameters'] / 1e6:.2f} M", f"{row['multiply_adds'] / 1e6:.0f} M"


def checked(row: "pd.Series[float]") -> str:
    """How many checks of a target fail and warn."""
    raised = [f"{row[f'n_{status.lower()}']:.0f} {status}" for status in ("FAIL", "WARN") if row[f"n_{status.lower()}"]]
    return ", ".join(raised) or "all pass"


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
