"""Write the documents' tables from the kept results: ``python -m docs.write_tables [--check]``.

A table stands between two marks, and what stands between them is replaced::

    <!-- table: clean stratified-80-20 grouped-80-20 -->
    <!-- end table -->

``clean RUN ...`` is the classifier on clean test images, a row a run; ``robust RUN [ATTACK ...]`` is accuracy by ε, a
column a curve; ``finding RUN`` is the finding in a sentence or two; ``verdict RUN`` is what becomes of the study's
claims; ``benchmark RUN EPS ...`` ranks the defences by the worst case for each image at these ε;
``learning RUN`` is what labels are worth by acquisition function, and ``learned RUN`` the same in sentences. RUN is a
folder of ``docs/evidence/results/``.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from docs import RESULTS
from tasks.evaluation.robustness import clean_rows
from tasks.labelling.learning_curves import RANDOM
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import spoken
from tasks.reporting.findings import Row, attack_name, attacks_of, curves_under, eps_of, headline_of
from tasks.reporting.results import read_json, read_table
from tasks.reporting.sections.active_learning import comparison, efficiency_tables
from tasks.reporting.sections.benchmark import compared
from tasks.reporting.sections.verdict import elsewhere
from tasks.statistics.formatting import eps_text, percent, with_interval

DOCUMENTS = (Path("README.md"), Path("docs/evidence/results.md"))
MARKS = re.compile(r"(?P<begin><!-- table:(?P<words>[^\n]*?)-->\n)(?P<table>.*?)(?P<end><!-- end table -->)", re.DOTALL)
STUDY = ["the study", "", "", "93.23 %", "", "", ""]


def clean_table(*runs: str) -> str:
    """The undefended classifier on clean test images, a row a run, below the study's."""
    infos = {run: read_json(_folder(run) / "dataset.json") for run in runs}
    rows = [] if all(info["is_phantom"] for info in infos.values()) else [STUDY]
    for run, info in infos.items():
        table = read_table(_folder(run) / "robustness.csv")
        row: Row = clean_rows(table).loc[UNDEFENDED]
        shares = [percent(row[metric]) for metric in ("precision", "recall", "f1")]
        leaked = percent(info["leakage"]["group_in_train"])
        name = f"{run} (phantoms)" if info["is_phantom"] else run
        n_test = sum(info["n_images"]["test"].values())
        n = str(row["n"]) if row["n"] == n_test else f"{row['n']} of {n_test}"
        rows.append([name, n, leaked, with_interval(row), *shares])
    head = ["run", "test images", "with their group in training", "accuracy [95 %]", "precision", "recall", "F1"]
    return _markdown(head, rows)


def robust_table(run: str, *attacks: str) -> str:
    """Accuracy by ε (a row each, 0 for clean images), a column for each curve under the attacks (none given: all)."""
    table = read_table(_folder(run) / "robustness.csv")
    if unknown := sorted(set(attacks) - set(attacks_of(table))):
        raise ValueError(f"{run} has no attack {unknown}; it has {attacks_of(table)}")
    curves = [curve for attack in attacks or attacks_of(table) for curve in curves_under(table, attack)]
    head = ["ε in 1/255", *(f"{attack_name(curve.attack)}: {curve.name}" for curve in curves)]
    rows = [
        [f"{eps_text(eps)}{'' if eps else ' (clean)'}", *(with_interval(curve.at(eps)) for curve in curves)]
        for eps in [0.0, *eps_of(table)]
    ]
    return _markdown(head, rows)


def finding(run: str) -> str:
    """The finding in sentences, as the report has it."""
    is_phantom = read_json(_folder(run) / "dataset.json")["is_phantom"]
    sentences = headline_of(read_table(_folder(run) / "robustness.csv")).sentences
    return f"{'Phantoms (computer-drawn), not patients: ' if is_phantom else ''}{' '.join(sentences)}\n"


def verdict_table(run: str) -> str:
    """The study's claims, a row each: our figure with its interval, and the outcome."""
    rows = []
    for claim in read_json(_folder(run) / "verdict.json"):
        numbers = [claim[name] for name in ("value", "low", "high")]
        value, low, high = ("–" if number is None else f"{number:.3f}" for number in numbers)
        rows.append(
            [
                claim["claim"],
                claim["figure"],
                f"{value} [{low}, {high}]",
                f"**{claim['outcome']}**",
                elsewhere(claim) or "–",
            ]
        )
    return _markdown(["claim of the study", "measured", "figure [95 %]", "outcome", "at other ε in 1/255"], rows)


