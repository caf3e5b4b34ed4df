"""Who becomes champion: planted outcomes whose test is known by hand, in a real registry."""

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
from tasks.params import Params
from tasks.serving import registry
from tasks.serving.promotion import compare, outcomes_of
from tasks.serving.registry import CHAMPION, Registered
from tests.bundles import complete_workspace

NAME, TARGET, EPS, N = "toy", "autoencoder", 4.0, 40


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three versions of a model, of which only what the registry says of them is asked."""
    folder = tmp_path_factory.mktemp("store")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment("ct-robustness", artifact_location=(folder / "artifacts").as_uri())
    client.create_registered_model(NAME)
    for version in (1, 2, 3):
        client.create_model_version(NAME, str(folder), tags={"target": TARGET, "digest": str(version)})
    return folder


@pytest.fixture
def versions(store: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> list[Registered]:
    shutil.copy(store / "mlflow.db", workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    return registry.all_versions(NAME)


@pytest.fixture
def params(workspace: Path) -> Params:
    return complete_workspace()


def plant(
    model: Registered, params: Params, clean: range, adaptive: range, failing: tuple[str, ...] = (), n_left_out: int = 0
) -> Audit:
    """The audit of a model that is right on these of N images, as they are and under attack."""
    audit = Audit(model, Path("audits") / model.label, params, N, n_left_out)
    for path in (Workspace().records(TARGET), Workspace().split, Workspace().checks):
        audit.path(path).parent.mkdir(parents=True, exist_ok=True)
    images = np.arange(N)
    is_clean, holds = np.isin(images, clean), np.isin(images, adaptive) & np.isin(images, clean)
    shared = {"image": images, "target": TARGET, "clean_correct": is_clean}
    unchanged = pd.DataFrame({**shared, "threat_model": "none", "attack": "clean", "eps": 0.0, "correct": is_clean})
    # what the recorded attack leaves, the search breaks
    attacked = pd.DataFrame({**shared, "threat_model": "adaptive", "attack": "pgd", "eps": EPS, "correct": is_clean})
    searched = {"threat_model": "adaptive", "attack": "sweep", "smallest_eps": np.where(holds, np.inf, EPS)}
    pd.concat([unchanged, attacked]).to_parquet(audit.path(Workspace().records(TARGET)))
    pd.DataFrame({"image": images, "target": TARGET, **searched}).to_parquet(
        audit.path(Workspace().smallest_eps(TARGET))
    )
    pd.DataFrame({"group": images // 2}).to_parquet(audit.path(Workspace().split))
    checks = [{"target": TARGET, "key": "ball", "status": "PASS", "explanation": "fine"}]
    checks += [{"target": TARGET, "key": key, "status": "FAIL", "explanation": f"about {key}"} for key in failing]
    checks += [{"target": "undefended", "key": "pgd", "status": "FAIL", "explanation": "of another"}]
    checks += [{"target": None, "key": "leakage", "status": "WARN", "explanation": "relatives"}]
    write_json(checks, audit.path(Workspace().checks))
    return audit


def champion() -> int | None:
    found = registry.holder_of(NAME, CHAMPION)
    return found.version if found else None


def test_the_first_needs_its_checks_alone(versions: list[Registered], params: Params) -> None:
    told, page = settle([plant(versions[0], params, range(5), range(2))], params, 0.05)
    assert champion() == 1
    assert "there was none to compare it with" in told
    assert "no champion yet" in page


def test_the_first_stays_candidate_where_a_check_fails(versions: list[Registered], params: Params) -> None:
    told, _ = settle([plant(versions[0], params, range(30), range(30), failing=("noise",))], params, 0.05)
    assert champion() is None
    assert "its check noise fails: about noise" in told


def test_an_equal_becomes_champion_and_the_comparison_is_kept(versions: list[Registered], params: Params) -> None:
    registry.move_champion(versions[0], "first")
    audits = [plant(versions[1], params, range(30), range(20)), plant(versions[0], params, range(30), range(20))]
    told, page = settle(audits, params, 0.05)
    assert champion() == 2
    assert registry.history(NAME)[-1].why == told
    assert "toy-v2 becomes champion in place of toy-v1" in told
    assert (audits[0].folder / "promotion.md").read_text() == page
    kept = json.loads((audits[0].folder / "promotion.json").read_text())
    assert [each["p_value"] for each in kept["comparisons"]] == [1, 1]
    assert kept["objections"] == []
    client = MlflowClient()
    (run,) = [value for key, value in client.get_model_version(NAME, "2").tags.items() if key.startswith("audit.")]
    assert {file.path for file in client.list_artifacts(run)} == {"promotion.md", "promotion.json"}


def test_one_that_is_worse_under_attack_does_not_however_good_it_is_clean(
    versions: list[Registered], params: Params
) -> None:
    registry.move_champion(versions[0], "first")
    audits = [plant(versions[1], params, range(40), range(10)), plant(versions[0], params, range(30), range(20))]
    told, page = settle(audits, params, 0.05)
    assert champion() == 1
    # McNemar: 0 against 10 images, 2 / 2^10
    assert "its adaptive accuracy is significantly worse: 25.0 %" in told
    assert "0 : 10 images that only one gets right, p = 0.002" in told
    assert "clean accuracy is significantly worse" not in told
    assert page.count("**worse**") == 1


def test_one_that_is_worse_clean_does_not_however_robust_it_is(versions: list[Registered], params: Params) -> None:
    registry.move_champion(versions[0], "first")
    audits = [plant(versions[1], params, range(24), range(24)), plant(versions[0], params, range(30), range(10))]
    told, _ = settle(audits, params, 0.05)
    assert champion() == 1
    # 0 against 6 images, 2 / 2^6
    assert "its clean accuracy is significantly worse: 60.0 %" in told
    assert "p = 0.031" in told
    assert "adaptive accuracy is" not in told


def test_a_difference_within_chance_does_not_keep_it_back(versions: list[Registered], params: Params) -> None:
    registry.move_champion(versions[0], "first")
    # 0 against 5 images, 2 / 2^5 = 0.0625
    audits = [plant(versions[1], params, range(30), range(15)), plant(versions[0], params, range(30), range(20))]
    settle(audits, params, 0.05)
    assert champion() == 2
    registry.champion_back(NAME)
    settle(audits, params, 0.1)
    assert champion() == 1


def test_a_check_that_fails_keeps_the_better_back(versions: list[Registered], params: Params) -> None:
    registry.move_champion(versions[0], "first")
    better = plant(versions[2], params, range(40), range(40), failing=("gradients", "ball"))
    told, page = settle([better, plant(versions[0], params, range(30), range(20))], params, 0.05)
    assert champion() == 1
    assert "toy-v1 stays: its check gradients fails: about gradients; its check ball fails" in told
    assert "check **gradients** fails" in page


def test_going_back_after_two_promotions_leads_to_the_one_between(versions: list[Registered], params: Params) -> None:
    for model in versions:
        settle([plant(model, params, range(30), range(20))], params, 0.05)
    assert champion() == 3
    assert [registry.champion_back(NAME).version for _ in range(2)] == [2, 1]


def test_others_images_are_not_compared() -> None:
    first = pd.Series([True, False], index=[0, 1])
    with pytest.raises(ValueError, match="clean: candidate and champion were asked about different images"):
        compare("clean", first, first.set_axis([0, 2]), pd.Series([0, 1, 2]), 100, 0)


def test_an_eps_that_was_not_attacked_is_refused(versions: list[Registered], params: Params) -> None:
    audit = plant(versions[0], params, range(30), range(20))
    records, smallest = (
        pd.read_parquet(audit.path(path)) for path in (Workspace().records(TARGET), Workspace().smallest_eps(TARGET))
    )
    with pytest.raises(ValueError, match="autoencoder was not attacked at eps 3"):
        outcomes_of(records, smallest, TARGET, 3.0)
    found = outcomes_of(records, smallest, TARGET, EPS)
    assert (int(found["clean"].sum()), int(found["adaptive"].sum())) == (30, 20)


def test_the_difference_and_its_interval_are_of_the_same_images() -> None:
    rng = np.random.default_rng(0)
    champion = pd.Series(rng.random(200) < 0.5)
    candidate = champion | pd.Series(rng.random(200) < 0.4)
    found = compare("clean", candidate, champion, pd.Series(np.arange(200) // 2), 500, 0)
    assert found.difference.value == pytest.approx(found.candidate.value - found.champion.value)
    assert 0 < found.difference.low < found.difference.value < found.difference.high
    assert (found.n_wrong_alone, found.n_right_alone) == (0, int((candidate & ~champion).sum()))
    assert not found.is_worse(0.05)
