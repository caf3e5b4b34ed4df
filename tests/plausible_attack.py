"""What steps that attack leave beside their records, made up to go with them."""

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
    """What a sweep would write that breaks exactly what adaptive PGD breaks in these records."""
    clean = records[records["attack"] == "clean"][["image", "label", "target", "norm", "correct"]]
    adaptive = records[(records["threat_model"] == "adaptive") & (records["attack"] == "pgd") & ~records["correct"]]
    broken = adaptive.groupby(["target", "image"])["eps"].min().rename("smallest_eps")
    found = clean.join(broken, on=["target", "image"]).fillna({"smallest_eps": math.inf})
    found.loc[~found["correct"], "smallest_eps"] = 0.0
    found["minimal_eps"] = 0.75 * found["smallest_eps"]
    curve = {"threat_model": "adaptive", "attack": "sweep", "found_by": "sweep"}
    return found.drop(columns="correct").assign(**curve).reset_index(drop=True)


def probes_in(records: pd.DataFrame) -> pd.DataFrame:
    """What probes of sound targets would find: noise changes nothing, and a huge perturbation breaks everything."""
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
    """Records of every target in them, and what goes with these, where the steps leave them."""
    frame = records.to_pandas()
    smallest, probes = smallest_eps_in(frame), probes_in(frame)
    for target in frame["target"].unique():
        Workspace().attack_folder(target).mkdir(parents=True, exist_ok=True)
        write_records(records.filter(pc.field("target") == target), Workspace().records(target))
        for table, path in ((smallest, Workspace().smallest_eps(target)), (probes, Workspace().probes(target))):
            write_records(pa.Table.from_pandas(table[table["target"] == target], preserve_index=False), path)
        Workspace().cost(target).write_text(json.dumps(COST))
