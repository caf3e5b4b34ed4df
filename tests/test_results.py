"""Keeping results, and the documents' tables that are written from them."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from ruamel.yaml import YAML

from docs import RESULTS, keep_results, write_tables
from tasks.core.workspace import Workspace
from tests.conftest import ROOT, VALUES

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


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Outputs of the pipeline on images of patients, as far as results are kept of them."""
    monkeypatch.chdir(tmp_path)
    for path in keep_results.FILES:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name}\n", encoding="utf-8")
    write_info(is_phantom=False)
    pd.DataFrame(POINTS, columns=COLUMNS).assign(n=500, norm="linf").to_csv(Workspace().robustness, index=False)
    Workspace().figures.mkdir(parents=True)
    for name in ("robustness-pgd.png", "images-attack.png", "images-classes.png"):
        (Workspace().figures / name).write_bytes(b"PNG")
    write_yaml(Workspace().params_file, VALUES)
    params = {"seed": VALUES["seed"], "attack": VALUES["attack"], "prepare.split": VALUES["prepare"]["split"]}
    write_yaml(Path("dvc.lock"), {"stages": {"attack": {"params": {"params.yaml": params}}, "evaluate": {}}})
    return tmp_path


def write_info(is_phantom: bool, n_test: int = 500) -> None:
    leakage = {"near_duplicate_in_train": 0.1, "group_in_train": 0.825}
    info = {"is_phantom": is_phantom, "leakage": leakage, "n_images": {"test": {"a": 100, "b": n_test - 100}}}
    Workspace().dataset_info.write_text(json.dumps(info), encoding="utf-8")


def write_yaml(path: Path, values: object) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)


def write_documents(readme: str, results: str = "# Results\n") -> None:
    Path("README.md").write_text(readme, encoding="utf-8")
    Path("docs/evidence/results.md").write_text(results, encoding="utf-8")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["write_tables", *arguments])
    write_tables.main()


def test_numbers_are_kept_byte_for_byte(workspace: Path) -> None:
    folder = keep_results.keep_results("stratified-80-20")
    assert folder == Path("docs/evidence/results/stratified-80-20")
    for source, kept in keep_results.FILES.items():
        if source != Workspace().params_file:
            assert (folder / kept).read_bytes() == source.read_bytes()
    assert (folder / "figures/robustness-pgd.png").read_bytes() == b"PNG"


def test_histories_of_trained_defences_are_kept_by_name() -> None:
    write_yaml(Workspace().params_file, {**VALUES, "benchmark": ["autoencoder", "retrained_autoencoder"]})
    history = Workspace().defence_history("retrained_autoencoder")
    history.parent.mkdir(parents=True)
    history.write_text("epoch\n1\n", encoding="utf-8")
    folder = keep_results.keep_results("run")
    assert (folder / "retrained_autoencoder_history.csv").read_text(encoding="utf-8") == "epoch\n1\n"
    assert (folder / "autoencoder_history.csv").read_bytes() == Workspace().autoencoder_history.read_bytes()


def test_a_history_never_takes_the_place_of_another() -> None:
    history = Workspace().defence_history("autoencoder")
    history.parent.mkdir(parents=True)
    history.write_text("epoch\n1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"autoencoder_history.csv would stand for two histories"):
        keep_results.keep_results("run")


def test_parameters_are_kept_without_the_place_of_the_images() -> None:
    params = {**VALUES, "acquire": {**VALUES["acquire"], "folder": "/home/someone/sars-cov-2-ct"}}
    write_yaml(Workspace().params_file, params)
    kept = YAML(typ="safe").load(keep_results.keep_results("run") / "params.yaml")
    assert kept == {**VALUES, "acquire": {**VALUES["acquire"], "folder": "sars-cov-2-ct"}}


def test_figures_that_show_images_of_patients_are_not_kept() -> None:
    kept = [path.name for path in keep_results.keep_results("real").rglob("*.png")]
    assert kept == ["robustness-pgd.png"]


def test_figures_too_large_for_a_repository_are_not_kept() -> None:
    (Workspace().figures / "embeddings.png").write_bytes(bytes(keep_results.MAX_FIGURE_BYTES + 1))
    kept = [path.name for path in keep_results.keep_results("real").rglob("*.png")]
    assert kept == ["robustness-pgd.png"]


def test_figures_that_show_phantoms_are_kept() -> None:
    write_info(is_phantom=True)
    kept = sorted(path.name for path in keep_results.keep_results("phantoms").rglob("*.png"))
    assert kept == ["images-attack.png", "images-classes.png", "robustness-pgd.png"]


def test_keeping_again_replaces_what_was_kept() -> None:
    folder = keep_results.keep_results("run")
    (folder / "figures/old.png").write_bytes(b"")
    Workspace().metrics.write_text("new", encoding="utf-8")
    keep_results.keep_results("run")
    assert not (folder / "figures/old.png").exists()
    assert (folder / "metrics.json").read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "A", "a b", "-a", "a-", "a--b", "a.b", "ä"])
