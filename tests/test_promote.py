"""Promotion of a candidate: planted results, in a real registry."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from flows.audit import Audit
from flows.audit_run import AUDITS
from flows.promote import PROMOTION, promote, settle
from tasks.core.files import write_json
from tasks.core.locks import locked
from tasks.core.workspace import Workspace
from tasks.outcomes.attack_outputs import parse_operating_points
from tasks.params import Params, parse_params
from tasks.records.operating_points import OperatingPoint, write_operating_points
from tasks.serving import registry
from tasks.serving.promotion import compare, outcomes_of
from tasks.serving.registry import CANDIDATE, CHAMPION, Registered
from tests.bundles import BUNDLE_PARAMS
from tests.conftest import ROOT, with_overrides

NAME, TARGET, EPS, N, MARGIN = "toy", "autoencoder", 4.0, 400, 0.05
PARAMS: Params = parse_params(with_overrides(BUNDLE_PARAMS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three versions of a model. They have no files."""
    folder = tmp_path_factory.mktemp("store")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment("ct-robustness", artifact_location=(folder / "artifacts").as_uri())
    client.create_registered_model(NAME)
    for version in (1, 2, 3):
        client.create_model_version(NAME, str(folder), tags={"target": TARGET, "digest": str(version)})
    return folder


