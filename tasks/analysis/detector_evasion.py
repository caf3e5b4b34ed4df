"""Adaptive attacks on the undefended classifier and a detector together."""

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from tasks.analysis.context import AnalysisContext
from tasks.analysis.perturbed import detection_tables
from tasks.analysis.tables import TablePart
from tasks.attacks.gradient.losses import NonFiniteLogits, logit_margin
from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.dataset.prepared import choose_stratified
from tasks.outcomes.names import ALL_DETECTORS, AS_GIVEN, DETECTOR_EVASION, JOINT_DETECTOR_EVASION
from tasks.params import UNDEFENDED, Pgd

MOMENTUM = 0.75
"""Weight of the previous direction in the next one."""
NEAR_MEDIAN = 0.05
"""Distance from the median score, of that between median and threshold, at which a path ends."""
UNFLAGGED = 1.0
"""Distance from the median score up to which a detector does not flag an image; then there are no more starts."""


def evasion_tables(context: AnalysisContext, detector: str, eps: float) -> Iterator[TablePart]:
    """Attack the undefended classifier and one detector, and yield the tables about the detector.

    The attack moves the score to the median score of clean validation images, because a score far below it would be as
    unusual as a score far above it. It starts from the images of the analysed attack, which ignores the detector, and
    then from random points. The attack on the detector that combines all others yields the tables about all detectors.

    Raises:
        ValueError: a logit or a score is not finite.
    """
    # hooks read the outputs of layers, so every thread needs networks of its own
    extractor = deepcopy(context.extractor)
    data, attack, settings = context.data, context.attack_settings, context.settings.detector_evasion
    perturbations = context.perturbations(UNDEFENDED, context.analysed_attack, eps)
    rows = choose_stratified(data, context.rows, settings.max_images, context.seed)
    chosen = np.searchsorted(context.rows, rows)
    score, scale = context.detectors[detector], context.scale(detector)
    ball, size = NormBall(attack.norm, data.value_range), radius(eps, attack.norm, data.pixels[0].size)
    pgd = attack.pgd.model_copy(update={"n_steps": settings.n_steps})

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        activations = extractor.activations(images)
        return activations.logits, distance_from_median(scale.excess(score(activations)))

    is_joint = detector == ALL_DETECTORS
    evaluated = context.detectors if is_joint else {detector: score}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in evaluated}
    predictions = []
    for batch in extractor.batches(len(rows)):
        images, labels = extractor.to_device(data.floats(rows[batch])), extractor.to_device(data.labels(rows[batch]))
        start = extractor.to_device(perturbations.images(chosen[batch]))
        restarts = (
            ball.random_starts(images, size, context.seed, DETECTOR_EVASION, rows[batch], np.full(len(images), restart))
            for restart in range(settings.n_random_starts)
        )
        try:
            adversarial = evade(
                forward, images, labels, size, ball, pgd, chain([start], restarts), NEAR_MEDIAN, UNFLAGGED
            )
        except NonFiniteLogits as error:
            path = data.nearest_path(rows[batch], error.image)
            raise ValueError(
                f"{error}, for example {path} (detector {detector}, eps {eps:g}). They must be finite. "
                "Train the models again, with a lower learning rate"
            ) from error
        with torch.inference_mode():
            activations = extractor.activations(adversarial)
            for name, of_detector in evaluated.items():
                scores[name].append(of_detector(activations).cpu().numpy())
            predictions.append(activations.logits.argmax(dim=1).cpu().numpy())
    labels_of_rows = data.labels(rows)
    correct = np.concatenate(predictions) == labels_of_rows
    clean_correct = context.predictions[AS_GIVEN][chosen] == labels_of_rows
    name_of_attack = JOINT_DETECTOR_EVASION if is_joint else DETECTOR_EVASION
    point = {"surrogate": UNDEFENDED, "attack": name_of_attack, "eps": eps}
    for name, parts in scores.items():
        yield from detection_tables(context, point, name, np.concatenate(parts), clean_correct, correct, chosen)


