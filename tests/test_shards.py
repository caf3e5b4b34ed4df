from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks.attacks.shards import digest_of_arrays, digest_of_code, digest_of_model, shard_name, writing


def test_any_other_ingredient_makes_another_shard() -> None:
    base = {"model": "a", "eps": 0.25, "seed": 0, "settings": {"norm": "linf", "pgd": {"n_steps": 10}}}
    others = [
        base | {"model": "b"},
        base | {"eps": 0.5},
        base | {"seed": 1},
        base | {"settings": {"norm": "linf", "pgd": {"n_steps": 11}}},
    ]
    assert shard_name(**base) == shard_name(**dict(reversed(base.items())))
    assert len({shard_name(**ingredients) for ingredients in [base, *others]}) == 5


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    shard = tmp_path / "checkpoints" / "name"

    def killed_while_writing() -> None:
        with writing(shard) as folder:
            (folder / "half.parquet").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_while_writing()
    assert not shard.exists()
    with writing(shard) as folder:
        assert not list(folder.iterdir())
        (folder / "whole.parquet").write_text("whole")
    assert [path.name for path in shard.iterdir()] == ["whole.parquet"]
    assert [path.name for path in shard.parent.iterdir()] == ["name"]


def test_arrays_differ_by_value_shape_and_type() -> None:
    zeros = np.zeros((2, 3), dtype=np.float32)
    others = [zeros + np.float32(1e-30), zeros.reshape(3, 2), zeros.view(np.int32)]
    assert len({digest_of_arrays(array) for array in [zeros, *others]}) == 4
    assert digest_of_arrays(zeros) == digest_of_arrays(np.zeros((4, 3), dtype=np.float32)[::2])


def test_models_differ_by_weights_buffers_and_layers() -> None:
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


def test_code_has_the_same_digest_twice() -> None:
    assert digest_of_code() == digest_of_code()
