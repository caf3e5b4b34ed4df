"""Example images: one image of each class, clean, adversarial and denoised, with heat maps and differences."""

import numpy as np

from tasks.analysis.context import AnalysisContext
from tasks.analysis.heatmaps import upsample
from tasks.dataset.prepared import as_pictures
from tasks.outcomes.names import AS_GIVEN, display_name
from tasks.params import UNDEFENDED
from tasks.records.vocabulary import CLEAN


def example_arrays(context: AnalysisContext) -> dict[str, np.ndarray]:
    """Arrays of ``examples.npz``: images, captions, heat maps and amplified differences, one row for each class.

    The captions are the predictions in the records. A heat map explains the prediction of its image.
    """
    attack, eps, extractor = context.analysed_attack, context.settings.eps, context.extractor
    names = np.array(context.classes)
    success = context.records_at(UNDEFENDED, "adaptive", attack, eps)["success"].to_numpy()
    chosen = choose_examples(context.labels, success)
    clean = context.data.floats(context.rows[chosen])
    adversarial = context.perturbations(UNDEFENDED, attack, eps).images(chosen)

    at_clean, at_attack, at_transfer = ("none", CLEAN, 0.0), ("adaptive", attack, eps), ("transfer", attack, eps)
    columns = {"clean": (AS_GIVEN, clean, at_clean), "adversarial": (AS_GIVEN, adversarial, at_attack)}
    for purifier in extractor.purifiers:
        columns[f"clean, denoised by {display_name(purifier)}"] = purifier, clean, at_clean
        columns[f"adversarial, denoised by {display_name(purifier)}"] = purifier, adversarial, at_transfer
    shown, captions, maps = {}, {}, {}
    for title, (purifier, images, point) in columns.items():
        shown[title] = extractor.purify_batch(purifier, images)
        records = context.records_at(purifier or UNDEFENDED, *point)
        predicted = records["prediction"].to_numpy(dtype=np.int64)[chosen]
        captions[title] = [f"predicted {name}" for name in names[predicted]]
        if purifier == AS_GIVEN or point != at_clean:
            maps[title] = upsample(extractor.heatmaps(shown[title], predicted), context.data.size)

    differences = {"adversarial − clean": adversarial - clean}
    for purifier in extractor.purifiers:
        by = f"denoised by {display_name(purifier)}"
        differences[f"clean, {by} − clean"] = shown[f"clean, {by}"] - clean
        differences[f"{by}: adversarial − clean"] = shown[f"adversarial, {by}"] - shown[f"clean, {by}"]
    amplified = {title: amplify(difference) for title, difference in differences.items()}
    # third column, after the clean and the adversarial image
    perturbation, factor = amplified["adversarial − clean"]
    titles = list(columns)
    titles.insert(2, f"perturbation × {factor}")
    shown[titles[2]], captions[titles[2]] = perturbation, ["mid grey: unchanged"] * len(chosen)
    return {
        "attack": np.array(attack),
        "eps": np.array(eps),
        "rows": names[context.labels[chosen]],
        "images": np.stack([as_pictures(shown[title]) for title in titles], axis=1).astype(np.float16),
        "columns": np.array(titles),
        "captions": np.array([captions[title] for title in titles]).T,
        "maps": np.stack([*maps.values()], axis=1).astype(np.float16),
        "mapped": np.array([titles.index(title) for title in maps]),
        "differences": np.stack([as_pictures(image) for image, _ in amplified.values()], axis=1).astype(np.float16),
        "difference_columns": np.array([f"{title} × {times}" for title, (_, times) in amplified.items()]),
    }


def choose_examples(labels: np.ndarray, success: np.ndarray) -> np.ndarray:
    """Position of one image of each class: the first with a successful attack, or the first of the class.

    Args:
        labels: true classes, int ``(N,)``.
        success: whether the attack is successful, bool ``(N,)``.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    # argmax is 0 if no attack on the class is successful
    return np.array([of_class[np.argmax(success[of_class])] for of_class in members])


def amplify(difference: np.ndarray) -> tuple[np.ndarray, int]:
    """Scale differences ``(N, C, H, W)`` around mid grey by the largest integer that keeps [0, 1], and return both."""
    factor = max(1, int(0.5 / max(float(np.abs(difference).max()), 1e-6)))
    return np.clip(0.5 + factor * difference, 0, 1), factor
