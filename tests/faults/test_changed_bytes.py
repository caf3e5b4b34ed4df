"""A byte that turns on a disk, in an output, in DVC's cache or on a remote, is found before it is used.

Times are put back: where they change, DVC sees it by itself.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

from flows.dvc_pipeline import DvcPipeline
from flows.verify import verify
from tasks.params import load_params
from tasks.tracking import digest_of
from tests.operations.test_data_remotes import make_repository
from tests.test_pipeline import STEPS, TOY, digests, make_workspace, run, write_params
from tests.two_steps import make_two_steps


def turn_a_bit(path: Path) -> None:
    """As a disk does it: neither time nor size nor mode change."""
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cached(folder: Path, digest: str) -> Path:
    return folder / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]


class TestTwoSteps:
    @pytest.fixture
    def workspace(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DvcPipeline:
        """Two steps that have run, the second of which reads what the first wrote."""
        make_two_steps(tmp_path)
        monkeypatch.chdir(tmp_path)
        workspace = DvcPipeline()
        for step in ("first", "second"):
            Path("data", step).mkdir(parents=True)
            Path("data", step, "out.txt").write_text(f"of {step}")
            workspace.record(step, load_params())
        assert not workspace.anything_changed()
        return workspace

    def test_where_nothing_is_wrong_nothing_is_found(self, workspace: DvcPipeline) -> None:
        assert verify(workspace) == []
        workspace.check_inputs("second")

    def test_an_output_is_found_and_then_seen_by_dvc(self, workspace: DvcPipeline) -> None:
        turn_a_bit(Path("data/first/out.txt"))
        assert not workspace.changed("first"), "DVC does not see it"
        assert verify(workspace) == ["data/first/out.txt: other bytes than were recorded; DVC sees it now"]
        assert workspace.changed("first")
        assert workspace.restore("first")
        assert Path("data/first/out.txt").read_text() == "of first"
        assert verify(workspace) == []

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 0.99])
    def test_a_lock_file_that_dvc_was_killed_over_is_set_aside_and_outputs_come_out_of_the_cache(
        self, workspace: DvcPipeline, share: float, caplog: pytest.LogCaptureFixture
    ) -> None:
        recorded, claims = Path("dvc.lock"), Path(".dvc/tmp/rwlock")
        whole = recorded.read_text()
        for path in (recorded, claims):
            text = path.read_text()
            path.write_text(text[: int(share * len(text))])
        again = DvcPipeline()
        for step in ("first", "second"):
            if again.changed(step):
                shutil.rmtree(f"data/{step}")
                assert again.restore(step)
        assert not again.anything_changed()
        assert recorded.read_text() == whole
        assert ".dvc/tmp/rwlock was half-written" in caplog.text
        assert Path(".dvc/tmp/rwlock.half-written").exists()

    def test_a_merge_that_was_not_finished_is_not_set_aside(self, workspace: DvcPipeline) -> None:
        recorded = Path("dvc.lock")
        both = "schema: '2.0'\n<<<<<<< ours\n" + recorded.read_text()
        recorded.write_text(both)
        with pytest.raises(ValueError, match=r"dvc\.lock holds both sides of a merge: take one"):
            DvcPipeline()
        assert recorded.read_text() == both

    def test_a_step_does_not_read_it(self, workspace: DvcPipeline) -> None:
        turn_a_bit(Path("data/first/out.txt"))
        with pytest.raises(ValueError, match=r"second would read data/first/out\.txt, .*flows\.verify"):
            workspace.check_inputs("second")
        workspace.check_inputs("first")

    @pytest.mark.parametrize("what", ["file", "list"])
    def test_a_cached_object_is_not_restored_and_the_step_runs_again(self, workspace: DvcPipeline, what: str) -> None:
        digest = digest_of(Path("data/first/out.txt")) if what == "file" else digest_of(Path("data/first"))
        turn_a_bit(cached(Path(), digest))
        shutil.rmtree("data/first")
        assert workspace.changed("first")
        assert not workspace.restore("first")
        assert not Path("data/first").exists()
        assert not cached(Path(), digest).exists()
        # what the step makes anew is whole in the cache, too
        Path("data/first").mkdir()
        Path("data/first/out.txt").write_text("of first")
        workspace.record("first", load_params())
        assert verify(workspace) == []
        shutil.rmtree("data/first")
        assert workspace.restore("first")

    @pytest.mark.parametrize("what", ["file", "list"])
    def test_a_cached_object_is_found_while_the_output_is_whole(self, workspace: DvcPipeline, what: str) -> None:
        digest = digest_of(Path("data/first/out.txt")) if what == "file" else digest_of(Path("data/first"))
        turn_a_bit(cached(Path(), digest))
        (told,) = verify(workspace)
        assert told.endswith(f"{digest[2:]}: other bytes than were recorded; removed from the cache")
        assert Path("data/first/out.txt").read_text() == "of first"

    def test_an_output_whose_list_of_files_is_lost_is_found(self, workspace: DvcPipeline) -> None:
        turn_a_bit(Path("data/first/out.txt"))
        cached(Path(), digest_of(Path("data/second"))).unlink()
        turn_a_bit(Path("data/second/out.txt"))
        told = [line.partition(":")[0] for line in verify(workspace)]
        assert told == ["data/first/out.txt", "data/second"]
        assert workspace.changed("second")


@pytest.mark.faults
def test_dvc_repro_uses_neither_a_changed_output_nor_a_changed_object_after_verify(tmp_path: Path) -> None:
    workspace = make_repository(tmp_path / "workspace", TOY)
    run(workspace, "dvc", "repro")
    pixels = workspace / "data" / "prepare" / "pixels.npy"
    good = digest_of(pixels)
    # with a new time DVC sees it by itself, and takes the file out of its cache
    turn_a_bit(pixels)
    pixels.touch()
    assert "data/prepare" in run(workspace, "dvc", "status")
    assert "is cached - skipping run" in run(workspace, "dvc", "repro")
    assert digest_of(pixels) == good
    # else it does not
    turn_a_bit(pixels)
    assert "up to date" in run(workspace, "dvc", "status")
    turn_a_bit(cached(workspace, good))
    with pytest.raises(AssertionError, match=r"pixels\.npy: other bytes than were recorded; DVC sees it now"):
        run(workspace, sys.executable, "-m", "flows.verify")
    assert "Running stage 'prepare'" in run(workspace, "dvc", "repro")
    assert digest_of(pixels) == good
    assert "Everything holds" in run(workspace, sys.executable, "-m", "flows.verify")


@pytest.mark.faults
def test_a_remote_that_is_verified_gives_no_changed_object(tmp_path: Path) -> None:
    workspace = make_repository(tmp_path / "workspace", TOY)
    run(workspace, "dvc", "repro")
    run(workspace, "dvc", "remote", "add", "--default", "store", str(tmp_path / "remote"))
    run(workspace, "dvc", "remote", "modify", "store", "verify", "true")
    run(workspace, "dvc", "push")
    good = digest_of(workspace / "data" / "prepare" / "pixels.npy")
    turn_a_bit(tmp_path / "remote" / "files" / "md5" / good[:2] / good[2:])
    shutil.rmtree(workspace / ".dvc" / "cache")
    shutil.rmtree(workspace / "data" / "prepare")
    with pytest.raises(AssertionError, match=r"(?s)Checkout failed for following targets:.*data/prepare"):
        run(workspace, "dvc", "pull")
    assert not (workspace / "data" / "prepare" / "pixels.npy").exists()
    assert "Running stage 'prepare'" in run(workspace, "dvc", "repro")
    assert digest_of(workspace / "data" / "prepare" / "pixels.npy") == good


@pytest.mark.faults
def test_the_flow_uses_neither_a_changed_output_nor_a_changed_object(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    run(workspace, "dvc", "repro")
    expected = digests(workspace)
    flow = [sys.executable, "-m", "flows.pipeline"]

    shutil.rmtree(workspace / "data" / "evaluate")
    turn_a_bit(cached(workspace, expected["evaluate"]))
    told = run(workspace, *flow)
    assert "Removed from DVC's cache, where it holds other bytes" in told
    assert "evaluate: ran" in told
    assert digests(workspace) == expected

    turn_a_bit(workspace / "data" / "prepare" / "pixels.npy")
    write_params(workspace, {"train_autoencoder.epochs": 1})
    with pytest.raises(AssertionError, match=r"train_autoencoder would read data/prepare/pixels\.npy"):
        run(workspace, *flow)
    with pytest.raises(AssertionError, match="DVC sees it now"):
        run(workspace, sys.executable, "-m", "flows.verify")
    write_params(workspace, {})
    told = run(workspace, *flow)
    assert "prepare: restored" in told
    assert [step for step in STEPS if f"{step}: ran" in told] == []
    assert digests(workspace) == expected
