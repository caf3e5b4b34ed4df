"""Promotion of a candidate: planted results whose p-values are known, in a real registry."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from flows.audit import Audit
from flows.promote import settle
from tasks.core.files import write_json
from tasks.core.workspace import Workspace
from tasks.params import Params, parse_params
from tasks.serving import registry
from tasks.serving.promotion import compare, outcomes_of
from tasks.serving.registry import CHAMPION, Registered
from tests.bundles import BUNDLE_PARAMS
from tests.conftest import with_overrides

NAME, TARGET, EPS, N = "toy", "autoencoder", 4.0, 40
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
    shared = {"image": images, "target": TARGET, "clean_correct": is_correct, "correct": is_correct}
    unchanged = pd.DataFrame({**shared, "threat_model": "none", "attack": "clean", "eps": 0.0})
    # PGD breaks no image, the search breaks all that are not robust
    attacked = pd.DataFrame({**shared, "threat_model": "adaptive", "attack": "pgd", "eps": EPS})
    search = {"threat_model": "adaptive", "attack": "sweep", "minimum_eps": np.where(is_robust, np.inf, EPS)}
    pd.concat([unchanged, attacked]).to_parquet(workspace.records(TARGET))
    pd.DataFrame({"image": images, "target": TARGET, **search}).to_parquet(workspace.minimum_eps(TARGET))
    pd.DataFrame({"group": images // 2}).to_parquet(workspace.split)
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
    outcome, page = settle([plant(audits, versions[0], range(5), range(2))], PARAMS, 0.05)
    assert champion() == 1
    assert "there is no other champion" in outcome
    assert "against no champion" in page


def test_the_first_candidate_with_a_failed_check_is_not_promoted(versions: list[Registered], audits: Path) -> None:
    outcome, _ = settle([plant(audits, versions[0], range(30), range(30), failed=("noise",))], PARAMS, 0.05)
    assert champion() is None
    assert "failed check noise: about noise" in outcome


def test_an_equal_candidate_is_promoted_and_the_comparison_is_logged(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    pair = [plant(audits, versions[1], range(30), range(20)), plant(audits, versions[0], range(30), range(20))]
    outcome, page = settle(pair, PARAMS, 0.05)
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
    pair = [plant(audits, versions[1], range(40), range(10)), plant(audits, versions[0], range(30), range(20))]
    outcome, page = settle(pair, PARAMS, 0.05)
    assert champion() == 1
    # McNemar: 0 against 10 images, 2 / 2^10
    assert "its adaptive accuracy is significantly worse: 25.0 %" in outcome
    assert "correct by only one of the two 0 : 10, p = 0.002" in outcome
    assert "clean accuracy is significantly worse" not in outcome
    assert page.count("**worse**") == 1


def test_a_candidate_with_a_lower_clean_accuracy_is_not_promoted(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    pair = [plant(audits, versions[1], range(24), range(24)), plant(audits, versions[0], range(30), range(10))]
    outcome, _ = settle(pair, PARAMS, 0.05)
    assert champion() == 1
    # 0 against 6 images, 2 / 2^6
    assert "its clean accuracy is significantly worse: 60.0 %" in outcome
    assert "p = 0.031" in outcome
    assert "adaptive accuracy is" not in outcome


def test_the_significance_level_decides_on_a_small_difference(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    # 0 against 5 images, 2 / 2^5 = 0.0625
    pair = [plant(audits, versions[1], range(30), range(15)), plant(audits, versions[0], range(30), range(20))]
    settle(pair, PARAMS, 0.05)
    assert champion() == 2
    registry.restore_champion(NAME)
    settle(pair, PARAMS, 0.1)
    assert champion() == 1


def test_a_better_candidate_with_failed_checks_is_not_promoted(versions: list[Registered], audits: Path) -> None:
    registry.move_champion(versions[0], "first")
    better = plant(audits, versions[2], range(40), range(40), failed=("gradients", "ball"))
    outcome, page = settle([better, plant(audits, versions[0], range(30), range(20))], PARAMS, 0.05)
    assert champion() == 1
    assert "toy-v1 stays champion: failed check gradients: about gradients; failed check ball" in outcome
    assert "Failed check **gradients**" in page


def test_two_promotions_are_undone_one_by_one(versions: list[Registered], audits: Path) -> None:
    for model in versions:
        settle([plant(audits, model, range(30), range(20))], PARAMS, 0.05)
    assert champion() == 3
    assert [registry.restore_champion(NAME).version for _ in range(2)] == [2, 1]


def test_results_on_different_images_are_not_compared() -> None:
    first = pd.Series([True, False], index=[0, 1])
    with pytest.raises(ValueError, match="clean: candidate and champion were evaluated on different images"):
        compare("clean", first, first.set_axis([0, 2]), pd.Series([0, 1, 2]), 100, 0)


def test_an_eps_without_attack_is_refused(versions: list[Registered], audits: Path) -> None:
    workspace = plant(audits, versions[0], range(30), range(20)).workspace
    records, smallest = pd.read_parquet(workspace.records(TARGET)), pd.read_parquet(workspace.minimum_eps(TARGET))
    with pytest.raises(ValueError, match="autoencoder was not attacked at eps 3"):
        outcomes_of(records, smallest, TARGET, 3.0)
    found = outcomes_of(records, smallest, TARGET, EPS)
    assert (int(found["clean"].sum()), int(found["adaptive"].sum())) == (30, 20)


def test_the_interval_of_the_difference_contains_the_difference() -> None:
    rng = np.random.default_rng(0)
    champion = pd.Series(rng.random(200) < 0.5)
    candidate = champion | pd.Series(rng.random(200) < 0.4)
    found = compare("clean", candidate, champion, pd.Series(np.arange(200) // 2), 500, 0)
    assert found.difference.value == pytest.approx(found.candidate.value - found.champion.value)
    assert 0 < found.difference.low < found.difference.value < found.difference.high
    assert (found.n_only_champion_correct, found.n_only_candidate_correct) == (0, int((candidate & ~champion).sum()))
    assert not found.is_worse(0.05)
