"""All attacks on one target, in lanes that can be taken side by side: what steps that attack write."""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.attacks.campaign import (
    WHITE_BOX,
    Campaign,
    clean_records,
    craft_batch,
    digest_of_images,
    probe_part,
    search,
    searches_of,
    set_up_campaign,
    transfer,
)
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.models.cost import cost_of
from tasks.params import UNDEFENDED, Params
from tasks.records.adversarial_images import kept_path, merge_perturbations
from tasks.records.tables import write_records
from tasks.records.vocabulary import SWEEP
from tasks.tracking import Tracker

PROBES = "probes"

Lane = Callable[[], dict[str, Path]]
"""Finishes shards of some images, each of which may need the one before; their folders by attack (or ``probes``)."""


def attack_target(workspace: Workspace, params: Params, tracker: Tracker, name: str) -> None:
    """Attack a target end to end (``adaptive``), a defended one also by what was crafted without it (``transfer``).

    What is transferred is what the step ``attack`` kept. A stronger PGD looks for the smallest eps that breaks each
    image, end to end, and the suite for more.

    The work on the target itself is cut in shards: some images, attacked at every eps. Each finished one is kept until
    the step has finished, so that a killed attack goes on where it was, and what others have finished
    (:func:`finish_lane`) is not done again.

    Args:
        workspace: where inputs are read and outputs written.
        params: all parameters.
        tracker: hears of the data set and of the records.
        name: ``undefended``, or that of a defence.

    Raises:
        ValueError: there are no test images, or those of the step ``attack`` were others.
        FileNotFoundError: a model, or what is to be transferred, is missing.
    """
    tracker.dataset(workspace.prepare, "prepared", "attack")
    campaign = set_up_campaign(workspace, params, name)
    settings = campaign.settings
    tables = [clean_records(campaign)]
    if name != UNDEFENDED:
        tables += [transfer(workspace, campaign, kind, eps) for kind in settings.attacks for eps in settings.eps]

    finished: dict[str, list[Path]] = defaultdict(list)
    for lane in lanes_of(campaign):
        for attack, shard in lane().items():
            finished[attack].append(shard)

    for kind in settings.attacks:
        records = joined(finished[kind], "records.parquet")
        tables.append(records.sort_by([("eps", "ascending"), ("image", "ascending")]))
        for eps in campaign.kept_eps:
            kept_path(workspace, name, kind, eps).parent.mkdir(exist_ok=True)
            merge_perturbations(
                [shard / f"eps{eps:g}.npz" for shard in finished[kind]], kept_path(workspace, name, kind, eps)
            )
    searched = [shard for attack in searches_of(settings) for shard in finished[attack]]
    write_records(pa.concat_tables(tables), workspace.records(name))
    write_records(joined(searched, "smallest_eps.parquet"), workspace.smallest_eps(name))
    write_records(joined(finished[PROBES], "probes.parquet"), workspace.probes(name))
    cost = cost_of(campaign.target, campaign.data.floats(campaign.rows[:1]))
    write_json(cost, workspace.cost(name))
    tracker.metrics({f"cost/{key}": value for key, value in cost.items()})
    tracker.metrics({"cost/milliseconds_an_image": campaign.milliseconds})
    for path in (workspace.records(name), workspace.smallest_eps(name), workspace.probes(name)):
        tracker.artifact(path)


def count_lanes(workspace: Workspace, params: Params, name: str) -> int:
    """How many lanes :func:`finish_lane` knows for a target."""
    return len(lanes_of(set_up_campaign(workspace, params, name)))


def finish_lane(workspace: Workspace, params: Params, name: str, number: int) -> None:
    """Finish one lane of the attack on a target, anywhere where the workspace is the working folder.

    Args:
        workspace: where inputs are read and outputs written.
        params: all parameters.
        name: ``undefended``, or that of a defence.
        number: from 0 to ``count_lanes`` - 1; the longest come first.
    """
    lanes_of(set_up_campaign(workspace, params, name))[number]()


def lanes_of(campaign: Campaign) -> list[Lane]:
    """All lanes, the longest first."""
    parts, batches = campaign.large_batches, campaign.batches
    crafting: dict[str, list[Lane]] = {
        kind: [partial(finish_crafting, campaign, kind, batch) for batch in batches]
        for kind in campaign.settings.attacks
    }
    return [
        *(partial(finish_searches, campaign, part) for part in parts),
        *crafting.get("pgd", []),
        *(partial(finish_probes, campaign, part) for part in parts),
        *crafting.get("fgsm", []),
    ]


def finish_crafting(campaign: Campaign, kind: str, rows: np.ndarray) -> dict[str, Path]:
    """A batch under one attack at every eps."""
    settings = campaign.settings
    shard = campaign.shards.finish(
        f"{kind} on {campaign.name}, {len(rows)} images at {len(settings.eps)} eps",
        partial(craft_batch, campaign, kind, rows),
        attack=kind,
        how=settings.model_dump(mode="json", include={"mode", "pgd", "keep_eps"}),
        images=digest_of_images(campaign.data, rows),
    )
    return {kind: shard}


def finish_probes(campaign: Campaign, rows: np.ndarray) -> dict[str, Path]:
    """Small experiments with some images, for the checks."""
    shard = campaign.shards.finish(
        f"probes of {campaign.name}, {len(rows)} images",
        partial(probe_part, campaign, rows),
        probes=True,
        images=digest_of_images(campaign.data, rows),
    )
    return {PROBES: shard}


def finish_searches(campaign: Campaign, rows: np.ndarray) -> dict[str, Path]:
    """Attacks that look for the smallest eps that breaks each of some images, one after the other."""
    settings, finished = campaign.settings, dict[str, Path]()
    how: dict[str, Any] = dict.fromkeys(searches_of(campaign.settings), settings.suite.model_dump(mode="json"))
    how[SWEEP] = [settings.sweep.model_dump(mode="json"), settings.pgd.relative_step]
    before: list[str] = []
    for attack in searches_of(campaign.settings):
        known = pq.read_table(finished[before[-1]] / "smallest_eps.parquet") if before else None
        finished[attack] = campaign.shards.finish(
            f"{attack} on {campaign.name}, {len(rows)} images",
            partial(search, campaign, attack, rows, known),
            search={each: how[each] for each in [*before, attack]},
            images=digest_of_images(campaign.data, rows),
        )
        before += [attack] if attack in WHITE_BOX else []
    return finished


def joined(shards: list[Path], name: str) -> pa.Table:
    """The tables of this name, one after the other."""
    return pa.concat_tables(pq.read_table(shard / name) for shard in shards)
