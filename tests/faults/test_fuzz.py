"""The readers of image files and of params.yaml raise only documented errors, for any input."""

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
from tests.faults.fuzz import MAX_MEGAPIXELS, TARGETS, check, fuzz_randomly, mutate
from tests.faults.mutants import chunk, png, saved

fuzz_settings = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
SEEDS = {name: list(target.seeds()) for name, target in TARGETS.items()}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", TARGETS)
@fuzz_settings
@given(data=st.data())
def test_mutated_files_are_read_or_rejected_with_documented_errors(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    seed = data.draw(st.sampled_from(SEEDS[name]))
    rng = data.draw(st.randoms(use_true_random=False))
    check(TARGETS[name], mutate(seed, rng), tmp_path)


@pytest.mark.parametrize("name", TARGETS)
@fuzz_settings
@given(content=st.binary(max_size=200))
def test_random_bytes_are_read_or_rejected_with_documented_errors(tmp_path: Path, name: str, content: bytes) -> None:
    check(TARGETS[name], content, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.faults
@pytest.mark.parametrize("name", TARGETS)
def test_one_minute_of_random_fuzzing_finds_no_failure(tmp_path: Path, name: str) -> None:
    assert fuzz_randomly(TARGETS[name], 60, tmp_path, seed=random.randrange(2**32)) > 100


SIDE = int((MAX_MEGAPIXELS * 1e6) ** 0.5)
BMP_HEADER = bytearray(saved(np.zeros((SIDE, SIDE), dtype=np.uint8), "BMP")[:1078])
BMP_HEADER[30] = 1  # compression: run-length encoding


@pytest.mark.parametrize(
    "content",
    [
        png(60_000, 60_000, b""),
        png(SIDE, SIDE, b""),
        png(8, 8, b"")[:33] + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(50_000_000))) + png(8, 8, bytes(72))[33:],
        BMP_HEADER + b"\1\0\0\0" * SIDE + b"\0\1",
    ],
    ids=["huge size", "no pixels", "large compressed profile", "run-length encoding that skips every row"],
)
def test_small_files_that_declare_large_images_are_rejected_within_half_a_second(
    tmp_path: Path, content: bytes
) -> None:
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
    ids=["deep nesting", "nested aliases", "recursive alias", "long number", "long file"],
)
def test_parameters_that_expand_to_large_values_are_rejected_within_two_seconds(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(ParamsError):
        load_params(tmp_path / "params.yaml")
    assert time.process_time() - start < 2
