"""Every path of the workspace, relative to the folder that holds ``dvc.yaml``.

A step owns one folder, ``data/<step>``, and writes nowhere else but to its checkpoints.
"""

from pathlib import Path

PARAMS = Path("params.yaml")
DATA = Path("data")

ACQUIRE = DATA / "acquire"
IMAGES = ACQUIRE / "images"
SOURCE = ACQUIRE / "source.json"

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

ATTACK = DATA / "attack"
RECORDS = ATTACK / "records.parquet"
SMALLEST_EPS = ATTACK / "smallest_eps.parquet"
PERTURBATIONS = ATTACK / "perturbations"

EVALUATE = DATA / "evaluate"
METRICS = EVALUATE / "metrics.json"
ROBUSTNESS = EVALUATE / "robustness.csv"
CONFUSION = EVALUATE / "confusion.csv"
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
VERDICT = ANALYZE / "verdict.json"
ANALYZE_PLOTS = ANALYZE / "plots"

REPORT = DATA / "report"
REPORT_HTML = REPORT / "report.html"
REPORT_MARKDOWN = REPORT / "report.md"
FIGURES = REPORT / "figures"


def step_folder(step: str) -> Path:
    """Folder that the step of this name owns."""
    return DATA / step


def checkpoint_folder(step: str) -> Path:
    """Folder in which the step of this name keeps what it needs to go on after it was killed."""
    return Path("checkpoints") / step
