"""What results may depend on, and what not: the seed, and nothing of how files happen to lie in a folder."""

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
    "benchmark": ["autoencoder"],
    "train_classifier.epochs": 1,
    "train_autoencoder.epochs": 1,
    "defences.retrained_autoencoder.training.epochs": 1,
    "defences.noise.n_draws": 2,
    "attack.eps": [4],
    "analyze.n_resamples": 100,
}
Step = Callable[..., None]


def made_by(step: Step, params: Params, *defence: str) -> dict[str, str]:
    """What a step writes into its emptied folder: SHA-256 by file."""
    folder = Workspace().step_folder(step.__name__, *defence)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    step(params, Tracker(), *defence)
    shutil.rmtree("checkpoints", ignore_errors=True)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize(
    ("step", "defence", "drawn"),
    [
        (train_classifier, [], {"classifier.safetensors", "history.csv"}),
        (train_autoencoder, [], {"autoencoder.safetensors", "history.csv"}),
        (train_defence, ["retrained_autoencoder"], {"purifier.safetensors", "history.csv"}),
        (attack, [], {"records.parquet", "smallest_eps.parquet", "probes.parquet", "perturbations/pgd-eps4.npz"}),
    ],
)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    step: Step, defence: list[str], drawn: set[str], workspace: Path, params_with: Callable[..., Params]
) -> None:
    first, again, other = (made_by(step, params_with(FEW | {"seed": seed}), *defence) for seed in (0, 0, 1))
    assert first == again
    assert set(other) == set(first)
    assert {name for name in first if first[name] != other[name]} >= drawn


@pytest.mark.faults
def test_resamples_and_folds_follow_the_seed(workspace: Path, params_with: Callable[..., Params]) -> None:
    made_by(attack, params_with(FEW))
    made_by(attack_defence, params_with(FEW), "autoencoder")
    first, again, other = (made_by(analyze, params_with(FEW | {"seed": seed})) for seed in (0, 0, 1))
    assert first == again
    drawn = {"classification.csv", "features.csv", "resilience.csv", "robustness_area.csv"}
    assert {name for name in first if first[name] != other[name]} >= drawn
    # what is counted is not drawn
    assert first["reliability.csv"] == other["reliability.csv"]


class TestOrderOfFiles:
    """The same folder, whose files were made in another order, so that it lists them in another."""

    @pytest.fixture
    def folders(self) -> Iterator[list[Path]]:
        # a file system in memory lists what was made last first; others may sort by a hash of the name
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
            folders = [Path(place, name, "scans") for name in ("forwards", "backwards")]
            drawn = np.random.default_rng(0).integers(0, 256, (36, 40, 50), dtype=np.uint8)
            files = [(f"{'ab'[i % 2]}/{i // 12}/{i % 12 + 1}.png", pixels) for i, pixels in enumerate(drawn)]
            for folder, in_order in zip(folders, (files, files[::-1]), strict=True):
                for name, pixels in in_order:
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(folder / name)
            yield folders

    def test_it_changes_no_byte_of_what_the_first_steps_make(
        self, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params_with: Callable[..., Params]
    ) -> None:
        listed = [[file.name for file in (folder / "a" / "0").iterdir()] for folder in folders]
        if listed[0] == listed[1]:
            pytest.skip("this file system lists files in one order, whichever they were made in")
        made = []
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
            made.append([made_by(step, params) for step in (acquire, validate, prepare)])
        assert made[0] == made[1]
