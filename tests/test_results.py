"""Archiving of results, and the tables of the documents that are written from the archive."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from docs import RESULTS, keep_results, write_tables
from tasks.core.workspace import Workspace
from tasks.params import ParamsError, load_params
from tests.archives import manifest_problems
from tests.conftest import ROOT, VALUES
from tests.two_steps import init_dvc_without_git

# target, threat model, attack, eps, accuracy and its interval, precision, recall, f1
POINTS = [
    ("undefended", "none", "clean", 0.0, 0.96, 0.938, 0.974, 0.9512, 0.9701, 0.9606),
    ("autoencoder", "none", "clean", 0.0, 0.72, 0.68, 0.76, 0.7, 0.7, 0.7),
    ("undefended", "adaptive", "fgsm", 1.0, 0.2, 0.16, 0.24, 0.2, 0.2, 0.2),
    ("undefended", "adaptive", "pgd", 1.0, 0.1, 0.08, 0.13, 0.1, 0.1, 0.1),
    ("autoencoder", "transfer", "pgd", 1.0, 0.6, 0.56, 0.64, 0.6, 0.6, 0.6),
    ("autoencoder", "adaptive", "pgd", 1.0, 0.3, 0.26, 0.34, 0.3, 0.3, 0.3),
]
COLUMNS = ["target", "threat_model", "attack", "eps", "accuracy", "accuracy_low", "accuracy_high"]
COLUMNS += ["precision", "recall", "f1"]

DATA = [{"path": "data/check_params", "md5": "1.dir"}, {"path": "images", "md5": "2.dir", "nfiles": 500}]
"""Recorded dependencies of the step acquire."""


@pytest.fixture
def workspace(tmp_path: Path, own_store: str) -> Workspace:
    """Outputs of the pipeline on images of patients, as far as they are archived."""
    workspace = Workspace(tmp_path)
    for attribute in keep_results.FILES:
        path = getattr(workspace, attribute)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name}\n", encoding="utf-8")
    for target in ("undefended", "autoencoder", "retrained_autoencoder"):
        workspace.operating_points(target).parent.mkdir(parents=True, exist_ok=True)
        workspace.operating_points(target).write_text(json.dumps({"biases": target}), encoding="utf-8")
    write_info(workspace, is_phantom=False)
    pd.DataFrame(POINTS, columns=COLUMNS).assign(n=500, norm="linf").to_csv(workspace.robustness, index=False)
    workspace.figures.mkdir(parents=True)
    for name in ("robustness-pgd.png", "images-attack.png", "images-classes.png"):
        (workspace.figures / name).write_bytes(b"PNG")
    write_yaml(workspace.params_file, VALUES)
    params = {"seed": VALUES["seed"], "attack": VALUES["attack"], "prepare.split": VALUES["prepare"]["split"]}
    stages = {"attack": {"params": {"params.yaml": params}}, "acquire": {"deps": DATA}}
    write_yaml(tmp_path / "dvc.lock", {"stages": stages})
    return workspace


def write_info(workspace: Workspace, is_phantom: bool, n_test: int = 500) -> None:
    leakage = {"near_duplicate_in_train": 0.1, "group_in_train": 0.825}
    info = {"is_phantom": is_phantom, "leakage": leakage, "n_images": {"test": {"a": 100, "b": n_test - 100}}}
    workspace.dataset_info.write_text(json.dumps(info), encoding="utf-8")


def write_yaml(path: Path, values: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)


def archive(workspace: Workspace, name: str = "run") -> Path:
    return keep_results.keep_results(name, workspace.root)


def archived_figures(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.png"))


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_numbers_are_archived_byte_for_byte(workspace: Workspace) -> None:
    folder = archive(workspace, "stratified-80-20")
    assert folder == workspace.root / "docs/evidence/results/stratified-80-20"
    for attribute, archived in keep_results.FILES.items():
        if attribute != "params_file":
            assert (folder / archived).read_bytes() == getattr(workspace, attribute).read_bytes()
    assert (folder / "figures/robustness-pgd.png").read_bytes() == b"PNG"


def test_the_results_of_each_image_are_archived_for_selected_targets_without_adversarial_images(
    workspace: Workspace,
) -> None:
    workspace.records("autoencoder").write_bytes(b"PAR1")
    (workspace.attack_folder("autoencoder") / "adversarial.npy").write_bytes(b"pixels")
    records = archive(workspace) / keep_results.RECORDS
    found = {path.relative_to(records).as_posix(): path.read_bytes() for path in records.rglob("*") if path.is_file()}
    assert found == {
        "autoencoder/operating_points.json": b'{"biases": "autoencoder"}',
        "autoencoder/records.parquet": b"PAR1",
        "undefended/operating_points.json": b'{"biases": "undefended"}',
    }


def test_histories_of_trained_defences_are_archived_by_name(workspace: Workspace) -> None:
    write_yaml(workspace.params_file, {**VALUES, "selected_defences": ["autoencoder", "retrained_autoencoder"]})
    history = workspace.defence_history("retrained_autoencoder")
    history.parent.mkdir(parents=True)
    history.write_text("epoch\n1\n", encoding="utf-8")
    folder = archive(workspace)
    assert read(folder / "retrained_autoencoder_history.csv") == "epoch\n1\n"
    assert (folder / "autoencoder_history.csv").read_bytes() == workspace.autoencoder_history.read_bytes()


def test_two_histories_of_one_name_are_an_error(workspace: Workspace) -> None:
    history = workspace.defence_history("autoencoder")
    history.parent.mkdir(parents=True)
    history.write_text("epoch\n1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"autoencoder_history.csv: two training histories have this name"):
        archive(workspace)


@pytest.mark.parametrize("how", ["archived", "copied"])
def test_an_interrupted_archive_is_known_as_incomplete(
    how: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = archive(workspace)
    kept = shutil.copytree(folder, tmp_path / "kept")
    assert not [each for each in manifest_problems(folder.parent) if "incomplete" in each]
    copied, copy = [], shutil.copyfile

    def interrupt(source: Path, target: Path, **options: Any) -> None:
        if len(copied) == 5:
            raise KeyboardInterrupt
        copied.append(copy(source, target, **options))

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        archive(workspace) if how == "archived" else keep_results.copy_archive(kept, folder)
    problems = manifest_problems(folder.parent)
    assert "run: incomplete, its writing was interrupted. Archive the results again" in problems


def test_outputs_of_other_inputs_are_not_archived(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = workspace.root
    write_yaml(root / "dvc.yaml", {"stages": {"step": {"cmd": "cp in out", "deps": ["in"], "outs": ["out"]}}})
    (root / "dvc.lock").unlink()
    (root / "in").write_text("1")
    init_dvc_without_git(root)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["keep_results", "run"])
    subprocess.run([Path(sys.executable).parent / "dvc", "repro", "--quiet"], check=True)
    keep_results.check_up_to_date()
    (root / "out").write_text("by hand")
    with pytest.raises(SystemExit, match="dvc status reports changes"):
        keep_results.main()


def test_the_path_of_the_images_is_not_archived(workspace: Workspace) -> None:
    params = {**VALUES, "acquire": {**VALUES["acquire"], "folder": "/home/someone/sars-cov-2-ct"}}
    write_yaml(workspace.params_file, params)
    archived = YAML(typ="safe").load(archive(workspace) / "params.yaml")
    assert archived == {**VALUES, "acquire": {**VALUES["acquire"], "folder": "sars-cov-2-ct"}}


def test_figures_that_show_images_of_patients_are_not_archived(workspace: Workspace) -> None:
    assert archived_figures(archive(workspace)) == ["robustness-pgd.png"]


def test_large_figures_are_not_archived(workspace: Workspace) -> None:
    (workspace.figures / "embeddings.png").write_bytes(bytes(keep_results.MAX_FIGURE_BYTES + 1))
    assert archived_figures(archive(workspace)) == ["robustness-pgd.png"]


def test_figures_that_show_phantoms_are_archived(workspace: Workspace) -> None:
    write_info(workspace, is_phantom=True)
    assert archived_figures(archive(workspace)) == ["images-attack.png", "images-classes.png", "robustness-pgd.png"]


def test_an_archive_of_the_same_name_is_replaced(workspace: Workspace) -> None:
    folder = archive(workspace)
    (folder / "figures/old.png").write_bytes(b"")
    workspace.metrics.write_text("new", encoding="utf-8")
    archive(workspace)
    assert not (folder / "figures/old.png").exists()
    assert read(folder / "metrics.json") == "new"


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "A", "a b", "-a", "a-", "a--b", "a.b", "ä"])
def test_an_invalid_name_is_an_error(workspace: Workspace, name: str) -> None:
    with pytest.raises(ValueError, match="a-z, 0-9 and single hyphens are allowed"):
        archive(workspace, name)
    assert not (workspace.root / RESULTS).exists()


@pytest.mark.parametrize("missing", ["metrics", "checks", "dvc.lock", "figures"])
def test_a_missing_output_is_an_error_and_the_archive_remains(workspace: Workspace, missing: str) -> None:
    folder = archive(workspace)
    path = workspace.root / "dvc.lock" if missing == "dvc.lock" else getattr(workspace, missing)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{path} not found. Run dvc repro first"):
        archive(workspace)
    assert (folder / "metrics.json").is_file()


def test_results_of_other_parameters_are_an_error(workspace: Workspace) -> None:
    write_yaml(workspace.params_file, {**VALUES, "attack": {**VALUES["attack"], "eps": [1]}})
    with pytest.raises(ValueError, match=r"attack in params\.yaml has changed since the stage attack ran"):
        archive(workspace)


@pytest.mark.parametrize("run", sorted(path.name for path in (ROOT / RESULTS).glob("*/")))
def test_parameters_of_the_archived_runs_are_valid_or_say_what_replaced_them(run: str) -> None:
    path = ROOT / RESULTS / run / "params.yaml"
    try:
        assert load_params(path).acquire.source == "folder"
    except ParamsError as error:
        first, *lines = str(error).splitlines()
        assert first == f"{path} is not valid:"
        assert all("this key is now" in line or "this key was removed" in line for line in lines), lines


def test_tables_of_this_repository_are_up_to_date() -> None:
    assert not write_tables.outdated_documents(ROOT)


def test_clean_table_has_one_row_for_each_run_below_the_study(workspace: Workspace) -> None:
    archive(workspace, "stratified")
    write_info(workspace, is_phantom=True, n_test=1240)
    archive(workspace, "phantoms")
    text = "Before\n<!-- table: clean stratified phantoms -->\nold\n<!-- end table -->\nAfter\n"
    assert write_tables.with_tables(text, "README.md", workspace.root / RESULTS) == (
        "Before\n"
        "<!-- table: clean stratified phantoms -->\n"
        "\n"
        "| run | test images | group member in training | accuracy [95 %] | precision | recall | F1 |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| the study |  |  | 93.23 % |  |  |  |\n"
        "| stratified | 500 | 82.5 % | 96.0 % [93.8, 97.4] | 95.1 % | 97.0 % | 96.1 % |\n"
        "| phantoms (phantoms) | 500 of 1240 | 82.5 % | 96.0 % [93.8, 97.4] | 95.1 % | 97.0 % | 96.1 % |\n"
        "\n"
        "<!-- end table -->\n"
        "After\n"
    )


def test_phantoms_are_not_compared_with_the_study(workspace: Workspace) -> None:
    write_info(workspace, is_phantom=True)
    archive(workspace, "phantoms")
    assert "study" not in write_tables.clean_table(workspace.root / RESULTS, "phantoms")


def test_headline_is_the_text_of_the_report(workspace: Workspace) -> None:
    workspace.headline.write_text("Without a defence, balanced accuracy is 96.0 %.\n", encoding="utf-8")
    results = archive(workspace).parent
    assert write_tables.headline_text(results, "run") == "Without a defence, balanced accuracy is 96.0 %.\n"


def write_documents(root: Path, readme: str, page: str = "# Table\n") -> None:
    (root / "README.md").write_text(readme, encoding="utf-8")
    for name in write_tables.DOCUMENTS[1:]:
        (root / name).write_text(page, encoding="utf-8")


def run(monkeypatch: pytest.MonkeyPatch, workspace: Workspace, *arguments: str) -> None:
    """Run the command in the workspace."""
    monkeypatch.chdir(workspace.root)
    monkeypatch.setattr("sys.argv", ["write_tables", *arguments])
    write_tables.main()


def test_a_second_run_changes_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive(workspace)
    headline, clean = (f"<!-- table: {kind} run -->\n<!-- end table -->\n" for kind in ("headline", "clean"))
    write_documents(workspace.root, headline, clean)
    run(monkeypatch, workspace)
    assert capsys.readouterr().out == "".join(f"wrote {name}\n" for name in write_tables.DOCUMENTS)
    texts = [read(workspace.root / name) for name in write_tables.DOCUMENTS]
    run(monkeypatch, workspace)
    assert capsys.readouterr().out == ""
    assert [read(workspace.root / name) for name in write_tables.DOCUMENTS] == texts


def test_check_fails_if_a_table_is_out_of_date_and_writes_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(workspace)
    write_documents(workspace.root, "<!-- table: headline run -->\n<!-- end table -->\n")
    run(monkeypatch, workspace)
    run(monkeypatch, workspace, "--check")
    edited = read(workspace.root / "README.md").replace("headline.md\n", "another headline\n")
    write_documents(workspace.root, edited)
    with pytest.raises(SystemExit, match=r"out of date: README\.md. Run python -m docs\.write_tables"):
        run(monkeypatch, workspace, "--check")
    assert read(workspace.root / "README.md") == edited


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: nonsense run -->\n<!-- end table -->", "README.md: unknown kind of table 'nonsense'. Use one of"),
        ("<!-- table: -->\n<!-- end table -->", "README.md: unknown kind of table ''"),
        ("<!-- table: clean -->\n<!-- end table -->", "README.md: table 'clean' has no run"),
        ("<!-- table: clean lost -->\n<!-- end table -->", r"no archived results in .*lost. Archived runs: run\."),
        ("<!-- table: clean run -->\n", "README.md: a marker is not valid"),
        ("<!-- table: clean run --> <!-- end table -->", "README.md: a marker is not valid"),
        ("<!-- table: clean run -->\n<!-- table: headline run -->\n<!-- end table -->", "'clean run' is not closed"),
    ],
)
def test_an_invalid_marker_is_an_error_and_nothing_is_written(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    archive(workspace)
    write_documents(workspace.root, text, "<!-- table: headline run -->\n<!-- end table -->\n")
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, workspace)
    assert read(workspace.root / "README.md") == text
    assert "headline.md" not in read(workspace.root / write_tables.DOCUMENTS[1])


def test_claims_table_has_one_row_for_each_claim(workspace: Workspace) -> None:
    claim = {"statement": "Features overlap", "measure": "AUROC", "result_by_eps": {"2": "holds", "4": "holds"}}
    judged = [
        claim | {"value": 0.61234, "low": 0.5, "high": 0.69, "n": 400, "result": "holds"},
        claim | {"value": None, "low": None, "high": None, "n": None, "result": "not tested", "result_by_eps": {}},
    ]
    workspace.claims.write_text(json.dumps(judged), encoding="utf-8")
    assert write_tables.claims_table(archive(workspace).parent, "run").splitlines()[2:] == [
        "| Features overlap | AUROC | 0.612 [0.500, 0.690] | 400 | **holds** | 2, 4: holds |",
        "| Features overlap | AUROC | – | – | **not tested** | – |",
    ]


def write_comparison(folder: Path) -> None:
    """A run in which a defence has the highest accuracy of two targets at eps 1, and the lowest at eps 4."""
    test = {"next_target": "undefended", "n_only_this_correct": 4, "n_only_next_correct": 0, "p_value": 0.125}
    rows = [
        {"threat_model": "adaptive", "eps": 1.0, "rank": 1, "target": "strong_one", "robust_accuracy": 0.9, **test},
        {"threat_model": "adaptive", "eps": 1.0, "rank": 2, "target": "undefended", "robust_accuracy": 0.5},
        {"threat_model": "adaptive", "eps": 4.0, "rank": 1, "target": "undefended", "robust_accuracy": 0.2},
        {"threat_model": "adaptive", "eps": 4.0, "rank": 2, "target": "strong_one", "robust_accuracy": 0.1},
        {"threat_model": "transfer", "eps": 1.0, "rank": 1, "target": "strong_one", "robust_accuracy": 0.95},
    ]
    table = pd.DataFrame(rows).assign(clean_accuracy=0.96, operating_point="as_trained")
    for name in ("robust_accuracy", "clean_accuracy"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.01, table[name] + 0.01
    table.to_csv(folder / "comparison.csv", index=False)


def test_comparison_table_ranks_the_targets_at_the_first_eps(workspace: Workspace) -> None:
    folder = archive(workspace)
    write_comparison(folder)
    head, _, *rows = write_tables.comparison_table(folder.parent, "run", "1", "4").splitlines()
    assert head.split(" | ")[1:4] == ["clean", "adaptive, ε = 1", "adaptive, ε = 4"]
    assert rows == [
        "| strong one | 96.0 % [95.0, 97.0] | 90.0 % [89.0, 91.0] | 10.0 % [9.0, 11.0] | – | 95.0 % [94.0, 96.0] | "
        "4 : 0, p = 0.125 |",
        "| undefended | 96.0 % [95.0, 97.0] | 50.0 % [49.0, 51.0] | 20.0 % [19.0, 21.0] | – | – | – |",
    ]
    at_4 = write_tables.comparison_table(folder.parent, "run", "4").splitlines()[2:]
    assert [row.split(" | ")[0] for row in at_4] == ["| undefended", "| strong one"]


def test_the_table_of_the_finding_has_transfer_at_the_first_eps_and_adaptive_attacks_at_each(
    workspace: Workspace,
) -> None:
    folder = archive(workspace)
    write_comparison(folder)
    head, _, *rows = write_tables.finding_table(folder.parent, "run", "1", "4").splitlines()
    assert head == "| target | clean | transfer, ε = 1/255 | adaptive, ε = 1/255 | adaptive, ε = 4/255 |"
    assert rows == [
        "| strong one | 96.0 % [95.0, 97.0] | 95.0 % [94.0, 96.0] | 90.0 % [89.0, 91.0] | 10.0 % [9.0, 11.0] |",
        "| undefended | 96.0 % [95.0, 97.0] | – | 50.0 % [49.0, 51.0] | 20.0 % [19.0, 21.0] |",
    ]


def test_a_comparison_table_is_about_the_targets_as_trained(workspace: Workspace) -> None:
    folder = archive(workspace)
    write_comparison(folder)
    before = write_tables.comparison_table(folder.parent, "run", "1", "4")
    table = pd.read_csv(folder / "comparison.csv")
    points = [table, table.assign(operating_point="recalibrated", rank=1)]
    pd.concat(points).to_csv(folder / "comparison.csv", index=False)
    assert write_tables.comparison_table(folder.parent, "run", "1", "4") == before


@pytest.mark.parametrize("eps", [(), ("3",)])
def test_a_comparison_table_needs_eps_of_the_run(workspace: Workspace, eps: tuple[str, ...]) -> None:
    folder = archive(workspace)
    write_comparison(folder)
    with pytest.raises(ValueError, match=r"table 'comparison run': ε is .*. Write one or more of 1, 4"):
        write_tables.comparison_table(folder.parent, "run", *eps)


def test_the_selection_table_has_the_rank_of_the_targets_by_attacked_validation_images(workspace: Workspace) -> None:
    folder = archive(workspace)
    values = {"a_net": (0.9, 0.4), "jpeg": (0.95, 0.2), "median": (0.8, 0.7)}
    rows = [
        {
            "target": target,
            "operating_point": point,
            "eps": eps,
            "metric": metric,
            "value": value - (point != "as_trained"),
        }
        for target, of_target in values.items()
        for point in ("as_trained", "recalibrated")
        for eps, value in zip((0, 1), of_target, strict=True)
        for metric in ("accuracy", "balanced_accuracy", "sensitivity", "specificity")
    ]
    pd.DataFrame(rows).assign(low=0.1, high=0.99, n=10, n_groups=8).to_csv(
        folder / "validation_robustness.csv", index=False
    )
    # a constant prediction has 50 %, so a_net and jpeg are equal under attack, and jpeg is better on clean images
    assert write_tables.selection_table(folder.parent, "run", "1") == (
        "| target | clean | ε = 1 |\n"
        "| --- | ---: | ---: |\n"
        "| median | 80.0 % [10.0, 99.0] | 70.0 % [10.0, 99.0] |\n"
        "| jpeg | 95.0 % [10.0, 99.0] | 20.0 % [10.0, 99.0] |\n"
        "| a net | 90.0 % [10.0, 99.0] | 40.0 % [10.0, 99.0] |\n"
    )
    with pytest.raises(ValueError, match=r"table 'selection run': ε is '2'\. Write one or more of 0, 1"):
        write_tables.selection_table(folder.parent, "run", "2")


def test_the_worst_case_table_has_recalls_and_balanced_accuracies_of_each_operating_point(workspace: Workspace) -> None:
    folder = archive(workspace)
    rows = [
        {
            "target": "net",
            "operating_point": "as_trained",
            "threat_model": model,
            "eps": eps,
            "metric": metric,
            "value": rate,
        }
        for model, eps, metric, rate in [
            ("adaptive", 0, "accuracy", 0.1),
            ("adaptive", 0, "sensitivity", 0.9),
            ("adaptive", 0, "balanced_accuracy", 0.8),
            ("adaptive", 1, "balanced_accuracy", 0.6),
            ("adaptive", 4, "balanced_accuracy", 0.3),
            ("transfer", 1, "balanced_accuracy", 0.7),
        ]
    ]
    pd.DataFrame(rows).assign(low=0.25, high=0.95).to_csv(folder / "worst_case.csv", index=False)
    assert write_tables.worst_case_table(folder.parent, "run", "1") == (
        "| target | operating point | sensitivity, clean | balanced accuracy, clean | balanced accuracy, ε = 1 |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| net | as trained | 90.0 % [25.0, 95.0] | 80.0 % [25.0, 95.0] | 60.0 % [25.0, 95.0] |\n"
    )
    with pytest.raises(ValueError, match=r"table 'worst_case run': ε is '2'\. Write one or more of 0, 1, 4"):
        write_tables.worst_case_table(folder.parent, "run", "2")


def test_the_table_of_seeds_has_each_value_their_range_and_the_mean_with_its_interval(tmp_path: Path) -> None:
    row = {"target": "net", "operating_point": "as_trained", "eps": 0, "value": 0.5, "low": 0.25, "high": 0.75}
    row |= {"lowest": 0.4, "highest": 0.6, "seed_0": 0.6, "seed_1": 0.4}
    (tmp_path / "honest-seeds").mkdir()
    rows = [row, row | {"eps": 1, "value": 0.2}, row | {"operating_point": "recalibrated"}]
    pd.DataFrame(rows).to_csv(tmp_path / "honest-seeds" / "seeds.csv", index=False)
    assert write_tables.seeds_table(tmp_path, "honest-seeds", "0") == (
        "| target | ε | seed 0 | seed 1 | range | mean [95 %] |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| net | clean | 60.0 % | 40.0 % | 40.0 % to 60.0 % | 50.0 % [25.0, 75.0] |\n"
    )


def write_efficiency(folder: Path) -> None:
    columns = ["acquisition", "metric", "value", "low", "high", "lowest", "highest", "n_seeds"]
    columns += ["all_seeds_low", "all_seeds_high", "p_value_holm", "n_comparisons"]
    none = [None] * 4
    rows = [
        ["random", "mean_clean_accuracy", 0.7, 0.68, 0.72, 0.69, 0.71, 10, *none],
        ["random", "n_labels_90", 400, None, None, 400, 400, 1, *none],
        ["entropy", "mean_clean_accuracy", 0.75, 0.74, 0.76, 0.73, 0.77, 10, *none],
        ["entropy", "mean_clean_accuracy_gain", 0.05, 0.03, 0.07, 0.02, 0.08, 10, 0.01, 0.09, 0.02, 4],
        ["entropy", "mean_robust_accuracy_gain", -0.01, -0.04, 0.02, -0.02, 0.01, 10, -0.05, 0.03, 1, 4],
        ["core_set", "mean_clean_accuracy_gain", -0.02, -0.05, 0.01, -0.04, 0.01, 10, -0.06, 0.02, 0.4, 4],
        ["core_set", "mean_robust_accuracy_gain", 0.0, -0.01, 0.01, -0.01, 0.01, 10, -0.02, 0.02, 1, 4],
    ]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "active_learning_efficiency.csv", index=False)


def test_label_efficiency_has_one_row_for_each_function_and_the_number_of_seeds(workspace: Workspace) -> None:
    folder = archive(workspace)
    write_efficiency(folder)
    accuracies, labels = write_tables.label_efficiency_tables(folder.parent, "run").split("\n\n")
    head, _, random, entropy, core_set = accuracies.splitlines()
    assert head.split(" | ")[1:3] == ["mean clean accuracy", "difference to random (points)"]
    assert random.split(" | ")[:3] == ["| random", "70.0 % [68.0, 72.0]; 69.0 to 71.0 %", "–"]
    assert "400 (1 of 10 seeds)" in labels.splitlines()[2]
    assert entropy.split(" | ")[2] == "+5.0 [+3.0, +7.0]; +2.0 to +8.0"
    assert core_set.startswith("| core set | – | −2.0 [−5.0, +1.0]; −4.0 to +1.0")


def test_gains_are_one_list_item_for_each_function(workspace: Workspace) -> None:
    folder = archive(workspace)
    write_efficiency(folder)
    assert write_tables.gains_text(folder.parent, "run").splitlines() == [
        "- Entropy changes the mean clean accuracy by +5.0 [+3.0, +7.0] points and the mean robust accuracy by "
        "−1.0 [−4.0, +2.0] points compared with random. It is better than random on clean images (p = 0.020 after "
        "Holm's correction for 4 comparisons with random).",
        "- Core set changes the mean clean accuracy by −2.0 [−5.0, +1.0] points and the mean robust accuracy by "
        "+0.0 [−1.0, +1.0] points compared with random. The difference on clean images is not significant (p = 0.400 "
        "after Holm's correction for 4 comparisons with random).",
    ]
