"""Made-up outputs of the attack steps that are consistent with given records."""

import json
import math

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED
from tasks.records.tables import write_records

COST = {"parameters": 1000, "multiply_adds": 2000, "looks": 1}


def smallest_eps_in(records: pd.DataFrame) -> pd.DataFrame:
    """The result of a sweep that breaks exactly the images that adaptive PGD breaks in these records."""
    clean = records[records["attack"] == "clean"][["image", "label", "target", "norm", "correct"]]
    adaptive = records[(records["threat_model"] == "adaptive") & (records["attack"] == "pgd") & ~records["correct"]]
    broken = adaptive.groupby(["target", "image"])["eps"].min().rename("smallest_eps")
    found = clean.join(broken, on=["target", "image"]).fillna({"smallest_eps": math.inf})
    found.loc[~found["correct"], "smallest_eps"] = 0.0
    found["minimal_eps"] = 0.75 * found["smallest_eps"]
    curve = {"threat_model": "adaptive", "attack": "sweep", "found_by": "sweep"}
    return found.drop(columns="correct").assign(**curve).reset_index(drop=True)


def probes_in(records: pd.DataFrame) -> pd.DataFrame:
    """Diagnostics of targets without masked gradients: noise breaks no image, an unbounded attack breaks all."""
    clean = records[records["attack"] == "clean"][["image", "target", "correct"]]
    grid = sorted(set(records["eps"]) - {0.0})
    values = {("huge", 127.5): 0.0, ("zero_gradient", 0.0): 0.125, ("finite_gradient", 0.0): 1.0}
    values |= {("spread", 0.0): 0.0, ("steady", 0.0): 1.0, ("probabilities", 0.0): 0.0}
    parts = [clean.assign(probe=probe, eps=eps, value=value) for (probe, eps), value in values.items()]
    parts += [clean.assign(probe="noise", eps=eps, value=clean["correct"].astype(float)) for eps in grid]
    bare = clean[clean["target"] == UNDEFENDED]
    parts.append(bare.assign(probe="broken_defence", eps=grid[-1], value=0.0))
    return pd.concat(parts, ignore_index=True).drop(columns="correct")


def write_attacks(records: pa.Table) -> None:
    """Write records of every target, and consistent other outputs, in the current folder as the steps do."""
    workspace = Workspace()
    frame = records.to_pandas()
    smallest, probes = smallest_eps_in(frame), probes_in(frame)
    for target in frame["target"].unique():
        workspace.attack_folder(target).mkdir(parents=True, exist_ok=True)
        write_records(records.filter(pc.field("target") == target), workspace.records(target))
        for table, path in ((smallest, workspace.smallest_eps(target)), (probes, workspace.probes(target))):
            write_records(pa.Table.from_pandas(table[table["target"] == target], preserve_index=False), path)
        workspace.cost(target).write_text(json.dumps(COST))