@pytest.fixture
def versions(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Registered]:
    """The versions, in a copy of the store."""
    shutil.copy(store / "mlflow.db", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return registry.all_versions(NAME)


@pytest.fixture
def audits(tmp_path: Path) -> Path:
    return tmp_path / "audits"


def plant(folder: Path, model: Registered, clean: range, adaptive: range, failed: tuple[str, ...] = ()) -> Audit:
    """Write the audit of a model that classifies these of N images correctly, clean and under attack."""
    workspace = Workspace(folder / model.label)
    for path in (workspace.attack_defence / TARGET, workspace.prepare, workspace.evaluate):
        path.mkdir(parents=True)
    images = np.arange(N)
    is_correct, is_robust = np.isin(images, clean), np.isin(images, adaptive) & np.isin(images, clean)
    # two neighbours are one group
    shared = {"image": images, "label": images % 2, "group": images // 2, "target": TARGET}
    logits = list(np.eye(2)[np.where(is_correct, images % 2, 1 - images % 2)])
    shared |= {"clean_correct": is_correct, "correct": is_correct, "correct_8bit": is_correct, "logits": logits}
    shared |= {"surrogate": "", "norm": "linf"}
    unchanged = pd.DataFrame({**shared, "threat_model": "none", "attack": "clean", "eps": 0.0})
    # PGD breaks no image, the search breaks all that are not robust
    attacked = pd.DataFrame({**shared, "threat_model": "adaptive", "attack": "pgd", "eps": EPS})
    search = {"operating_point": "as_trained", "threat_model": "adaptive", "attack": "suite"}
    search["minimum_eps"] = search["minimum_eps_8bit"] = np.where(is_robust, np.inf, EPS)
    pd.concat([unchanged, attacked]).to_parquet(workspace.records(TARGET))
    pd.DataFrame({"image": images, "target": TARGET, **search}).to_parquet(workspace.minimum_eps(TARGET))
    write_operating_points([OperatingPoint("as_trained", (0.0, 0.0))], workspace.operating_points(TARGET))
    checks = [{"target": TARGET, "key": "ball", "status": "PASS", "explanation": "fine"}]
    checks += [{"target": TARGET, "key": key, "status": "FAIL", "explanation": f"about {key}"} for key in failed]
    checks += [{"target": "undefended", "key": "pgd", "status": "FAIL", "explanation": "of another target"}]
    checks += [{"target": None, "key": "leakage", "status": "WARN", "explanation": "near-duplicates"}]
    write_json(checks, workspace.checks)
    return Audit(model, workspace, PARAMS, N, n_left_out=0)


def champion() -> int | None:
    found = registry.version_with(NAME, CHAMPION)
    return found.version if found else None


def test_the_first_champion_needs_only_its_checks(versions: list[Registered], audits: Path) -> None:
    outcome, page = settle([plant(audits, versions[0], range(50), range(200))], PARAMS, MARGIN)
    assert champion() == 1
    assert "there is no other champion" in outcome
    assert "against no champion" in page


def test_the_first_candidate_with_a_failed_check_is_not_promoted(versions: list[Registered], audits: Path) -> None:
    outcome, _ = settle([plant(audits, versions[0], range(300), range(300), failed=("noise",))], PARAMS, MARGIN)
    assert champion() is None
    assert "failed check noise: about noise" in outcome


def test_an_equal_candidate_is_promoted_and_the_comparison_is_logged(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    pair = [plant(audits, versions[1], range(300), range(200)), plant(audits, versions[0], range(300), range(200))]
    outcome, page = settle(pair, PARAMS, MARGIN)
    assert champion() == 2
    assert registry.history(NAME)[-1].why == outcome
    assert "toy-v2 becomes champion in place of toy-v1" in outcome
    folder = pair[0].workspace.root
    assert (folder / "promotion.md").read_text() == page
    kept = json.loads((folder / "promotion.json").read_text())
    assert [each["p_value"] for each in kept["comparisons"]] == [1, 1]
    assert kept["objections"] == []
    client = MlflowClient()
    (run,) = [value for key, value in client.get_model_version(NAME, "2").tags.items() if key.startswith("audit.")]
    assert {file.path for file in client.list_artifacts(run)} == {"promotion.md", "promotion.json"}


def test_a_candidate_with_a_lower_robust_accuracy_is_not_promoted(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    pair = [plant(audits, versions[1], range(400), range(100)), plant(audits, versions[0], range(300), range(200))]
    outcome, page = settle(pair, PARAMS, MARGIN)
    assert champion() == 1
    expected = "its adaptive balanced accuracy is not shown to be at most 5 points below the champion's: 25.0 %"
    assert expected in outcome
    assert "n = 400 in 200 groups" in outcome
    assert "clean balanced accuracy is not shown" not in outcome
    assert page.count("**not shown**") == 1


def test_a_candidate_with_a_lower_clean_accuracy_is_not_promoted(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    pair = [plant(audits, versions[1], range(240), range(240)), plant(audits, versions[0], range(300), range(100))]
    outcome, _ = settle(pair, PARAMS, MARGIN)
    assert champion() == 1
    assert "its clean balanced accuracy is not shown to be at most 5 points below the champion's: 60.0 %" in outcome
    assert "adaptive balanced accuracy is not shown" not in outcome


def test_the_margin_decides_on_a_small_difference(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    pair = [plant(audits, versions[1], range(300), range(196)), plant(audits, versions[0], range(300), range(200))]
    settle(pair, PARAMS, 0.05)
    assert champion() == 2
    registry.restore_champion(NAME)
    settle(pair, PARAMS, 0.01)
    assert champion() == 1


def test_too_few_groups_show_nothing(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    pair = [plant(audits, versions[1], range(300), range(200)), plant(audits, versions[0], range(300), range(200))]
    for audit in pair:
        records = pd.read_parquet(audit.workspace.records(TARGET))
        records.assign(group=records["image"] % 4).to_parquet(audit.workspace.records(TARGET))
    outcome, _ = settle(pair, PARAMS, MARGIN)
    assert champion() == 1
    assert "n = 400 in 4 groups" in outcome


def test_a_better_candidate_with_failed_checks_is_not_promoted(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    better = plant(audits, versions[2], range(400), range(400), failed=("gradients", "ball"))
    outcome, page = settle([better, plant(audits, versions[0], range(300), range(200))], PARAMS, MARGIN)
    assert champion() == 1
    assert "toy-v1 stays champion: failed check gradients: about gradients; failed check ball" in outcome
    assert "Failed check **gradients**" in page


def test_two_promotions_are_undone_one_by_one(versions: list[Registered], audits: Path) -> None:
    for model in versions:
        settle([plant(audits, model, range(300), range(200))], PARAMS, MARGIN)
    assert champion() == 3
    assert [registry.restore_champion(NAME).version for _ in range(2)] == [2, 1]


def test_a_promotion_beside_another_compares_with_its_champion(
    versions: list[Registered], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second, _ = versions
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    registry.move_champion(first, "the first")
    MlflowClient().set_registered_model_alias(NAME, CANDIDATE, "3")
    compared: list[Registered | None] = []

    def audits_of(_workspace: Workspace, candidate: Registered, champion: Registered | None, *_: object) -> list[Audit]:
        compared.append(champion)
        return []

    monkeypatch.setattr("flows.promote.audit_both", audits_of)
    monkeypatch.setattr("flows.promote.settle", lambda *_: 1 / 0)
    with ThreadPoolExecutor() as pool:
        with locked(AUDITS / ".locks", [PROMOTION]):
            waiting = pool.submit(promote.fn, NAME)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            registry.move_champion(second, "by the other promotion")
        with pytest.raises(ZeroDivisionError):
            waiting.result(timeout=60)
    assert compared == [second]


def outcomes(correct: np.ndarray) -> pd.DataFrame:
    images = np.arange(len(correct))
    return pd.DataFrame({"label": images % 2, "group": images // 2, "robust_correct": correct})


def test_results_on_different_images_are_not_compared() -> None:
    first = outcomes(np.array([True, False]))
    with pytest.raises(ValueError, match="clean: candidate and champion were evaluated on different images"):
        compare("clean", first, first.set_axis([0, 2]))


def test_an_eps_without_attack_is_refused(versions: list[Registered], audits: Path) -> None:
    workspace = plant(audits, versions[0], range(300), range(200)).workspace
    records, smallest = pd.read_parquet(workspace.records(TARGET)), pd.read_parquet(workspace.minimum_eps(TARGET))
    points = parse_operating_points(workspace.operating_points(TARGET).read_text())
    with pytest.raises(ValueError, match="autoencoder was not attacked at eps 3"):
        outcomes_of(records, smallest, points, TARGET, 3.0)
    found = outcomes_of(records, smallest, points, TARGET, EPS)
    assert (int(found["clean"]["robust_correct"].sum()), int(found["adaptive"]["robust_correct"].sum())) == (300, 200)


def test_the_interval_of_the_difference_contains_the_difference() -> None:
    rng = np.random.default_rng(0)
    champion = rng.random(200) < 0.5
    candidate = champion | (rng.random(200) < 0.4)
    found = compare("clean", outcomes(candidate), outcomes(champion))
    assert found.difference.value == pytest.approx(found.candidate.value - found.champion.value)
    assert 0 < found.difference.low < found.difference.value < found.difference.high
    assert (found.n_only_champion_correct, found.n_only_candidate_correct) == (0, int((candidate & ~champion).sum()))
    assert found.is_non_inferior(0.001)
    assert not compare("clean", outcomes(champion), outcomes(candidate)).is_non_inferior(0.05)
