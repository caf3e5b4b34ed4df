"""Checkpoints: complete or absent, and named by everything that can change them."""

import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from tasks.attacks import attack_run, searches
from tasks.attacks.attack_run import AttackRun
from tasks.attacks.fixed_eps import craft
from tasks.core import checkpoints as module
from tasks.core import source
from tasks.core.checkpoints import Checkpoints, digest_of_code
from tasks.core.workspace import Workspace
from tasks.params import UNDEFENDED, Autoencoder, Params, ParamsError, Preprocessing, Section, parse_params
from tasks.tracking import Tracker
from tests.conftest import ROOT, VALUES, with_overrides
from tests.small_workspace import SMALL

pytestmark = pytest.mark.usefixtures("few_channels")

STAGES: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
KINDS = {values["kind"]: name for name, values in VALUES["defences"].items()} | {"preprocessing": "noise"}
"""Kind of defence -> the defence that stands for it."""
RESUMABLE: list[tuple[str, str | None]] = [
    ("train_classifier", None),
    ("train_autoencoder", None),
    *(("train_defence", defence) for defence in KINDS.values()),
    ("attack", None),
    ("attack_defence", "noise"),
    ("simulate_labelling", None),
]
"""Steps that have checkpoints, and the defence for steps that run once for each."""
NAMES = ["@".join(filter(None, step)) for step in RESUMABLE]


def write_complete(folder: Path) -> None:
    (folder / "complete.parquet").write_text("complete")


