"""Published and broken defences of ``docs/examples`` through the steps of the pipeline, beside adversarial training.

    python -m tests.broken_defences /path/to/sars-cov-2-ct WORKSPACE [--set attack.max_images=60 ...]

All steps up to ``evaluate`` run in the folder WORKSPACE. If the command is interrupted, it resumes after the last
finished step. It prints the table of ``docs/evidence/broken-defences.md`` and writes ``broken-defences.csv`` with every
eps to the workspace.

A defence is a test only if it helps under transfer attacks: at some eps its accuracy is at least 30 points above that
of the undefended classifier on the same adversarial images. The pipeline calls it broken if at such an eps its worst
case is at most 10 points above that of the undefended classifier, or if a check of gradient masking fails. The table
has the eps with the smallest difference of the worst cases.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from flows.workers import load_step
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Params, load_params
from tasks.records.vocabulary import AS_TRAINED
from tasks.runner import log_to_stderr, run_step

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
MISLEADING = "defense_gan_identity"
"""Row of ``defences``: Defense-GAN with a backward pass that misleads attacks."""
CLASSIFIERS = ("k_winners", "ensemble_diversity", "random_resizing", "thermometer")
OVERRIDES: dict[str, Any] = {
    "compute.threads": 1,
    "compute.device": "cpu",
    "acquire.source": "folder",
    "prepare.image_size": 64,
    "train_classifier.epochs": 15,
    "train_surrogates": [{"architecture": "cnn", "epochs": 8}],
    "train_autoencoder.epochs": 6,
    "attack.eps": [1, 2, 4, 8],
    "attack.saved_eps": [4],
    "attack.max_images": 60,
    "attack.max_validation_images": 20,
    "attack.max_black_box_images": 30,
    "attack.max_art_reference_images": 10,
    "analyze.eps": 4,
    "analyze.detector_evasion.eps": [],
}
MIN_TRANSFER_GAIN = 0.30
MAX_WORST_CASE_GAIN = 0.10
ROUNDING = 1e-9
MASKING = {
    "gradients",
    "gradient_agreement",
    "unbounded_attack",
    "black_box",
    "transfer_vs_adaptive",
    "random_noise",
    "outputs",
}
"""Checks that fail if the gradients of a defence mislead the attacks."""


def main() -> None:
    """Run the steps that have not run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder with one subfolder for each class")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other values of parameters")
    arguments = parser.parse_args()
    log_to_stderr()
    workspace = Workspace(arguments.workspace.resolve())
    params = write_workspace(workspace, arguments.images.resolve(), dict(each.split("=", 1) for each in arguments.set))
    run(workspace, params)
    table = pd.DataFrame([row for defence in params.selected_defences for row in rows_of(workspace, defence)])
    table.to_csv(workspace.root / "broken-defences.csv", index=False, float_format="%.4f")
    print_table(table)


def examples() -> list[str]:
    """Names of the example files."""
    return sorted(path.stem for path in EXAMPLES.glob("*.py"))


def example_rows() -> dict[str, dict[str, Any]]:
    """Rows of ``defences`` of all examples."""
    roles = {name: "classifier" if name in CLASSIFIERS else "purifier" for name in examples()}
    rows = {name: {"kind": "plugin", "factory": f"{name}:build", "role": role} for name, role in roles.items()}
    return rows | {MISLEADING: rows["defense_gan"] | {"identity": True}}


def write_workspace(workspace: Workspace, images: Path, changes: dict[str, str]) -> Params:
    """Write parameters and plug-ins."""
    workspace.plugins.mkdir(parents=True, exist_ok=True)
    for name in examples():
        shutil.copyfile(EXAMPLES / f"{name}.py", workspace.plugins / f"{name}.py")
    yaml = YAML()
    values = yaml.load(EXAMPLES.parents[1] / "params.yaml")
    values["defences"] |= example_rows()
    chosen = {
        "selected_defences": ["autoencoder", *examples(), MISLEADING, "adversarial_training"],
        "acquire.folder": str(images),
    }
    parsed = {key: YAML(typ="safe").load(value) for key, value in changes.items()}
    for key, value in (OVERRIDES | chosen | parsed).items():
        *sections, name = key.split(".")
        section = values
        for each in sections:
            section = section[each]
        section[name] = value
    yaml.dump(values, workspace.params_file)
    return load_params(workspace.params_file)


