"""Results depend on the seed, and not on the order of files in a folder."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.acquire import acquire
from tasks.analyze import analyze
from tasks.attack import attack
from tasks.attack_defence import attack_defence
from tasks.core.workspace import Workspace
from tasks.params import Params
from tasks.prepare import prepare
from tasks.tracking import Tracker
from tasks.train_autoencoder import train_autoencoder
from tasks.train_classifier import train_classifier
from tasks.train_defence import train_defence
from tasks.validate import validate
from tests.small_workspace import SMALL

FEW = SMALL | {
    "selected_defences": ["autoencoder"],
    "train_classifier.epochs": 1,
    "train_autoencoder.epochs": 1,
    "defences.retrained_autoencoder.training.epochs": 1,
    "defences.noise.n_eot_samples": 2,
    "attack.eps": [4],
}
Step = Callable[..., None]


def outputs_of(step: Step, params: Params, *defence: str) -> dict[str, str]:
    """Run a step in an empty folder and return the SHA-256 of each file that it writes."""
    folder = Workspace().step_folder(step.__name__, *defence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    step(Workspace(), params, Tracker(), *defence)
    shutil.rmtree("checkpoints", ignore_errors=True)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(
    ("step", "defence", "random_files"),
    [
        (train_classifier, [], {"classifier.safetensors", "history.csv"}),
        (train_autoencoder, [], {"autoencoder.safetensors", "history.csv"}),
        (train_defence, ["retrained_autoencoder"], {"purifier.safetensors", "history.csv"}),
        (attack, [], {"records.parquet", "minimum_eps.parquet", "perturbations/pgd-eps4.npz"}),
    ],
)
def test_equal_seeds_give_the_same_bytes_and_another_seed_gives_others(
    step: Step, defence: list[str], random_files: set[str], small_folder: Path, params_with: Callable[..., Params]
) -> None:
    first, again, other = (outputs_of(step, params_with(FEW | {"seed": seed}), *defence) for seed in (0, 0, 1))
    assert first == again
    assert set(other) == set(first)
    assert {name for name in first if first[name] != other[name]} >= random_files


@pytest.mark.faults
def test_bootstrap_resamples_and_folds_depend_on_the_seed(
    small_folder: Path, params_with: Callable[..., Params]
) -> None:
    outputs_of(attack, params_with(FEW))
    outputs_of(attack_defence, params_with(FEW), "autoencoder")
    first, again, other = (outputs_of(analyze, params_with(FEW | {"seed": seed})) for seed in (0, 0, 1))
    assert first == again
    random_files = {"classification.csv", "features.csv", "resilience.csv", "robustness_area.csv"}
    assert {name for name in first if first[name] != other[name]} >= random_files
    # counts are not random
    assert first["reliability.csv"] == other["reliability.csv"]


class TestOrderOfFiles:
    """Two folders with the same files, which were written in different orders."""

    @pytest.fixture
    def folders(self) -> Iterator[list[Path]]:
        # a file system in memory lists the last file first; others may sort by a hash of the name
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
            folders = [Path(root, name, "scans") for name in ("forwards", "backwards")]
            arrays = np.random.default_rng(0).integers(0, 256, (36, 40, 50), dtype=np.uint8)
            files = [(f"{'ab'[i % 2]}/{i // 12}/{i % 12 + 1}.png", pixels) for i, pixels in enumerate(arrays)]
            for folder, in_order in zip(folders, (files, files[::-1]), strict=True):
                for name, pixels in in_order:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(folder / name)
            yield folders

    def test_the_outputs_of_the_first_steps_are_the_same_bytes(
        self, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
    ) -> None:
        listed = [[file.name for file in (folder / "a" / "0").iterdir()] for folder in folders]
        if listed[0] == listed[1]:
            pytest.skip("this file system lists files in an order that does not depend on when they were written")
        outputs = []
        for folder in folders:
            monkeypatch.chdir(folder.parent)
            params = params_with(
                {
                    "acquire.source": "folder",
                    "acquire.folder": "scans",
                    "acquire.classes": ["a", "b"],
                    "acquire.positive_class": "b",
                    "validate.min_images_per_class": 10,
                    "validate.min_side": 40,
                    "prepare.image_size": 32,
                }
            )
            outputs.append([outputs_of(step, params) for step in (acquire, validate, prepare)])
        assert outputs[0] == outputs[1]