class TestCheckpoints:
    """One checkpoint."""

    def test_another_value_of_any_ingredient_gives_another_checkpoint(self, tmp_path: Path) -> None:
        base = {"model": "a", "eps": 0.25, "seed": 0, "settings": {"norm": "linf", "pgd": {"n_steps": 10}}}
        others = [
            base | {"model": "b"},
            base | {"eps": 0.5},
            base | {"seed": 1},
            base | {"settings": {"norm": "linf", "pgd": {"n_steps": 11}}},
        ]
        checkpoints = Checkpoints(tmp_path, ["core"], 6)
        found = [checkpoints.get_or_compute("a part", write_complete, **ingredients) for ingredients in [base, *others]]
        reordered = dict(reversed(base.items()))
        assert checkpoints.get_or_compute("a part", write_complete, **reordered) == found[0]
        assert len(set(found)) == 5
        for other in (Checkpoints(tmp_path, ["core"], 1, threads=2), Checkpoints(tmp_path, ["records"], 1)):
            assert other.get_or_compute("a part", write_complete, **base) not in found

    def test_an_ingredient_cannot_replace_a_common_ingredient(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, ["core"], settings={"norm": "linf"})
        with pytest.raises(AssertionError, match="settings"):
            checkpoints.path(settings={"n_steps": 10})

    def test_a_checkpoint_is_complete_or_absent(self, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoints"

        def interrupted(partial: Path) -> None:
            (partial / "half.parquet").write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Checkpoints(folder, ["core"], 1).get_or_compute("a part", interrupted, seed=0)
        assert all(path.suffix == ".partial" for path in folder.iterdir())
        checkpoint = Checkpoints(folder, ["core"], 1).get_or_compute("a part", write_complete, seed=0)
        assert sorted(path.name for path in checkpoint.iterdir()) == ["complete.parquet", "digests.json"]
        assert list(folder.iterdir()) == [checkpoint]

    @pytest.mark.parametrize("file", ["complete.parquet", "digests.json"])
    @pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
    def test_a_damaged_part_is_computed_again(self, file: str, damage: Callable[[Path], None], tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, ["core"], 1)
        checkpoint = checkpoints.get_or_compute("a part", write_complete, seed=0)
        damage(checkpoint / file)
        assert checkpoints.get_or_compute("a part", write_complete, seed=0) == checkpoint
        assert (checkpoint / "complete.parquet").read_text() == "complete"

    def test_a_finished_part_is_not_computed_again_and_progress_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        Checkpoints(tmp_path, ["core"], 2).get_or_compute("the first", write_complete, seed=0)
        checkpoints = Checkpoints(tmp_path, ["core"], 2)
        checkpoints.get_or_compute("the first", lambda folder: pytest.fail("computed again"), seed=0)
        checkpoints.get_or_compute("the second", write_complete, seed=1)
        assert caplog.messages[1:] == ["1/2  the first: resumed from a checkpoint", "2/2  the second: 0 s"]


class TestCode:
    """The digest of the code that can change a result."""

    @pytest.fixture
    def tasks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A copy of ``tasks/`` that digests are computed from."""
        copy = tmp_path / "tasks"
        shutil.copytree(ROOT / "tasks", copy, ignore=shutil.ignore_patterns("__pycache__"))
        self.at_start = lambda: monkeypatch.setattr(source, "AT_START", source.digests_of_files(copy, source.SUFFIXES))
        return copy

    def digest(self) -> str:
        self.at_start()
        return digest_of_code(attack_run.CODE)

    def test_the_same_code_has_the_same_digest(self, tasks: Path) -> None:
        assert self.digest() == self.digest()

    @pytest.mark.parametrize(
        "folder", ["reporting", "evaluation", "analysis", "outcomes", "statistics", "labelling", "serving", "tracking"]
    )
    def test_a_change_outside_the_packages_does_not_change_the_digest(self, folder: str, tasks: Path) -> None:
        before = self.digest()
        sources = sorted((tasks / folder).rglob("*.py"))
        assert sources
        for file in sources:
            file.write_text(file.read_text(encoding="utf-8") + "\nCHANGED = 1\n", encoding="utf-8")
        (tasks / folder / "new.py").write_text("NEW = 1\n")
        (tasks / "report.py").write_text("NEW = 1\n")
        assert self.digest() == before

    def test_every_change_inside_the_packages_changes_the_digest(self, tasks: Path) -> None:
        digests = [self.digest()]
        for name in attack_run.CODE:
            sources = sorted((tasks / name).rglob("*.py")) if (tasks / name).is_dir() else [tasks / name]
            assert sources
            for file in sources:
                file.write_text(file.read_text(encoding="utf-8") + "\nCHANGED = 1\n", encoding="utf-8")
                digests.append(self.digest())
        (tasks / "attacks" / "new.py").write_text("NEW = 1\n")
        digests.append(self.digest())
        (tasks / "attacks" / "suite.py").rename(tasks / "attacks" / "renamed.py")
        digests.append(self.digest())
        assert len(set(digests)) == len(digests)

    def test_another_version_of_a_library_changes_the_digest(
        self, tasks: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.digest()
        version = module.version
        monkeypatch.setattr(module, "version", lambda name: "0.0" if name == "torch" else version(name))
        assert self.digest() != before


BASE: dict[str, Any] = {
    # fewer images than there are, so that the number matters
    "attack.max_images": 20,
    "attack.max_art_reference_images": 8,
    "attack.max_black_box_images": 8,
    "attack.max_validation_images": 4,
}
NEEDED: dict[str, dict[str, Any]] = {"train_classifier.pretrained": {"train_classifier.architecture": "resnet18"}}
"""Parameter -> other parameters that must have these values before it can change."""
ONE_VALUE = {
    "defences.trades.adversary.pgd.n_random_starts",
    # the list of defences must include one of this kind
    "defences.autoencoder.kind",
}
"""Parameters that have one allowed value."""


def choices() -> dict[str, set[Any]]:
    """Allowed values of all fields with a fixed choice, by the name of the field."""
    found: dict[str, set[Any]] = {}
    waiting: list[type[Section]] = [Section]
    while waiting:
        section = waiting.pop()
        waiting += section.__subclasses__()
        for name, field in section.model_fields.items():
            found.setdefault(name, set()).update(_literals(field.annotation))
    return found


def _literals(annotation: Any) -> set[Any]:
    """The values of a ``Literal``, also inside a tuple or a union."""
    arguments = get_args(annotation)
    values = {each for each in arguments if isinstance(each, str | int) and not isinstance(each, bool)}
    return values.union(*(_literals(each) for each in arguments if not isinstance(each, str | int)))


CHOICES = choices()


def other_values(name: str, value: Any) -> list[Any]:
    """Candidates for another value of a parameter; some of them may not be allowed."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value * 2, value + 8, *CHOICES.get(name, set())]
    if isinstance(value, float):
        return [value * 0.9, value * 1.1, 0.1, 2.0]
    if isinstance(value, str):
        return [*sorted(CHOICES.get(name, set()) - {value}, key=str), "resnet18"]
    if isinstance(value, list):
        longer = [[*value, other] for item in value[-1:] for other in other_values(name, item)]
        changed = [
            [*value[:i], other, *value[i + 1 :]] for i, item in enumerate(value) for other in other_values(name, item)
        ]
        # a list of saved eps may be empty; it must include the eps that are analysed
        analysed = {VALUES["analyze"]["eps"], *VALUES["analyze"]["detector_evasion"]["eps"]}
        return [*changed, *longer, value[:-1], [*value, *sorted(analysed)]]
    assert isinstance(value, dict), value
    return [value | {key: other} for key, item in value.items() for other in other_values(key, item)]


def changed_params(key: str) -> tuple[Params, Params] | None:
    """Parameters before and after an allowed change of one of them; None if it has no other allowed value."""
    base = with_overrides(BASE | NEEDED.get(key, {}))
    before = parse_params(base)
    *parents, name = key.split(".")
    if name == "kind" or key == "classifier.source":
        candidates = other_sections(parents)
        key = ".".join(parents)
    else:
        candidates = other_values(name, before.flat()[key])
    for candidate in candidates:
        try:
            after = parse_params(with_overrides(BASE | NEEDED.get(key, {}) | {key: candidate}))
        except ParamsError:
            continue
        if after != before:
            return before, after
    return None


def other_sections(parents: list[str]) -> list[dict[str, Any]]:
    """Sections of another kind than the one at this place."""
    if parents[0] == "defences":
        own = VALUES["defences"][parents[1]]["kind"]
        return [section for section in VALUES["defences"].values() if section["kind"] != own]
    if parents == ["classifier"]:
        return [{"source": "http", "folder": "models", "address": "http://127.0.0.1:5001/invocations"}]
    assert parents == ["active_learning", "oracle"], parents
    return [{"kind": "pseudo_label", "confidence_threshold": 0.9}]


def parameters_of_stage(step: str, defence: str | None) -> list[str]:
    """Dotted keys of the parameters that a stage of dvc.yaml lists."""
    entries = [entry for entry in STAGES[step]["params"] if isinstance(entry, str)]
    entries = [entry.replace("${item.defence}", str(defence)) for entry in entries]
    keys = parse_params(with_overrides(BASE)).flat()
    return [key for key in keys if any(f"{key}.".startswith(f"{entry}.") for entry in entries)]


@pytest.mark.parametrize(("step", "defence"), RESUMABLE, ids=NAMES)
def test_every_parameter_of_a_stage_changes_the_parameters_of_the_step(step: str, defence: str | None) -> None:
    keys = parameters_of_stage(step, defence)
    assert len(keys) > 4
    one_value = set()
    for key in keys:
        if (both := changed_params(key)) is None:
            one_value.add(key)
            continue
        before, after = (params.of_step(step, defence) for params in both)
        assert before != after, f"{key} is missing in STEP_PARAMS"
    assert sorted(one_value - ONE_VALUE) == []


class Stop(Exception):
    """Ends a step before it computes anything."""


@pytest.fixture
def checkpoints_of(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Checkpoints]]:
    """The checkpoints with which a step begins."""
    created: list[Checkpoints] = []
    initialise = Checkpoints.__init__

    def record(self: Checkpoints, *arguments: Any, **common: Any) -> None:
        initialise(self, *arguments, **common)
        created.append(self)

    def stop(*_: Any, **__: Any) -> None:
        raise Stop

    def begin(step: str, defence: str | None, params: Params) -> list[Checkpoints]:
        created.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "__init__", record)
            for name in ("path", "get_or_compute"):
                patch.setattr(Checkpoints, name, stop)
            function = getattr(import_module(f"tasks.{step}"), step)
            arguments = (workspace, params, Tracker(), *filter(None, [defence]))
            with suppress(Stop):
                function(*arguments)
        return list(created)

    return begin