def test_a_name_that_is_no_simple_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be made of a-z, 0-9 and single hyphens"):
        keep_results.keep_results(name)
    assert not RESULTS.exists()


@pytest.mark.parametrize("path", [Workspace().metrics, Workspace().checks, Path("dvc.lock"), Workspace().figures])
def test_missing_outputs_are_named_and_nothing_that_was_kept_is_lost(path: Path) -> None:
    folder = keep_results.keep_results("run")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{path} not found: run dvc repro first"):
        keep_results.keep_results("run")
    assert (folder / "metrics.json").is_file()


def test_results_of_other_parameters_are_refused() -> None:
    write_yaml(Workspace().params_file, {**VALUES, "attack": {**VALUES["attack"], "eps": [1]}})
    with pytest.raises(ValueError, match=r"attack in params\.yaml is not what the stage attack ran with"):
        keep_results.keep_results("run")


def test_clean_table_has_a_row_a_run_below_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_results.keep_results("stratified")
    write_info(is_phantom=True, n_test=1240)
    keep_results.keep_results("phantoms")
    write_documents("Before\n<!-- table: clean stratified phantoms -->\nold\n<!-- end table -->\nAfter\n")
    run(monkeypatch)
    assert Path("README.md").read_text(encoding="utf-8") == (
        "Before\n"
        "<!-- table: clean stratified phantoms -->\n"
        "\n"
        "| run | test images | with their group in training | accuracy [95 %] | precision | recall | F1 |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| the study |  |  | 93.23 % |  |  |  |\n"
        "| stratified | 500 | 82.5 % | 96.0 % [93.8, 97.4] | 95.1 % | 97.0 % | 96.1 % |\n"
        "| phantoms (phantoms) | 500 of 1240 | 82.5 % | 96.0 % [93.8, 97.4] | 95.1 % | 97.0 % | 96.1 % |\n"
        "\n"
        "<!-- end table -->\n"
        "After\n"
    )


def test_phantoms_alone_are_not_held_against_the_study() -> None:
    write_info(is_phantom=True)
    keep_results.keep_results("phantoms")
    assert "study" not in write_tables.clean_table("phantoms")


def test_robust_table_has_a_row_for_every_eps_and_transfer_beside_adaptive() -> None:
    keep_results.keep_results("run")
    assert write_tables.robust_table("run", "pgd") == (
        "| ε in 1/255 | PGD: undefended | PGD: autoencoder, transfer | PGD: autoencoder, adaptive |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| 0 (clean) | 96.0 % [93.8, 97.4] | 72.0 % [68.0, 76.0] | 72.0 % [68.0, 76.0] |\n"
        "| 1 | 10.0 % [8.0, 13.0] | 60.0 % [56.0, 64.0] | 30.0 % [26.0, 34.0] |\n"
    )
    assert "| ε in 1/255 | FGSM: undefended | PGD: undefended |" in write_tables.robust_table("run")
    with pytest.raises(ValueError, match=r"run has no attack \['square'\]; it has \['fgsm', 'pgd'\]"):
        write_tables.robust_table("run", "square")


def test_finding_calls_phantoms_phantoms() -> None:
    keep_results.keep_results("run")
    assert write_tables.finding("run").startswith("The classifier is right on 96.0 % [93.8, 97.4] of 500 clean")
    write_info(is_phantom=True)
    keep_results.keep_results("run")
    assert write_tables.finding("run").startswith("Phantoms (computer-drawn), not patients: The classifier")


