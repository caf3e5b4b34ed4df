"""The readers of files of others take anything: what they say no to, they say no to in their own words."""

import random
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.dataset.images import ImageError, read_image
from tasks.params import ParamsError, load_params
from tests.faults.fuzz import MAX_MEGAPIXELS, TARGETS, at_random, check, mutated
from tests.faults.mutants import chunk, png, saved

few = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = {name: list(target.seeds()) for name, target in TARGETS.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TARGETS)
@few
@given(data=st.data())
def test_mutated_files_are_read_or_refused_in_our_words(tmp_path: Path, name: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(SEEDS[name]))
    rng = data.draw(st.randoms(use_true_random=False))
    check(TARGETS[name], mutated(seed, rng), tmp_path)


@pytest.mark.parametrize("name", TARGETS)
@few
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_our_words(tmp_path: Path, name: str, content: bytes) -> None:
    check(TARGETS[name], content, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.faults
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute_of_mutated_files_finds_nothing(tmp_path: Path, name: str) -> None:
    assert at_random(TARGETS[name], 60, tmp_path, seed=random.randrange(2**32)) > 100


SIDE = int((MAX_MEGAPIXELS * 1e6) ** 0.5)
RUNS = bytearray(saved(np.zeros((SIDE, SIDE), dtype=np.uint8), "BMP")[:1078])
RUNS[30] = 1  # run-length encoded


@pytest.mark.parametrize(
    "content",
    [
        png(60_000, 60_000, b""),
        png(SIDE, SIDE, b""),
        png(8, 8, b"")[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000))) + png(8, 8, bytes(72))[33:],
        RUNS + b"\1\0\0\0" * SIDE + b"\0\1",
    ],
    ids=["huge", "without its pixels", "a profile that inflates", "ends of lines that are filled up one by one"],
)
def test_small_files_that_claim_much_are_refused_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    start = time.process_time()
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.png", MAX_MEGAPIXELS)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: &a [x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)),
        "a: &a [*a]",
        "seed: " + "9" * 100_000,
        "# " + "x" * 2_000_000,
    ],
    ids=["nested", "aliases of aliases", "itself", "digits", "long"],
)
def test_short_parameters_that_stand_for_much_are_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ParamsError):
        load_params(tmp_path / "params.yaml")
    assert time.process_time() - start < 2
