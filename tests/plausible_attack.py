"""Made-up outputs of the attack steps that are consistent with given records."""

import json
import math

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED
from tasks.records.tables import write_records
from tests.conftest import VALUES

COST = {"n_parameters": 1000, "multiply_adds": 2000, "n_eot_samples": 1}


def minimum_eps_in(records: pd.DataFrame) -> pd.DataFrame:
    """The result of a sweep that breaks exactly the images that adaptive PGD breaks in these records."""
    clean = records[records["attack"] == "clean"][["image", "label", "target", "norm", "correct"]]
    adaptive = records[(records["threat_model"] == "adaptive") & (records["attack"] == "pgd") & ~records["correct"]]
    broken = adaptive.groupby(["target", "image"])["eps"].min().rename("minimum_eps")
    found = clean.join(broken, on=["target", "image"]).fillna({"minimum_eps": math.inf})
    found.loc[~found["correct"], "minimum_eps"] = 0.0
    found["minimum_perturbation"] = 0.75 * found["minimum_eps"]
    curve = {"threat_model": "adaptive", "attack": "sweep", "found_by": "sweep"}
    return found.drop(columns="correct").assign(**curve).reset_index(drop=True)


def diagnostics_in(records: pd.DataFrame) -> pd.DataFrame:
    """Diagnostics of targets without masked gradients: noise breaks no image, an unbounded attack breaks all."""
    clean = records[records["attack"] == "clean"][["image", "target", "correct"]]
    grid = sorted(set(records["eps"]) - {0.0})
    values = {("unbounded_attack", 127.5): 0.0, ("zero_gradient", 0.0): 0.125, ("finite_gradient", 0.0): 1.0}
    values |= {
        ("max_logit_difference", 0.0): 0.0,
        ("repeatable_prediction", 0.0): 1.0,
        ("outputs_are_probabilities", 0.0): 0.0,
    }
    parts = [clean.assign(diagnostic=name, eps=eps, value=value) for (name, eps), value in values.items()]
    parts += [clean.assign(diagnostic="random_noise", eps=eps, value=clean["correct"].astype(float)) for eps in grid]
    undefended = clean[clean["target"] == UNDEFENDED]
    parts.append(undefended.assign(diagnostic="positive_control", eps=grid[-1], value=0.0))
    return pd.concat(parts, ignore_index=True).drop(columns="correct")


def write_attacks(records: pa.Table) -> None:
    """Write records of every target, and consistent other outputs, in the current folder as the steps do."""
    workspace = Workspace()
    frame = records.to_pandas()
    minimum_eps, diagnostics = minimum_eps_in(frame), diagnostics_in(frame)
    for target in frame["target"].unique():
        workspace.attack_folder(target).mkdir(parents=True, exist_ok=True)
        write_records(records.filter(pc.field("target") == target), workspace.records(target))
        for table, path in ((minimum_eps, workspace.minimum_eps(target)), (diagnostics, workspace.diagnostics(target))):
            write_records(pa.Table.from_pandas(table[table["target"] == target], preserve_index=False), path)
        workspace.cost(target).write_text(json.dumps(COST))
        if target in VALUES["defences"]:
            write_settings(workspace, target)


def write_settings(workspace: Workspace, defence: str) -> None:
    """Write the settings of a defence of the repository's params.yaml, as the step train_defence does."""
    path = workspace.defence_settings(defence)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(VALUES["defences"][defence]))