def test_writing_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keep_results.keep_results("run")
    write_documents(
        "<!-- table: finding run -->\n<!-- end table -->\n", "<!-- table: robust run -->\n<!-- end table -->"
    )
    run(monkeypatch)
    assert capsys.readouterr().out == "README.md written\ndocs/evidence/results.md written\n"
    texts = [path.read_text(encoding="utf-8") for path in write_tables.DOCUMENTS]
    run(monkeypatch)
    assert capsys.readouterr().out == ""
    assert [path.read_text(encoding="utf-8") for path in write_tables.DOCUMENTS] == texts


def test_check_fails_on_a_table_that_is_out_of_date_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_results.keep_results("run")
    write_documents("<!-- table: finding run -->\n<!-- end table -->\n")
    run(monkeypatch)
    run(monkeypatch, "--check")
    edited = Path("README.md").read_text(encoding="utf-8").replace("96.0 %", "99.9 %")
    write_documents(edited)
    with pytest.raises(SystemExit, match=r"out of date: README\.md; run python -m docs\.write_tables"):
        run(monkeypatch, "--check")
    assert Path("README.md").read_text(encoding="utf-8") == edited


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "<!-- table: nonsense run -->\n<!-- end table -->",
            "README.md: unknown table 'nonsense'; known: clean",
        ),
        ("<!-- table: -->\n<!-- end table -->", "README.md: unknown table ''"),
        ("<!-- table: clean -->\n<!-- end table -->", "README.md: the table 'clean' needs the name of a run"),
        ("<!-- table: clean lost -->\n<!-- end table -->", r"no kept results in docs/evidence/results/lost \(kept: run\)"),
        ("<!-- table: clean run -->\n", "README.md: a table has no '<!-- end table -->'"),
        ("<!-- table: clean run --> <!-- end table -->", "README.md: a table has no '<!-- end table -->'"),
        ("<!-- table: clean run -->\n<!-- table: robust run -->\n<!-- end table -->", "the table 'clean run' has no"),
    ],
)
def test_a_mark_that_cannot_be_followed_is_an_error_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    keep_results.keep_results("run")
    write_documents(text, "<!-- table: finding run -->\n<!-- end table -->\n")
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch)
    assert Path("README.md").read_text(encoding="utf-8") == text
    assert "classifier" not in Path("docs/evidence/results.md").read_text(encoding="utf-8")


def test_tables_of_this_repository_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    run(monkeypatch, "--check")


def test_verdict_table_has_a_row_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = {
        "claim": "Features overlap",
        "study": "yes",
        "figure": "AUROC",
        "rule": "below 0.7",
        "elsewhere": {"2": "holds", "4": "holds"},
    }
    judged = [
        claim | {"value": 0.61234, "low": 0.5, "high": 0.69, "outcome": "holds"},
        claim | {"value": None, "low": None, "high": None, "outcome": "can't be told from 4 images"},
    ]
    Workspace().verdict.write_text(json.dumps(judged), encoding="utf-8")
    keep_results.keep_results("stratified")
    write_documents("<!-- table: verdict stratified -->\n<!-- end table -->\n")
    run(monkeypatch)
    lines = Path("README.md").read_text(encoding="utf-8").splitlines()
    assert "| Features overlap | AUROC | 0.612 [0.500, 0.690] | **holds** | at 2, 4: holds |" in lines
    assert "| Features overlap | AUROC | – [–, –] | **can't be told from 4 images** | at 2, 4: holds |" in lines


