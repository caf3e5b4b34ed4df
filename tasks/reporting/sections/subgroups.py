"""Subgroups: accuracy, sensitivity and specificity of each, and significant gaps."""

from tasks.reporting.formats import estimate, p_text, signed_points
from tasks.reporting.headline import Headline
from tasks.reporting.results import Results
from tasks.reporting.section import Section
from tasks.reporting.tables import Metrics, Table, key_text, metrics_table
from tasks.statistics.formatting import percent
from tasks.statistics.multiplicity import SIGNIFICANCE_LEVEL

KEYS = {
    "target": "target",
    "threat_model": "threat model",
    "eps": "ε in 1/255",
    "attribute": "attribute",
    "subgroup": "subgroup",
}


def subgroups_section(results: Results, headline: Headline) -> Section:
    """Return the metrics of each subgroup, and the gaps that are significant after Holm's correction."""
    assert results.subgroups is not None
    table = results.subgroups
    metrics: Metrics = {str(name): (str(name).replace("_", " "), percent) for name in table["metric"].unique()}
    # images and groups of the accuracy; those of a recall are a part of them
    counts = table[table["metric"] == "accuracy"].set_index(list(KEYS))[["n", "n_groups"]]
    counted = table.drop(columns=["n", "n_groups"]).join(counts, on=list(KEYS))
    tested = table[table["p_value"].notna()]
    rows = [
        [
            *(key_text(key, row[key]) for key in KEYS),
            row["metric"].replace("_", " "),
            estimate(row, signed_points, "gap"),
            p_text(row["adjusted_p_value"]),
        ]
        for row in tested[tested["adjusted_p_value"] < SIGNIFICANCE_LEVEL].to_dict("records")
    ]
    values = {
        "metrics": metrics_table(counted, KEYS, metrics, {"n": "images", "n_groups": f"{headline.unit}s"}),
        "gaps": Table([*KEYS.values(), "metric", "gap to all other images (points)", "adjusted p-value"], rows),
        "n_comparisons": int(table["n_comparisons"].max()),
        "attributes": list(dict.fromkeys(table["attribute"])),
        "unit": headline.unit,
    }
    return Section("subgroups", "Subgroups", values)