def run(workspace: Workspace, params: Params) -> None:
    """Run every step that is not in the list of finished ones."""
    before = ("check_params", "acquire", "validate", "prepare", "train_classifier", "train_surrogates")
    steps = [(step, "") for step in (*before, "train_autoencoder", "attack")]
    for defence in params.selected_defences:
        steps += [("train_defence", defence), ("attack_defence", defence)]
    finished = workspace.root / "finished.txt"
    done = finished.read_text().splitlines() if finished.exists() else []
    for step, defence in [*steps, ("evaluate", "")]:
        if f"{step} {defence}" in done:
            continue
        began = time.perf_counter()
        run_step(load_step(step), workspace, params, defence=defence or None)
        print(f"{step} {defence}: {time.perf_counter() - began:.0f} s", flush=True)
        with finished.open("a") as file:
            file.write(f"{step} {defence}\n")


def rows_of(workspace: Workspace, defence: str) -> list[dict[str, Any]]:
    """Accuracies of a defence and of the undefended classifier at each eps."""
    records = {name: pd.read_parquet(workspace.records(name)) for name in (UNDEFENDED, defence)}
    clean = json.loads(workspace.metrics.read_text())["clean"][defence]["accuracy"]
    worst = pd.read_csv(workspace.root / "data/evaluate/worst_case.csv")
    worst = worst[(worst["operating_point"] == AS_TRAINED) & (worst["threat_model"] == "adaptive")]
    worst = worst[worst["metric"] == "accuracy"].set_index(["target", "eps"])["value"]
    checks = [check for check in json.loads(workspace.checks.read_text()) if check["target"] == defence]
    agreement = next(check["value"] for check in checks if check["key"] == "gradient_agreement")
    failed = sorted(check["key"] for check in checks if check["status"] == "FAIL")
    rows = []
    for eps in sorted(set(records[defence]["eps"]) - {0.0}):
        row = {"defence": defence, "clean": clean, "eps": eps, "agreement": agreement, "failed": " ".join(failed)}
        for name, key in ((defence, ""), (UNDEFENDED, "undefended_")):
            row[f"{key}transfer"] = transfer_accuracy(records[name], eps)
            row[f"{key}worst"] = worst[name, eps]
        rows.append(row)
    return rows


def transfer_accuracy(records: pd.DataFrame, eps: float) -> float:
    """Accuracy on the adversarial images of the undefended classifier and of the surrogates, in the worst case."""
    used = records["threat_model"] == "transfer"
    if (records["target"] == UNDEFENDED).all():
        # the same images: there, those of the undefended classifier are adaptive
        used |= records["attack"].isin(["fgsm", "pgd"])
    return float(records[used & (records["eps"] == eps)].groupby("image")["correct"].all().mean())


def print_table(table: pd.DataFrame) -> None:
    """One row of Markdown for each defence, at an eps where it helps under transfer attacks."""
    print(
        "| defence | clean accuracy | eps | gain under transfer | worst case − undefended classifier "
        "| agreement of gradients | failed checks | result |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |")
    table = table.assign(
        gain=table["transfer"] - table["undefended_transfer"], worst=table["worst"] - table["undefended_worst"]
    )
    for defence, rows in table.groupby("defence", sort=False):
        helpful = rows[rows["gain"] >= MIN_TRANSFER_GAIN - ROUNDING]
        row = helpful.loc[helpful["worst"].idxmin()] if len(helpful) else rows.loc[rows["gain"].idxmax()]
        is_broken = row["worst"] <= MAX_WORST_CASE_GAIN + ROUNDING or MASKING & set(row["failed"].split())
        result = "no test" if helpful.empty else "broken" if is_broken else "not broken"
        print(
            f"| {str(defence).replace('_', ' ')} | {100 * row['clean']:.1f} % | {row['eps']:g} | "
            f"{100 * row['gain']:+.1f} | {100 * row['worst']:+.1f} | {row['agreement']:.2f} | "
            f"{row['failed'].replace(' ', ', ') or 'none'} | {result} |"
        )


if __name__ == "__main__":
    main()
