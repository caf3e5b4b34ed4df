"""Every path of a workspace: the folder that holds ``params.yaml`` and ``data/``.

A step writes only to its own folder, ``data/<step>``, and to its checkpoints. The step evaluate also adds to the list
of configurations, and the step report also writes ``data/summary``.
"""

from dataclasses import dataclass
from pathlib import Path

from tasks.params import UNDEFENDED

DEFENCE_STEPS = ("train_defence", "attack_defence")
"""Steps that run once for each defence and own one folder for each."""

SCHEMA_VERSION = 1
"""Version of the names, columns and values of the files in ``data/``, and of the metrics, parameters and tags of
tracking runs. It rises if a reader of an earlier version would fail or read something else."""


class _Below:
    """A path below the root of a workspace."""

    def __init__(self, relative: str) -> None:
        self.relative = relative

    def __get__(self, workspace: "Workspace", owner: type["Workspace"]) -> Path:
        return workspace.root / self.relative


@dataclass(frozen=True)
class Workspace:
    """The paths of a workspace.

    Args:
        root: folder that holds ``params.yaml`` and ``data/``; by default the current folder.
    """

    root: Path = Path()

    params_file = _Below("params.yaml")
    plugins = _Below("plugins")
    """Python modules of the user, with defences and attacks."""
    locks = _Below("checkpoints/locks")
    """Lock files, one for each step that has run here; see :mod:`tasks.core.locks`."""
    open_runs = _Below("checkpoints/open_runs")
    """Tracking runs of steps that have not ended."""
    deselected = _Below("checkpoints/deselected")
    """Results of defences that are no longer in ``selected_defences``, by step."""
    data = _Below("data")
    reference = _Below("data/reference.csv")
    """Digests and properties of the images of the data version that the report compares with; in git."""
    configurations = _Below("data/configurations.csv")
    """Configurations of targets that were compared so far; in git. The step evaluate adds to it."""

    check_params = _Below("data/check_params")
    checked_params = _Below("data/check_params/valid.json")

    acquire = _Below("data/acquire")
    images = _Below("data/acquire/images")
    source = _Below("data/acquire/source.json")
    image_table = _Below("data/acquire/table.parquet")
    """Patient (hashed), split and subgroups of each image; absent if ``acquire.table`` names none of them."""
    rejected = _Below("data/acquire/rejected.json")
    """Path and reason of each rejected file; absent if none was rejected."""

    validate = _Below("data/validate")
    manifest = _Below("data/validate/manifest.parquet")
    validation = _Below("data/validate/validation.json")
    data_docs = _Below("data/validate/data_docs")

    prepare = _Below("data/prepare")
    pixels = _Below("data/prepare/pixels.npy")
    split = _Below("data/prepare/split.parquet")
    dataset_info = _Below("data/prepare/dataset.json")
    leakage = _Below("data/prepare/leakage.json")
    shortcut_predictions = _Below("data/prepare/shortcut_predictions.csv")

    train_classifier = _Below("data/train_classifier")
    classifier = _Below("data/train_classifier/classifier.safetensors")
    classifier_history = _Below("data/train_classifier/history.csv")
    classifier_files = _Below("data/train_classifier/files")
    """Model file and Python modules of an imported classifier; absent for a classifier that was trained here."""
    parity = _Below("data/train_classifier/parity.json")
    """Comparison of an imported classifier with reference outputs or an expected accuracy."""

    train_surrogates = _Below("data/train_surrogates")
    surrogates = _Below("data/train_surrogates/surrogates.json")
    """Name, architecture, seed and validation accuracy of each independent surrogate."""

    train_autoencoder = _Below("data/train_autoencoder")
    autoencoder = _Below("data/train_autoencoder/autoencoder.safetensors")
    autoencoder_history = _Below("data/train_autoencoder/history.csv")

    train_defence = _Below("data/train_defence")
    attack = _Below("data/attack")
    attack_defence = _Below("data/attack_defence")

    evaluate = _Below("data/evaluate")
    metrics = _Below("data/evaluate/metrics.json")
    robustness = _Below("data/evaluate/robustness.csv")
    confusion = _Below("data/evaluate/confusion.csv")
    comparison = _Below("data/evaluate/comparison.csv")
    worst_case = _Below("data/evaluate/worst_case.csv")
    validation_robustness = _Below("data/evaluate/validation_robustness.csv")
    evaluated_configurations = _Below("data/evaluate/configurations.csv")
    minimum_perturbation = _Below("data/evaluate/minimum_perturbation.csv")
    certified_accuracy = _Below("data/evaluate/certified_accuracy.csv")
    checks = _Below("data/evaluate/checks.json")
    subgroups = _Below("data/evaluate/subgroups.csv")
    """Metrics of subgroups; absent if ``acquire.table`` names no subgroups."""
    plots = _Below("data/evaluate/plots")

    analyze = _Below("data/analyze")
    robustness_area = _Below("data/analyze/robustness_area.csv")
    classification = _Below("data/analyze/classification.csv")
    reliability = _Below("data/analyze/reliability.csv")
    entropy = _Below("data/analyze/entropy.csv")
    intensity = _Below("data/analyze/intensity.csv")
    intensity_histograms = _Below("data/analyze/intensity_histograms.csv")
    spectrum = _Below("data/analyze/spectrum.csv")
    heatmaps = _Below("data/analyze/heatmaps.csv")
    examples = _Below("data/analyze/examples/examples.npz")
    features = _Below("data/analyze/features.csv")
    embeddings = _Below("data/analyze/embeddings.parquet")
    resilience = _Below("data/analyze/resilience.csv")
    detection = _Below("data/analyze/detection.csv")
    detector_scores = _Below("data/analyze/detector_scores.parquet")
    roc = _Below("data/analyze/roc.csv")
    rejection = _Below("data/analyze/rejection.csv")
    claims = _Below("data/analyze/claims.json")
    analyze_plots = _Below("data/analyze/plots")

    simulate_labelling = _Below("data/simulate_labelling")
    simulated_queries = _Below("data/simulate_labelling/queries.parquet")
    simulated_predictions = _Below("data/simulate_labelling/predictions.parquet")
    simulated_pools = _Below("data/simulate_labelling/pools.parquet")

    active_learning = _Below("data/active_learning")
    queries = _Below("data/active_learning/queries.parquet")
    test_predictions = _Below("data/active_learning/test_predictions.parquet")
    cycles = _Below("data/active_learning/cycles.csv")
    learning_curves = _Below("data/active_learning/learning_curves.csv")
    label_efficiency = _Below("data/active_learning/label_efficiency.csv")
    label_efficiency_by_seed = _Below("data/active_learning/label_efficiency_by_seed.csv")
    queried_images = _Below("data/active_learning/queried")
    active_learning_plots = _Below("data/active_learning/plots")

    report = _Below("data/report")
    report_html = _Below("data/report/report.html")
    report_markdown = _Below("data/report/report.md")
    headline = _Below("data/report/headline.md")
    figures = _Below("data/report/figures")
    summary = _Below("data/summary")
    """Second output of the step report, in git: small files with metrics and plots."""
    summary_metrics = _Below("data/summary/metrics.json")
    summary_plots = _Below("data/summary/plots")

    def attack_folder(self, target: str) -> Path:
        """Output folder of the attack on a target."""
        return self.attack if target == UNDEFENDED else self.attack_defence / target

    def records(self, target: str) -> Path:
        """Records of a target: one row for each image, threat model, attack and eps."""
        return self.attack_folder(target) / "records.parquet"

    def minimum_eps(self, target: str) -> Path:
        """The smallest eps that breaks each image of a target."""
        return self.attack_folder(target) / "minimum_eps.parquet"

    def validation_minimum_eps(self, target: str) -> Path:
        """The smallest eps at which the sweep breaks each validation image of a target."""
        return self.attack_folder(target) / "validation_minimum_eps.parquet"

    def operating_points(self, target: str) -> Path:
        """Biases on the logits of a target at its operating points."""
        return self.attack_folder(target) / "operating_points.json"

    def diagnostics(self, target: str) -> Path:
        """Diagnostics of a target, which the checks read."""
        return self.attack_folder(target) / "diagnostics.parquet"

    def cost(self, target: str) -> Path:
        """Parameters and multiply-adds of one prediction of a target."""
        return self.attack_folder(target) / "cost.json"

    def certified_radii(self, target: str) -> Path:
        """Certified radius of each image; only for targets that are certified."""
        return self.attack_folder(target) / "certified_radii.parquet"

    def perturbation_file(self, surrogate: str, attack: str, eps: float) -> Path:
        """Perturbations of one attack on one surrogate at one eps."""
        return self.attack_folder(surrogate) / "perturbations" / f"{attack}-eps{eps:g}.npz"

    def transferred_file(self, surrogate: str, attack: str, eps: float) -> Path:
        """Perturbations of one attack on an independent surrogate at one eps."""
        return self.attack / "surrogates" / surrogate / f"{attack}-eps{eps:g}.npz"

    def surrogate(self, name: str) -> Path:
        """Weights of an independent surrogate."""
        return self.train_surrogates / f"{name}.safetensors"

    def surrogate_history(self, name: str) -> Path:
        """Epochs of the training of an independent surrogate."""
        return self.train_surrogates / f"{name}.csv"

    def defence_settings(self, defence: str) -> Path:
        """The row of ``defences`` that a defence was made with."""
        return self.train_defence / defence / "settings.json"

    def purifier(self, defence: str) -> Path:
        """Weights of the purifier of a defence, if it has one."""
        return self.train_defence / defence / "purifier.safetensors"

    def defended_classifier(self, defence: str) -> Path:
        """Weights of the classifier that a defence trained, if it trains one."""
        return self.train_defence / defence / "classifier.safetensors"

    def defence_files(self, defence: str) -> Path:
        """Python modules of a plug-in; absent for other defences."""
        return self.train_defence / defence / "files"

    def defence_history(self, defence: str) -> Path:
        """Epochs of a defence's training; absent if the defence trains nothing."""
        return self.train_defence / defence / "history.csv"

    def step_of(self, path: Path) -> str:
        """DVC's name of the step that writes a path below ``data/``: ``evaluate``, ``attack_defence@jpeg``."""
        step, *rest = path.relative_to(self.data).parts
        return f"{step}@{rest[0]}" if step in DEFENCE_STEPS else step

    def outputs(self) -> list[Path]:
        """Output folders of steps that exist; for steps that run for each defence, one folder for each defence."""
        own = [path for path in self.data.iterdir() if path.name not in (*DEFENCE_STEPS, self.summary.name)]
        of_defences = [path for step in DEFENCE_STEPS for path in (self.data / step).glob("*")]
        return sorted(path for path in own + of_defences if path.is_dir())

    def step_folder(self, step: str, defence: str | None = None) -> Path:
        """Output folder of a step; for a step that runs for each defence, the folder of that defence."""
        return self.data / step / (defence or "")

    def checkpoint_folder(self, step: str, defence: str | None = None) -> Path:
        """Folder of the checkpoints from which a killed step resumes."""
        return self.root / "checkpoints" / step / (defence or "")
