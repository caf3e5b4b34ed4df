"""Every path of the workspace, relative to the folder that holds ``dvc.yaml``.

A step owns one folder, ``data/<step>``, and writes nowhere else but to its checkpoints.
"""

from pathlib import Path

UNDEFENDED = "undefended"
"""Name of the bare classifier among the targets of attacks; it is the surrogate of transfer attacks, too."""

DEFENCE_STEPS = ("train_defence", "attack_defence")
"""Steps that run for each defence, and own a folder for each."""

PARAMS = Path("params.yaml")
OPEN_RUNS = Path("checkpoints") / "open_runs"
DATA = Path("data")

REFERENCE = DATA / "reference.csv"
"""In git: the version of the data that the report compares with."""

ACQUIRE = DATA / "acquire"
IMAGES = ACQUIRE / "images"
SOURCE = ACQUIRE / "source.json"
REFUSED = ACQUIRE / "refused.json"
"""Path and reason of each file that was not taken; not there where all were."""

VALIDATE = DATA / "validate"
MANIFEST = VALIDATE / "manifest.parquet"
VALIDATION = VALIDATE / "validation.json"
DATA_DOCS = VALIDATE / "data_docs"

PREPARE = DATA / "prepare"
PIXELS = PREPARE / "pixels.npy"
SPLIT = PREPARE / "split.parquet"
DATASET_INFO = PREPARE / "dataset.json"

TRAIN_CLASSIFIER = DATA / "train_classifier"
CLASSIFIER = TRAIN_CLASSIFIER / "classifier.safetensors"
CLASSIFIER_HISTORY = TRAIN_CLASSIFIER / "history.csv"

TRAIN_AUTOENCODER = DATA / "train_autoencoder"
AUTOENCODER = TRAIN_AUTOENCODER / "autoencoder.safetensors"
AUTOENCODER_HISTORY = TRAIN_AUTOENCODER / "history.csv"

TRAIN_DEFENCE = DATA / "train_defence"

ATTACK = DATA / "attack"
ATTACK_DEFENCE = DATA / "attack_defence"

EVALUATE = DATA / "evaluate"
METRICS = EVALUATE / "metrics.json"
ROBUSTNESS = EVALUATE / "robustness.csv"
CONFUSION = EVALUATE / "confusion.csv"
BENCHMARK = EVALUATE / "benchmark.csv"
MINIMAL_EPS = EVALUATE / "minimal_eps.csv"
CERTIFIED = EVALUATE / "certified.csv"
CHECKS = EVALUATE / "checks.json"
PLOTS = EVALUATE / "plots"

ANALYZE = DATA / "analyze"
ROBUSTNESS_AREA = ANALYZE / "robustness_area.csv"
CLASSIFICATION = ANALYZE / "classification.csv"
RELIABILITY = ANALYZE / "reliability.csv"
ENTROPY = ANALYZE / "entropy.csv"
INTENSITY = ANALYZE / "intensity.csv"
INTENSITY_HISTOGRAMS = ANALYZE / "intensity_histograms.csv"
SPECTRUM = ANALYZE / "spectrum.csv"
HEATMAPS = ANALYZE / "heatmaps.csv"
EXAMPLES = ANALYZE / "examples" / "examples.npz"
FEATURES = ANALYZE / "features.csv"
EMBEDDINGS = ANALYZE / "embeddings.parquet"
RESILIENCE = ANALYZE / "resilience.csv"
DETECTION = ANALYZE / "detection.csv"
ROC = ANALYZE / "roc.csv"
GATE = ANALYZE / "gate.csv"
VERDICT = ANALYZE / "verdict.json"
ANALYZE_PLOTS = ANALYZE / "plots"

ACTIVE_LEARNING = DATA / "active_learning"
QUERIES = ACTIVE_LEARNING / "queries.parquet"
TESTED = ACTIVE_LEARNING / "tested.parquet"
CYCLES = ACTIVE_LEARNING / "cycles.csv"
LEARNING_CURVES = ACTIVE_LEARNING / "learning_curves.csv"
LABEL_EFFICIENCY = ACTIVE_LEARNING / "label_efficiency.csv"
QUERIED_IMAGES = ACTIVE_LEARNING / "queried"
ACTIVE_LEARNING_PLOTS = ACTIVE_LEARNING / "plots"

REPORT = DATA / "report"
REPORT_HTML = REPORT / "report.html"
REPORT_MARKDOWN = REPORT / "report.md"
FIGURES = REPORT / "figures"


def attack_folder(target: str) -> Path:
    """Where everything lies that the attack on a target left behind."""
    return ATTACK if target == UNDEFENDED else ATTACK_DEFENCE / target


def records(target: str) -> Path:
    """One row for each image, threat model, attack and eps."""
    return attack_folder(target) / "records.parquet"


def smallest_eps(target: str) -> Path:
    """The smallest eps that breaks each image."""
    return attack_folder(target) / "smallest_eps.parquet"


def probes(target: str) -> Path:
    """What small experiments on a target found, for the checks."""
    return attack_folder(target) / "probes.parquet"


def cost(target: str) -> Path:
    """What a prediction of the target takes."""
    return attack_folder(target) / "cost.json"


def certified(target: str) -> Path:
    """Certified radius of each image, of targets that have one."""
    return attack_folder(target) / "certified.parquet"


def perturbations(surrogate: str) -> Path:
    """Folder of what was crafted on a target."""
    return attack_folder(surrogate) / "perturbations"


def purifier(defence: str) -> Path:
    """Weights of what stands in front of the classifier, in defences that have such a thing."""
    return TRAIN_DEFENCE / defence / "purifier.safetensors"


def defended_classifier(defence: str) -> Path:
    """Weights of what takes the classifier's place, in defences that train one."""
    return TRAIN_DEFENCE / defence / "classifier.safetensors"


def defence_history(defence: str) -> Path:
    """Epochs of a defence's training; there is none where nothing was trained."""
    return TRAIN_DEFENCE / defence / "history.csv"


def step_of(path: Path) -> str:
    """The step that makes a file or folder below ``data/``, as DVC calls it: ``evaluate``, ``attack_defence@jpeg``."""
    step, *rest = path.relative_to(DATA).parts
    return f"{step}@{rest[0]}" if step in DEFENCE_STEPS else step


def outputs() -> list[Path]:
    """Folders of the steps that have run; of those that run for each defence, one for each."""
    own = [path for path in DATA.iterdir() if path.name not in DEFENCE_STEPS]
    of_defences = [path for step in DEFENCE_STEPS for path in (DATA / step).glob("*")]
    return sorted(path for path in own + of_defences if path.is_dir())


def step_folder(step: str, defence: str | None = None) -> Path:
    """Folder that the step of this name owns; of a step that runs for each defence, the one of that defence."""
    return DATA / step / (defence or "")


def checkpoint_folder(step: str, defence: str | None = None) -> Path:
    """Folder in which a step keeps what it needs to go on after it was killed."""
    return Path("checkpoints") / step / (defence or "")
