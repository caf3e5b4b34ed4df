"""Write the tables of the documents from the archived results: ``python -m docs.write_tables [--check]``.

A table is the text between two markers::

    <!-- table: clean study-50-50 choice -->
    <!-- end table -->

RUN is a folder of ``docs/evidence/results/``. The kinds of tables are:

- ``clean RUN ...``: accuracy on clean test images, one row for each run
- ``headline RUN``: the headline result in sentences
- ``claims RUN``: results of the claims of the study
- ``comparison RUN EPS ...``: all targets, ranked by worst-case accuracy under adaptive attacks at the first ε
- ``finding RUN EPS ...``: the same in fewer columns
- ``selection RUN EPS ...``: balanced accuracy on attacked validation images, by which targets are ranked and chosen
- ``worst_case RUN EPS ...``: clean recalls, and balanced accuracy under adaptive attacks, at each operating point
- ``seeds TABLE EPS ...``: balanced accuracy in the worst case of each target and seed, as trained
- ``label_efficiency RUN``: accuracies and numbers of labels of each acquisition function
- ``gains RUN``: comparison of each acquisition function with random, in sentences
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pandas as pd

from docs import RESULTS
from tasks.evaluation.comparison import ranked
from tasks.evaluation.robustness import clean_rows
from tasks.evaluation.worst_case_table import value_at
from tasks.outcomes.names import display_name
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import AS_TRAINED
from tasks.reporting.formats import estimate, fixed, p_text
from tasks.reporting.results import read_json, read_table
from tasks.reporting.sections.active_learning import ACCURACIES, LABELS, efficiency_table, gains_of
from tasks.reporting.sections.claims import results_at_other_eps
from tasks.reporting.templating import gain_sentence
from tasks.statistics.formatting import Row, eps_text, percent, with_interval

DOCUMENTS = (
    "README.md",
    *(f"docs/evidence/{page}.md" for page in ("study-80-20", "study-50-50", "choice", "active-learning", "covid-ct")),
)
MARKERS = re.compile(
    r"(?P<begin><!-- table:(?P<words>[^\n]*?)-->\n)(?P<table>.*?)(?P<end><!-- end table -->)", re.DOTALL
)
RATE = {"value": "accuracy", "low": "accuracy_low", "high": "accuracy_high"}
"""Columns of an estimate -> columns of a rate, which are formatted with their interval."""
BALANCED = "balanced_accuracy"
STUDY_ROW = ["the study", "", "", "93.23 %", "", "", ""]


def clean_table(results: Path, *runs: str) -> str:
    """Accuracy of the undefended classifier on clean test images, one row for each run, the study first."""
    infos = {run: read_json(_folder(results, run) / "dataset.json") for run in runs}
    # phantoms are not comparable with the study
    rows = [] if all(info["is_phantom"] for info in infos.values()) else [STUDY_ROW]
    for run, info in infos.items():
        row: Row = clean_rows(read_table(_folder(results, run) / "robustness.csv")).loc[UNDEFENDED]
        rates = [percent(row[metric]) for metric in ("precision", "recall", "f1")]
        n_test = sum(info["n_images"]["test"].values())
        n = str(row["n"]) if row["n"] == n_test else f"{row['n']} of {n_test}"
        name = f"{run} (phantoms)" if info["is_phantom"] else run
        rows.append([name, n, percent(info["leakage"]["group_in_train"]), with_interval(row), *rates])
    head = ["run", "test images", "group member in training", "accuracy [95 %]", "precision", "recall", "F1"]
    return _markdown(head, rows)


def headline_text(results: Path, run: str) -> str:
    """The headline result, as the report of the run states it."""
    return (_folder(results, run) / "headline.md").read_text(encoding="utf-8")


def claims_table(results: Path, run: str) -> str:
    """Claims of the study: measured value with its interval, and result."""
    rows = [
        [
            claim["statement"],
            claim["measure"],
            estimate(claim, fixed(3)),
            "–" if claim["n"] is None else str(claim["n"]),
            f"**{claim['result']}**",
            results_at_other_eps(claim) or "–",
        ]
        for claim in read_json(_folder(results, run) / "claims.json")
    ]
    return _markdown(["claim of the study", "measure", "value [95 %]", "n", "result", "at other ε in 1/255"], rows)


def comparison_table(results: Path, run: str, *eps: str) -> str:
    """All targets in the worst case of all attacks, in the order of the rank at the first ε.

    The columns are clean images and adaptive attacks at each ε; then, at the first ε, black-box and transfer attacks,
    and the paired test against the next target in rank. All targets are as trained.

    Raises:
        ValueError: there is no ε, or the run does not have it.
    """
    shown, targets = _comparison(results, run, eps)
    table_rows = [
        [*names, *adaptive, cell("black_box"), cell("transfer"), _next_target(row)]
        for row, names, adaptive, cell in targets
    ]
    first = f"ε = {eps_text(shown[0])}"
    head = ["target", "clean", *(f"adaptive, ε = {eps_text(value)}" for value in shown)]
    return _markdown([*head, f"black box, {first}", f"transfer, {first}", f"next target, {first}"], table_rows)


def finding_table(results: Path, run: str, *eps: str) -> str:
    """All targets as trained: clean images, the worst case of transfer attacks at the first ε, of all attacks at each.

    Raises:
        ValueError: there is no ε, or the run does not have it.
    """
    shown, targets = _comparison(results, run, eps)
    rows = [[*names, cell("transfer"), *adaptive] for _, names, adaptive, cell in targets]
    head = ["target", "clean", f"transfer, ε = {eps_text(shown[0])}/255"]
    return _markdown([*head, *(f"adaptive, ε = {eps_text(value)}/255" for value in shown)], rows)


def _comparison(
    results: Path, run: str, eps: tuple[str, ...]
) -> tuple[list[float], list[tuple[Row, list[str], list[str], Callable[[str], str]]]]:
    """The chosen ε, and all targets as trained, in the order of the rank at the first ε.

    A target has its row at the first ε; its name and clean accuracy; its accuracies under adaptive attacks at each ε;
    and a function from a threat model to its accuracy at the first ε.
    """
    table = read_table(_folder(results, run) / "comparison.csv")
    table = table[table["operating_point"] == AS_TRAINED]
    points = [rows.set_index("target") for _, rows in table.groupby(["threat_model", "eps"])]
    indexed = {(str(rows["threat_model"].iloc[0]), float(rows["eps"].iloc[0])): rows for rows in points}
    shown = _chosen(eps, table["eps"], f"comparison {run}")
    targets: list[tuple[Row, list[str], list[str], Callable[[str], str]]] = []
    for name, row in indexed["adaptive", shown[0]].sort_values("rank").iterrows():
        cell = partial(_robust_cell, indexed, str(name))
        names = [display_name(str(name)), with_interval(row, "clean_accuracy")]
        targets.append((row, names, [cell("adaptive", value) for value in shown], partial(cell, value=shown[0])))
    return shown, targets


def _robust_cell(points: dict[tuple[str, float], pd.DataFrame], target: str, threat_model: str, value: float) -> str:
    rows = points.get((threat_model, value))
    has_target = rows is not None and target in rows.index
    return with_interval(rows.loc[target], "robust_accuracy") if rows is not None and has_target else "–"


def _next_target(row: Row) -> str:
    """Comparison with the next target in rank: images correct only here, only there, and the p-value."""
    if math.isnan(row["p_value"]):
        return "–"
    return f"{row['n_only_this_correct']:.0f} : {row['n_only_next_correct']:.0f}, {p_text(row['p_value'])}"


def selection_table(results: Path, run: str, *eps: str) -> str:
    """Balanced accuracy of all targets on validation images: clean, and under the sweep at each ε, as trained.

    The order is that of the rank at the first ε (:func:`tasks.evaluation.comparison.ranked`).

    Raises:
        ValueError: there is no ε, or the run does not have it.
    """
    table = read_table(_folder(results, run) / "validation_robustness.csv")
    table = table[table["operating_point"] == AS_TRAINED]
    shown = _chosen(eps, table["eps"], f"selection {run}")
    order, rates = ranked(table["target"].unique(), table, shown[0]), table.rename(columns=RATE)
    columns = (0.0, *shown)
    rows = [
        [
            display_name(target),
            *(with_interval(value_at(rates, BALANCED, target=target, eps=value)) for value in columns),
        ]
        for target in order
    ]
    return _markdown(["target", *map(eps_label, columns)], rows)


def worst_case_table(results: Path, run: str, *eps: str) -> str:
    """Clean recalls, clean balanced accuracy, and balanced accuracy under adaptive attacks at each ε.

    Raises:
        ValueError: there is no ε, or the run does not have it.
    """
    table = read_table(_folder(results, run) / "worst_case.csv").rename(columns=RATE)
    table = table[table["threat_model"] == "adaptive"]
    shown = _chosen(eps, table["eps"], f"worst_case {run}")
    recalls = [str(name) for name in table["metric"].unique() if "accuracy" not in name]
    columns = [*((metric, 0.0) for metric in (*recalls, BALANCED)), *((BALANCED, value) for value in shown)]
    head = [f"{metric.replace('_', ' ')}, {eps_label(value)}" for metric, value in columns]
    rows = []
    for names, of_target in table.groupby(["target", "operating_point"], sort=False):
        cells = {(row["metric"], row["eps"]): with_interval(row) for _, row in of_target.iterrows()}
        rows.append([*(display_name(str(name)) for name in names), *(cells[column] for column in columns)])
    return _markdown(["target", "operating point", *head], rows)


def seeds_table(results: Path, name: str, *eps: str) -> str:
    """Balanced accuracy of each target and seed at each ε, their range, and their mean with its interval by group.

    Raises:
        ValueError: there is no ε, or the runs do not have it.
    """
    table = read_table(results / name / "seeds.csv").rename(columns=RATE)
    table = table[table["operating_point"] == AS_TRAINED]
    shown = _chosen(eps, table["eps"], f"seeds {name}")
    seeds = [column for column in table.columns if column.startswith("seed_")]
    rows = []
    for _, row in table[table["eps"].isin(shown)].iterrows():
        lowest, highest, *values = (percent(row[column]) for column in ("lowest", "highest", *seeds))
        names = [display_name(row["target"]), eps_label(row["eps"])]
        rows.append([*names, *values, f"{lowest} to {highest}", with_interval(row)])
    return _markdown(["target", "ε", *(seed.replace("_", " ") for seed in seeds), "range", "mean [95 %]"], rows)


def eps_label(value: float) -> str:
    """``clean`` for 0, otherwise ``ε = 0.5``."""
    return f"ε = {eps_text(value)}" if value else "clean"


def _chosen(eps: Iterable[str], known: Iterable[float], table: str) -> list[float]:
    by_text = {eps_text(value): value for value in sorted(set(known))}
    if not eps or set(eps) - set(by_text):
        raise ValueError(f"table {table!r}: ε is {' '.join(eps)!r}. Write one or more of {', '.join(by_text)}")
    return [by_text[text] for text in eps]


def label_efficiency_tables(results: Path, run: str) -> str:
    """Two tables with one row for each acquisition function: accuracies, and numbers of labels."""
    efficiency = _efficiency(results, run)
    tables = [efficiency_table(efficiency, metrics) for metrics in (ACCURACIES, LABELS)]
    return "\n".join(_markdown(table.head, table.rows) for table in tables)


def gains_text(results: Path, run: str) -> str:
    """Comparison of each acquisition function with random, one list item each."""
    return "".join(f"- {gain_sentence(gain)}\n" for gain in gains_of(_efficiency(results, run)))


def _efficiency(results: Path, run: str) -> pd.DataFrame:
    """Label efficiency of a run; columns that an older run lacks are NaN."""
    efficiency = read_table(_folder(results, run) / "active_learning_efficiency.csv")
    added = ["lowest", "highest", "all_seeds_low", "all_seeds_high", "p_value", "p_value_holm", "n_comparisons"]
    return efficiency.reindex(columns=list(dict.fromkeys([*efficiency.columns, *added])))


TABLES: dict[str, Callable[..., str]] = {
    "clean": clean_table,
    "headline": headline_text,
    "claims": claims_table,
    "comparison": comparison_table,
    "finding": finding_table,
    "selection": selection_table,
    "worst_case": worst_case_table,
    "seeds": seeds_table,
    "label_efficiency": label_efficiency_tables,
    "gains": gains_text,
}


def outdated_documents(root: Path) -> dict[Path, str]:
    """Return the new text of every document whose tables differ from the archived results.

    Raises:
        ValueError: a marker is not valid.
        FileNotFoundError: a document is missing, or the results of a run.
    """
    texts = {name: (root / name).read_text(encoding="utf-8") for name in DOCUMENTS}
    new = {name: with_tables(text, name, root / RESULTS) for name, text in texts.items()}
    return {root / name: new[name] for name in DOCUMENTS if new[name] != texts[name]}


def with_tables(text: str, name: str, results: Path) -> str:
    """Return a document with new tables.

    Args:
        text: the document.
        name: name of its file, for error messages.
        results: folder of the archived results.

    Raises:
        ValueError: a marker is not closed, the kind of table is unknown, or a run is missing.
        FileNotFoundError: a run has no archived results.
    """

    def write(match: re.Match[str]) -> str:
        kind, *words = match["words"].split() or [""]
        if kind not in TABLES:
            raise ValueError(f"{name}: unknown kind of table {kind!r}. Use one of {', '.join(TABLES)}")
        if not words:
            raise ValueError(f"{name}: table {kind!r} has no run. Add the name of a folder in {RESULTS}")
        if "<!-- table:" in match["table"]:
            raise ValueError(f"{name}: table {match['words'].strip()!r} is not closed. Add '<!-- end table -->'")
        return f"{match['begin']}\n{TABLES[kind](results, *words)}\n{match['end']}"

    written, n_tables = MARKERS.subn(write, text)
    if n_tables != text.count("<!-- table:"):
        raise ValueError(f"{name}: a marker is not valid. Put it on a line of its own and add '<!-- end table -->'")
    return written


def _folder(results: Path, run: str) -> Path:
    folder = results / run
    if not (folder / "robustness.csv").is_file():
        archived = ", ".join(sorted(path.name for path in results.glob("*/"))) or "none"
        raise FileNotFoundError(
            f"no archived results in {folder}. Archived runs: {archived}. Run python -m docs.keep_results {run}"
        )
    return folder


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.write_tables", description=f"Write the tables of the documents from {RESULTS}/."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a table is out of date")
    check = parser.parse_args().check
    try:
        outdated = outdated_documents(Path())
    except (ValueError, OSError) as error:
        sys.exit(f"write_tables: {error}")
    if check and outdated:
        sys.exit(f"out of date: {', '.join(map(str, outdated))}. Run python -m docs.write_tables")
    for path, text in outdated.items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
