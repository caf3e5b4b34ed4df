import logging
from pathlib import Path

import pytest

from tasks.core.checkpoints import Shards, digest_of_code


def write_whole(folder: Path) -> None:
    (folder / "whole.parquet").write_text("whole")


def test_any_other_ingredient_makes_another_shard(tmp_path: Path) -> None:
    base = {"model": "a", "eps": 0.25, "seed": 0, "settings": {"norm": "linf", "pgd": {"n_steps": 10}}}
    others = [
        base | {"model": "b"},
        base | {"eps": 0.5},
        base | {"seed": 1},
        base | {"settings": {"norm": "linf", "pgd": {"n_steps": 11}}},
    ]
    shards = Shards(tmp_path, 6)
    found = [shards.finish("a part", write_whole, **ingredients) for ingredients in [base, *others]]
    assert shards.finish("a part", write_whole, **dict(reversed(base.items()))) == found[0]
    assert len(set(found)) == 5
    assert Shards(tmp_path, 1, code="other").finish("a part", write_whole, **base) not in found


def test_a_shard_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"

    def killed_while_writing(partial: Path) -> None:
        (partial / "half.parquet").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Shards(folder, 1).finish("a part", killed_while_writing, seed=0)
    assert all(path.suffix == ".partial" for path in folder.iterdir())
    shard = Shards(folder, 1).finish("a part", write_whole, seed=0)
    assert [path.name for path in shard.iterdir()] == ["whole.parquet"]
    assert list(folder.iterdir()) == [shard]


def test_a_finished_shard_is_not_made_again_and_progress_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Shards(tmp_path, 2).finish("the first", write_whole, seed=0)
    shards = Shards(tmp_path, 2)
    shards.finish("the first", lambda folder: pytest.fail("made again"), seed=0)
    shards.finish("the second", write_whole, seed=1)
    assert caplog.messages[1:] == ["1/2  the first: kept from a run before", "2/2  the second: 0 s"]


def test_code_has_the_same_digest_twice() -> None:
    assert digest_of_code() == digest_of_code()
