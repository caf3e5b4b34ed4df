"""Silent corruption: a bit changes in an output, in DVC's cache or on a remote, while time, size and mode stay.

If the time changes too, DVC detects the change by itself.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

from flows.dvc_pipeline import DvcPipeline, run_dvc
from flows.verify import verify
from tasks.params import load_params
from tasks.tracking import digest_of
from tests.operations.test_data_remotes import make_repository
from tests.test_pipeline import STEPS, TOY, digests, make_workspace, run, write_params
from tests.two_steps import make_two_steps, read_output, write_output


def flip_a_bit(path: Path) -> None:
    """Change one bit of a file; time, size and mode stay."""
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cached(digest: str, folder: Path = Path()) -> Path:
    """The file of DVC's cache with this MD5."""
    return folder / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]


class TestTwoSteps:
    @pytest.fixture
    def pipeline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DvcPipeline:
        """Two finished steps."""
        make_two_steps(tmp_path)
        # DVC works on the current folder
        monkeypatch.chdir(tmp_path)
        pipeline = DvcPipeline()
        for step in ("first", "second"):
            write_output(step, f"of {step}")
            pipeline.record(step, load_params())
        assert not pipeline.anything_changed()
        return pipeline

    def test_nothing_is_reported_if_nothing_is_corrupted(self, pipeline: DvcPipeline) -> None:
        assert verify(pipeline) == []
        pipeline.check_inputs("second")

    def test_a_corrupted_output_is_reported_and_then_restored(self, pipeline: DvcPipeline) -> None:
        flip_a_bit(Path("data/first/out.txt"))
        assert not pipeline.changed("first"), "DVC does not detect it"
        assert verify(pipeline) == ["data/first: DVC detects the change now"]
        assert pipeline.changed("first")
        assert pipeline.restore("first")
        assert read_output("first") == "of first"
        assert verify(pipeline) == []

    def test_a_step_does_not_start_with_a_corrupted_input(self, pipeline: DvcPipeline) -> None:
        flip_a_bit(Path("data/first/out.txt"))
        message = r"an input of second does not hold the recorded bytes: data/first\. Run python -m flows\.verify"
        with pytest.raises(ValueError, match=message):
            pipeline.check_inputs("second")
        pipeline.check_inputs("first")

    @pytest.mark.parametrize("damaged", ["file", "list of files"])
    def test_a_damaged_file_of_the_cache_is_not_restored(self, pipeline: DvcPipeline, damaged: str) -> None:
        digest = digest_of(Path("data/first/out.txt" if damaged == "file" else "data/first"))
        flip_a_bit(cached(digest))
        shutil.rmtree("data/first")
        assert pipeline.changed("first")
        assert not pipeline.restore("first")
        # a list of files stays in the cache until it is verified
        verify(pipeline)
        assert not cached(digest).exists()
        write_output("first", "of first")
        pipeline.record("first", load_params())
        assert verify(pipeline) == []
        shutil.rmtree("data/first")
        assert pipeline.restore("first")

    @pytest.mark.parametrize("damaged", ["file", "list of files"])
    def test_a_damaged_file_of_the_cache_is_reported_and_removed(self, pipeline: DvcPipeline, damaged: str) -> None:
        digest = digest_of(Path("data/first/out.txt" if damaged == "file" else "data/first"))
        flip_a_bit(cached(digest))
        assert verify(pipeline) == [f".dvc/tmp/damaged/{digest}: moved out of the cache"]
        assert read_output("first") == "of first"

    def test_the_only_copy_of_a_damaged_image_is_kept(self, pipeline: DvcPipeline, tmp_path: Path) -> None:
        run_dvc("config", "cache.type", "symlink")
        (tmp_path / "scans").mkdir()
        image = tmp_path / "scans" / "a.png"
        image.write_bytes(b"an image")
        run_dvc("add", "scans")
        digest = digest_of(image)
        flip_a_bit(cached(digest))
        damaged = cached(digest).read_bytes()
        pipeline = DvcPipeline()
        assert verify(pipeline) == [f".dvc/tmp/damaged/{digest}: moved out of the cache"]
        assert (tmp_path / ".dvc" / "tmp" / "damaged" / digest).read_bytes() == damaged
        # the link of the data set leads nowhere, which DVC reports
        assert not image.exists()
        assert verify(pipeline) == []

    def test_a_corrupted_output_is_reported_if_the_cache_has_lost_its_list_of_files(
        self, pipeline: DvcPipeline
    ) -> None:
        cached(digest_of(Path("data/second"))).unlink()
        flip_a_bit(Path("data/second/out.txt"))
        assert verify(pipeline) == ["data/second: DVC detects the change now"]
        assert pipeline.changed("second")

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 0.99])
    def test_half_written_files_of_dvc_are_moved_away_and_outputs_are_restored(
        self, pipeline: DvcPipeline, share: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        recorded, locked_files = Path("dvc.lock"), Path(".dvc/tmp/rwlock")
        whole = recorded.read_text()
        for path in (recorded, locked_files):
            text = path.read_text()
            path.write_text(text[: int(share * len(text))])
        again = DvcPipeline()
        for step in ("first", "second"):
            if again.changed(step):
                shutil.rmtree(f"data/{step}")
                assert again.restore(step)
        assert not again.anything_changed()
        assert recorded.read_text() == whole
        assert ".dvc/tmp/rwlock is half-written: moved to .dvc/tmp/rwlock.half-written" in caplog.text
        assert Path(".dvc/tmp/rwlock.half-written").exists()

    def test_a_lock_file_with_merge_conflicts_is_refused_and_kept(self, pipeline: DvcPipeline) -> None:
        recorded = Path("dvc.lock")
        both = "schema: '2.0'\n<<<<<<< ours\n" + recorded.read_text()
        recorded.write_text(both)
        with pytest.raises(ValueError, match=r"dvc\.lock has merge conflicts\. Take one side"):
            DvcPipeline()
        assert recorded.read_text() == both


@pytest.mark.faults
def test_after_verify_dvc_repro_uses_neither_a_corrupted_output_nor_a_damaged_cache(tmp_path: Path) -> None:
    workspace = make_repository(tmp_path / "workspace", TOY)
    run(workspace, "dvc", "repro")
    pixels = workspace / "data" / "prepare" / "pixels.npy"
    good = digest_of(pixels)
    # with a new time DVC detects the change by itself
    flip_a_bit(pixels)
    pixels.touch()
    assert "data/prepare" in run(workspace, "dvc", "status")
    assert "is cached - skipping run" in run(workspace, "dvc", "repro")
    assert digest_of(pixels) == good
    # with the old time it does not
    flip_a_bit(pixels)
    assert "up to date" in run(workspace, "dvc", "status")
    flip_a_bit(cached(good, workspace))
    with pytest.raises(AssertionError, match="data/prepare: DVC detects the change now"):
        run(workspace, sys.executable, "-m", "flows.verify")
    assert "Running stage 'prepare'" in run(workspace, "dvc", "repro")
    assert digest_of(pixels) == good
    assert "No silent corruption" in run(workspace, sys.executable, "-m", "flows.verify")


@pytest.mark.faults
def test_a_damaged_file_of_a_verified_remote_is_not_pulled(tmp_path: Path) -> None:
    workspace = make_repository(tmp_path / "workspace", TOY)
    run(workspace, "dvc", "repro")
    run(workspace, "dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    run(workspace, "dvc", "remote", "modify", "store", "verify", "true")
    run(workspace, "dvc", "push")
    good = digest_of(workspace / "data" / "prepare" / "pixels.npy")
    flip_a_bit(tmp_path / "remote" / "files" / "md5" / good[:2] / good[2:])
    shutil.rmtree(workspace / ".dvc" / "cache")
    shutil.rmtree(workspace / "data" / "prepare")
    with pytest.raises(AssertionError, match=r"(?s)Checkout failed for following targets:.*data/prepare"):
        run(workspace, "dvc", "pull")
    assert not (workspace / "data" / "prepare" / "pixels.npy").exists()
    assert "Running stage 'prepare'" in run(workspace, "dvc", "repro")
    assert digest_of(workspace / "data" / "prepare" / "pixels.npy") == good


@pytest.mark.faults
def test_the_flow_uses_neither_a_corrupted_output_nor_a_damaged_cache(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    run(workspace, "dvc", "repro")
    expected = digests(workspace)
    flow = [sys.executable, "-m", "flows.pipeline"]

    shutil.rmtree(workspace / "data" / "evaluate")
    flip_a_bit(cached(expected["evaluate"], workspace))
    printed = run(workspace, *flow)
    assert "Moved a damaged file out of DVC's cache" in printed
    assert "evaluate: ran" in printed
    assert digests(workspace) == expected

    flip_a_bit(workspace / "data" / "prepare" / "pixels.npy")
    write_params(workspace, {"train_autoencoder.epochs": 1})
    with pytest.raises(AssertionError, match="an input of train_autoencoder does not hold the recorded bytes"):
        run(workspace, *flow)
    with pytest.raises(AssertionError, match="DVC detects the change now"):
        run(workspace, sys.executable, "-m", "flows.verify")
    write_params(workspace, {})
    printed = run(workspace, *flow)
    assert "prepare: restored" in printed
    assert [step for step in STEPS if f"{step}: ran" in printed] == []
    assert digests(workspace) == expected