def keep_benchmark() -> None:
    """A run in which a defence keeps most of two at eps 1, and least at eps 4."""
    keep_results.keep_results("run")
    compared = {"next": "undefended", "n_right_alone": 4, "n_wrong_alone": 0, "p_value": 0.125}
    rows = [
        {"threat_model": "adaptive", "eps": 1.0, "rank": 1, "target": "strong_one", "accuracy": 0.9, **compared},
        {"threat_model": "adaptive", "eps": 1.0, "rank": 2, "target": "undefended", "accuracy": 0.5},
        {"threat_model": "adaptive", "eps": 4.0, "rank": 1, "target": "undefended", "accuracy": 0.2},
        {"threat_model": "adaptive", "eps": 4.0, "rank": 2, "target": "strong_one", "accuracy": 0.1},
        {"threat_model": "transfer", "eps": 1.0, "rank": 1, "target": "strong_one", "accuracy": 0.95},
    ]
    table = pd.DataFrame(rows).assign(clean_accuracy=0.96)
    for name in ("accuracy", "clean_accuracy"):
        table[f"{name}_low"], table[f"{name}_high"] = table[name] - 0.01, table[name] + 0.01
    table.to_csv(RESULTS / "run" / "benchmark.csv", index=False)


def test_benchmark_table_ranks_the_targets_at_the_first_eps_that_is_named() -> None:
    keep_benchmark()
    head, _, *rows = write_tables.benchmark_table("run", "1", "4").splitlines()
    assert head.split(" | ")[1:4] == ["clean", "adaptive, ε = 1", "adaptive, ε = 4"]
    assert rows == [
        "| strong one | 96.0 % [95.0, 97.0] | 90.0 % [89.0, 91.0] | 10.0 % [9.0, 11.0] | – | 95.0 % [94.0, 96.0] | "
        "4 : 0, p = 0.125 |",
        "| undefended | 96.0 % [95.0, 97.0] | 50.0 % [49.0, 51.0] | 20.0 % [19.0, 21.0] | – | – | – |",
    ]
    assert [row.split(" | ")[0] for row in write_tables.benchmark_table("run", "4").splitlines()[2:]] == [
        "| undefended",
        "| strong one",
    ]


@pytest.mark.parametrize("eps", [(), ("3",)])
def test_a_benchmark_table_needs_eps_of_the_run(eps: tuple[str, ...]) -> None:
    keep_benchmark()
    with pytest.raises(ValueError, match=r"'benchmark run' needs some of these ε: 1, 4"):
        write_tables.benchmark_table("run", *eps)


def keep_learning() -> None:
    keep_benchmark()
    columns = ["acquisition", "quantity", "value", "low", "high", "sd", "n_seeds"]
    rows = [
        ["random", "clean_area", 0.7, 0.68, 0.72, 0.01, 3],
        ["random", "labels_90", 400, None, None, None, 1],
        ["entropy", "clean_area", 0.75, 0.74, 0.76, 0.01, 3],
        ["entropy", "clean_area_gain", 0.05, 0.03, 0.07, 0.01, 3],
        ["entropy", "robust_area_gain", -0.01, -0.04, 0.02, 0.01, 3],
        ["core_set", "clean_area_gain", -0.02, -0.05, 0.01, 0.01, 3],
        ["core_set", "robust_area_gain", 0.0, -0.01, 0.01, 0.01, 3],
    ]
    pd.DataFrame(rows, columns=columns).to_csv(RESULTS / "run" / "active_learning_efficiency.csv", index=False)


def test_learning_table_tells_of_every_acquisition_function_and_of_seeds_that_did_not_get_there() -> None:
    keep_learning()
    accuracies, labels = write_tables.learning_table("run").split("\n\n")
    head, _, random, entropy, core_set = accuracies.splitlines()
    assert head.split(" | ")[1:3] == ["mean clean accuracy", "against random, points"]
    assert random.split(" | ")[:3] == ["| random", "70.0 % [68.0, 72.0]", "–"]
    assert "400 (1 of 3 seeds)" in labels.splitlines()[2]
    assert entropy.split(" | ")[2] == "+5.0 [+3.0, +7.0]"
    assert core_set.startswith("| core set | – | −2.0 [−5.0, +1.0]")


def test_what_was_learned_is_told_in_sentences() -> None:
    keep_learning()
    assert write_tables.learned("run").splitlines() == [
        "- Entropy changes the mean clean accuracy by +5.0 [+3.0, +7.0] points against random, the robust one by "
        "−1.0 [−4.0, +2.0]: better than random on clean images.",
        "- Core set changes the mean clean accuracy by −2.0 [−5.0, +1.0] points against random, the robust one by "
        "+0.0 [−1.0, +1.0]: not told from random on clean images.",
    ]
