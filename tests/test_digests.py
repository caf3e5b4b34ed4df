from pathlib import Path

import numpy as np
import torch
from torch import nn

from tasks.core.digests import digest_of_arrays, digest_of_folder, digest_of_model
from tasks.defences.preprocessing import AdditiveGaussianNoise
from tasks.defences.purified import Purified


def test_the_digest_of_an_array_depends_on_values_shape_and_type_but_not_on_memory_layout() -> None:
    zeros = np.zeros((2, 3), dtype=np.float32)
    others = [zeros + np.float32(1e-30), zeros.reshape(3, 2), zeros.view(np.int32)]
    assert len({digest_of_arrays(array) for array in [zeros, *others]}) == 4
    assert digest_of_arrays(zeros) == digest_of_arrays(np.zeros((4, 3), dtype=np.float32)[::2])


def test_the_digest_of_a_model_depends_on_weights_buffers_and_layers() -> None:
    def build(activation: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), activation)

    base, other_layer, other_weight, other_buffer = (
        build(layer) for layer in (nn.ReLU(), nn.Tanh(), nn.ReLU(), nn.ReLU())
    )
    with torch.no_grad():
        other_weight[0].weight[0, 0] += 1e-6
        other_buffer[1].running_mean += 1e-6
    assert len({digest_of_model(model) for model in (base, other_layer, other_weight, other_buffer)}) == 4
    assert digest_of_model(base) == digest_of_model(build(nn.ReLU()))


def test_the_digest_of_a_target_depends_on_the_parameters_of_its_purifier() -> None:
    targets = [Purified(AdditiveGaussianNoise(std), nn.Identity(), n) for std, n in ((0.1, 2), (0.2, 2), (0.1, 3))]
    assert len({digest_of_model(target) for target in targets}) == 3


def test_the_digest_of_a_folder_changes_with_names_and_contents_and_not_with_the_caches_of_python(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "network.py").write_text("a = 1")
    before = digest_of_folder(folder)
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "network.cpython-311.pyc").write_bytes(b"compiled")
    assert digest_of_folder(folder) == before
    (folder / "network.py").rename(folder / "net.py")
    renamed = digest_of_folder(folder)
    (folder / "my__pycache__.py").touch()
    assert digest_of_folder(folder) != renamed
    (folder / "my__pycache__.py").unlink()
    (folder / "net.py").write_text("a = 2")
    assert len({before, renamed, digest_of_folder(folder)}) == 3