def benchmark_table(run: str, *at: str) -> str:
    """Every target under the worst attack for each image, ranked by the adaptive one at the first of these ε.

    Columns: clean images, adaptive at each ε, then at the first of them black box, transfer, and McNemar's test against
    the next in rank.

    Raises:
        ValueError: no ε is named, or one that the run does not have.
    """
    table = read_table(_folder(run) / "benchmark.csv")
    known = {eps_text(eps): eps for eps in sorted(set(table["eps"]))}
    if not at or set(at) - set(known):
        raise ValueError(f"the table 'benchmark {run}' needs some of these ε: {', '.join(known)}; not {' '.join(at)!r}")
    wanted = [known[eps] for eps in at]
    points = {names: rows.set_index("target") for names, rows in table.groupby(["threat_model", "eps"])}

    def cell(threat_model: str, eps: float, target: str) -> str:
        rows = points.get((threat_model, eps))
        return with_interval(rows.loc[target]) if rows is not None and target in rows.index else "–"

    rows = []
    for target, row in points["adaptive", wanted[0]].sort_values("rank").iterrows():
        others = [cell(threat_model, wanted[0], str(target)) for threat_model in ("black_box", "transfer")]
        adaptive = [cell("adaptive", eps, str(target)) for eps in wanted]
        rows.append([spoken(str(target)), with_interval(row, "clean_accuracy"), *adaptive, *others, compared(row)])
    first = f"ε = {eps_text(wanted[0])}"
    head = ["target", "clean", *(f"adaptive, ε = {eps_text(eps)}" for eps in wanted)]
    return _markdown([*head, f"black box, {first}", f"transfer, {first}", f"against the next, {first}"], rows)


def learning_table(run: str) -> str:
    """Acquisition functions of active learning, a row each: accuracies, then labels that are needed."""
    tables = efficiency_tables(read_table(_folder(run) / "active_learning_efficiency.csv"))
    return "\n".join(_markdown(table.head, table.rows) for table in tables)


def learned(run: str) -> str:
    """Whether each acquisition function beats random, in sentences."""
    efficiency = read_table(_folder(run) / "active_learning_efficiency.csv")
    names = [name for name in efficiency["acquisition"].unique() if name != RANDOM]
    return "\n".join(f"- {comparison(efficiency, name)}" for name in names) + "\n"


TABLES: dict[str, Callable[..., str]] = {
    "clean": clean_table,
    "robust": robust_table,
    "finding": finding,
    "verdict": verdict_table,
    "benchmark": benchmark_table,
    "learning": learning_table,
    "learned": learned,
}


def rewritten(text: str, name: str) -> str:
    """A document with its tables written anew.

    Args:
        text: the document.
        name: of its file, for messages.

    Raises:
        ValueError: a mark that is not closed, an unknown table, or one that lacks its runs.
        FileNotFoundError: a run that was not kept.
    """

    def write(match: re.Match[str]) -> str:
        kind, *words = match["words"].split() or [""]
        if kind not in TABLES:
            raise ValueError(f"{name}: unknown table {kind!r}; known: {', '.join(TABLES)}")
        if not words:
            raise ValueError(f"{name}: the table {kind!r} needs the name of a run in {RESULTS}")
        if "<!-- table:" in match["table"]:
            raise ValueError(f"{name}: the table {match['words'].strip()!r} has no '<!-- end table -->'")
        return f"{match['begin']}\n{TABLES[kind](*words)}\n{match['end']}"

    written, n_tables = MARKS.subn(write, text)
    if n_tables != text.count("<!-- table:"):
        raise ValueError(f"{name}: a table has no '<!-- end table -->', or its mark no line of its own")
    return written


def _folder(run: str) -> Path:
    folder = RESULTS / run
    if not (folder / "robustness.csv").is_file():
        kept = ", ".join(sorted(path.name for path in RESULTS.glob("*/"))) or "none"
        raise FileNotFoundError(f"no kept results in {folder} (kept: {kept}): python -m docs.keep_results {run}")
    return folder


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description="Write the documents' tables from docs/evidence/results/.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    check = parser.parse_args().check
    try:
        texts = {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}
        changed = {path: new for path, text in texts.items() if (new := rewritten(text, str(path))) != text}
    except (ValueError, OSError) as error:
        sys.exit(f"write_tables: {error}")
    if check and changed:
        sys.exit(f"out of date: {', '.join(map(str, changed))}; run python -m docs.write_tables")
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
        print(f"{path} written")


if __name__ == "__main__":
    main()