PARTS = ("attack", "attack_defence")
"""Steps whose parts have checkpoints with ingredients of their own."""
WITHOUT_TRAINING = (Autoencoder, Preprocessing)


@pytest.mark.parametrize(
    ("step", "defence"),
    [each for each in RESUMABLE if each[0] not in PARTS],
    ids=[name for name in NAMES if name.partition("@")[0] not in PARTS],
)
def test_every_checkpoint_of_a_step_depends_on_the_parameters_of_the_step(
    step: str,
    defence: str | None,
    workspace: Workspace,
    checkpoints_of: Callable[..., list[Checkpoints]],
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = params_with(SMALL)
    if defence is not None:
        workspace.step_folder(step, defence).mkdir(parents=True, exist_ok=True)
    paths = []
    for number in (1, 2):
        monkeypatch.setattr(Params, "of_step", lambda *_, number=number: {"parameter": number})
        paths.append([each.path() for each in checkpoints_of(step, defence, params)])
    if defence is not None and isinstance(params.defences[defence], WITHOUT_TRAINING):
        assert paths == [[], []]
    else:
        assert paths[0]
        assert not set(paths[0]) & set(paths[1])


@pytest.fixture
def paths_of_parts(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Callable[[Params, str], set[Path]]:
    """The checkpoints of all parts of the attack on one target, which are not computed."""
    get_or_compute = Checkpoints.get_or_compute

    def paths(params: Params, target: str) -> set[Path]:
        found: set[Path] = set()

        def record(self: Checkpoints, _description: str, _compute: Any, **ingredients: Any) -> Path:
            found.add(self.path(**ingredients))
            return self.folder

        def compute_first(self: Checkpoints, *arguments: Any, **ingredients: Any) -> Path:
            # predictions on the clean images, which every part needs
            found.add(self.path(**ingredients))
            return get_or_compute(self, *arguments, **ingredients)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "get_or_compute", compute_first)
            run = AttackRun.load(workspace, params, target)
            # a part reads the result of the part before
            patch.setattr(searches.pq, "read_table", lambda _: None)
            patch.setattr(Checkpoints, "get_or_compute", record)
            for part in run.parts():
                part()
        return found

    return paths


def small(params: Params) -> Params:
    """The same parameters on the CPU."""
    return params.model_copy(update={"compute": params.compute.model_copy(update={"device": "cpu"})})


@pytest.mark.parametrize(("step", "target"), [("attack", UNDEFENDED), ("attack_defence", "noise")])
def test_every_parameter_of_an_attack_changes_a_checkpoint(
    step: str,
    target: str,
    workspace: Workspace,
    paths_of_parts: Callable[[Params, str], set[Path]],
    params_with: Callable[..., Params],
) -> None:
    if step == "attack_defence":
        train_noise(workspace, params_with(SMALL))
    unchanged = []
    for key in parameters_of_stage(step, None if target == UNDEFENDED else target):
        # the device of the attack is an ingredient, not the parameter, which may be auto; three classes have no
        # fixed sensitivity, and the biases that follow from it are ingredients
        if key in {"compute.device", "attack.fixed_sensitivity"} or (both := changed_params(key)) is None:
            continue
        before, after = (paths_of_parts(small(params), target) for params in both)
        if before == after:
            unchanged.append(key)
    assert unchanged == []


@pytest.mark.parametrize("key", ["seed", "compute.threads", "compute.precision", "attack.norm", "attack.eps"])
def test_no_checkpoint_of_an_attack_with_another_seed_norm_grid_or_precision_is_used(
    key: str, paths_of_parts: Callable[[Params, str], set[Path]]
) -> None:
    both = changed_params(key)
    assert both is not None
    before, after = (paths_of_parts(small(params), UNDEFENDED) for params in both)
    assert len(before) > 10
    assert not before & after


@pytest.mark.parametrize(
    "change",
    [{"defences.noise.n_eot_samples": 5}, {"defences.noise.transforms": [{"kind": "gaussian_noise", "std": 0.03}]}],
    ids=["n_eot_samples", "std"],
)
def test_no_checkpoint_of_an_attack_on_a_defence_with_other_settings_is_used(
    change: dict[str, Any],
    workspace: Workspace,
    paths_of_parts: Callable[[Params, str], set[Path]],
    params_with: Callable[..., Params],
) -> None:
    found = []
    for overrides in ({}, change):
        params = params_with(SMALL | overrides)
        train_noise(workspace, params)
        found.append(paths_of_parts(params, "noise"))
    before, after = found
    assert len(before) > 5
    assert not before & after


@pytest.mark.parametrize(("target", "is_used"), [(UNDEFENDED, True), ("noise", False)])
def test_records_of_a_random_target_at_other_operating_points_are_not_used(
    target: str,
    is_used: bool,
    workspace: Workspace,
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They have the expected accuracies at every operating point; those of other targets have the logits."""
    params = small(params_with(SMALL))
    train_noise(workspace, params)
    attacked = AttackRun.load(workspace, params, target).attacked
    *first, last = attacked.operating_points
    others = [*first, replace(last, biases=tuple(bias + 1 for bias in last.biases))]
    monkeypatch.setattr(Checkpoints, "get_or_compute", lambda self, _text, _compute, **made_of: self.path(**made_of))
    paths = [
        craft(each, "pgd", attacked.rows)["pgd"] for each in (attacked, replace(attacked, operating_points=others))
    ]
    assert (paths[0] == paths[1]) == is_used


def train_noise(workspace: Workspace, params: Params) -> None:
    from tasks.train_defence import train_defence

    workspace.step_folder("train_defence", "noise").mkdir(parents=True, exist_ok=True)
    train_defence(workspace, params, Tracker(), "noise")


AFTER_CHECKPOINTS: dict[str, set[str]] = {
    # the settings of the defence as JSON
    "train_defence": {"tasks/core/files.py"},
    # the download of a trained classifier and its comparison with the original, which have no checkpoints
    "train_classifier": {"tasks/tracking/imported.py", "tasks/core/files.py"},
}
"""Dependencies of a stage that cannot change its checkpoints."""


@pytest.mark.parametrize(("step", "defence"), RESUMABLE, ids=NAMES)
def test_checkpoints_depend_on_the_code_that_the_stage_depends_on(
    step: str,
    defence: str | None,
    workspace: Workspace,
    checkpoints_of: Callable[..., list[Checkpoints]],
    params_with: Callable[..., Params],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if step == "attack_defence":
        train_noise(workspace, params_with(SMALL))
    elif defence is not None:
        workspace.step_folder(step, defence).mkdir(parents=True, exist_ok=True)
    codes: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "digest_of_code", lambda code: codes.append(code) or "digest")
    checkpoints_of(step, defence, params_with(SMALL))
    own = {f"tasks/{step}.py"} | AFTER_CHECKPOINTS.get(step, set())
    needed = {dep for dep in STAGES[step]["deps"] if dep.startswith("tasks/")} - own
    for code in codes:
        uncovered = [dep for dep in needed if not any(Path(dep).is_relative_to(Path("tasks", name)) for name in code)]
        assert uncovered == []