def distance_from_median(excess: Tensor) -> Tensor:
    """Return the distance of scores from the median, ``(N,)``, where 1 is the threshold.

    A score below the median is never flagged, so its distance stays below 1.

    Args:
        excess: 0 for the median, 1 for the threshold, ``(N,)``.
    """
    # without the clamp, the gradient of the other branch would be infinite at an excess of 1
    below = excess.clamp(max=0)
    return torch.where(excess > 0, excess, -below / (1 - below))


def evade(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    labels: Tensor,
    radius: float,
    ball: NormBall,
    settings: Pgd,
    starts: Iterable[Tensor],
    goal: float = -torch.inf,
    enough: float = -torch.inf,
) -> Tensor:
    """Compute adversarial images that are misclassified and, among those, have a small detector score.

    A detector must be evaluated with adaptive attacks (Carlini and Wagner 2017, arXiv 1705.07263; Tramer et al. 2020,
    arXiv 2002.08347). As in selective gradient descent (Bryniarski et al. 2021, arXiv 2106.15023), a step uses the
    gradient of one objective: of the margin while an image is classified correctly, of the score while it is
    misclassified. Momentum (Dong et al. 2018, arXiv 1710.06081) averages the two, because alternating sign steps would
    cancel each other. The step size decreases linearly, with a mean of ``relative_step_size`` times the radius. Large
    steps find a misclassification; small steps follow the decision boundary.

    Args:
        forward: takes images, returns logits ``(N, K)`` and scores ``(N,)``, higher for adversarial images. The results
            for an image depend on this image only and have finite gradients. Networks are in evaluation mode, frozen.
        images: float32 ``(N, C, H, W)`` within the value range, on the model's device.
        labels: true classes, int64 ``(N,)``, on the model's device.
        radius: in units of the value range.
        ball: norm and value range.
        settings: number and size of the steps; ``n_random_starts`` is ignored.
        starts: starting points within the balls, ``(N, C, H, W)`` each, for example random points or the result of an
            attack that ignores the detector.
        goal: score at which the path of a misclassified image ends.
        enough: score of a misclassified image after which it gets no further starts.

    Returns:
        ``(N, C, H, W)``: of all points on the paths of an image, including the starts, the misclassified one with the
        smallest score; the end of the last path if no point is misclassified.

    Raises:
        NonFiniteLogits: a logit or a score is not finite.
    """
    size = torch.tensor(radius, device=images.device)
    best, lowest = images.clone(), torch.full(labels.shape, torch.inf, device=images.device)
    for start in starts:
        active = (lowest > enough).nonzero()[:, 0]
        perturbed = start[active]
        velocity = torch.zeros_like(perturbed)
        for step in range(settings.n_steps + 1):
            if not len(active):
                break
            originals, classes = images[active], labels[active]
            with torch.enable_grad():
                variable = perturbed.detach().requires_grad_()
                logits, scores = forward(variable)
                wrong = logits.argmax(dim=1) != classes
                objectives = torch.where(wrong, scores, logit_margin(logits, classes))
            non_finite = (~(logits.isfinite().all(dim=1) & scores.isfinite())).nonzero()[:, 0]
            if len(non_finite):
                message = f"{len(non_finite)} of {len(active)} images have logits or scores that are not finite"
                raise NonFiniteLogits(message, originals[non_finite[0]].cpu().numpy())
            better = torch.where(wrong, scores < lowest[active], lowest[active].isinf())
            best[active[better]] = perturbed[better]
            lowest[active] = torch.where(better & wrong, scores.detach(), lowest[active])
            if step < settings.n_steps:
                (gradient,) = torch.autograd.grad(objectives.sum(), variable)
                length = gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min_(torch.finfo(gradient.dtype).tiny)
                velocity.mul_(MOMENTUM).addcdiv_(gradient, length)
                step_size = settings.relative_step_size * radius * (2 - (2 * step + 1) / settings.n_steps)
                perturbed = ball.project(perturbed.sub_(ball.steepest(velocity), alpha=step_size), originals, size)
                remaining = lowest[active] > goal
                active, perturbed, velocity = active[remaining], perturbed[remaining], velocity[remaining]
    return best
