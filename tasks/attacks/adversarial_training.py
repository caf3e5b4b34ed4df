"""What networks are trained for against an attacker, who crafts other examples in each batch as the training goes."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.gradient.pgd import pgd
from tasks.defences.purified import Purified
from tasks.models.augmentation import augment
from tasks.models.features import Features
from tasks.models.noise import add_noise
from tasks.models.objectives import accuracy, reconstruct
from tasks.models.training import Objective
from tasks.params import (
    AdversarialTraining,
    Adversary,
    AttackedAutoencoder,
    Augmentation,
    FeatureGuidedAutoencoder,
    JointAutoencoder,
    Trades,
    TrainAutoencoder,
)


def examples(
    model: nn.Module, images: Tensor, labels: Tensor, adversary: Adversary, generator: torch.Generator, share: float = 1
) -> Tensor:
    """Adversarial examples of a batch by PGD, all of one radius, ``(N, 1, H, W)``.

    Args:
        model: the target; where it trains, batch norm takes the statistics of what it is given.
        images: float32 ``(N, 1, H, W)`` in [0, 1].
        labels: true classes, int64 ``(N,)``, or probabilities to lead away from, ``(N, K)``.
        adversary: range of radii, and PGD.
        generator: of the radius and the random starts.
        share: of the radius that is used.
    """
    low, high = map(math.log, adversary.eps)
    drawn = torch.rand((), generator=generator, device=generator.device)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    ball = share * radius(math.exp(low + float(drawn) * (high - low)), adversary.norm, images[0].numel())
    norm_ball = NormBall(adversary.norm, (0.0, 1.0))
    (adversarial,) = pgd(model, images, labels, [ball], norm_ball, adversary.pgd, seed, np.arange(len(images)))
    return adversarial


def retraining(classifier: nn.Module, settings: AttackedAutoencoder, noise: TrainAutoencoder) -> Objective:
    """Mean squared error between the originals and what an autoencoder makes of adversarial and of noisy copies.

    The adversarial examples are those of the undefended classifier.

    Args:
        classifier: takes images ``(N, 1, H, W)`` in [0, 1], returns logits; in evaluation mode, parameters frozen.
        settings: share, radii and PGD of the adversarial examples.
        noise: kinds of noise for the rest of the batch, and the share of it that has none.
    """

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        denoised, cost = reconstruct(model, _mixed(classifier, images, labels, settings, noise, generator), generator)
        return {"loss": F.mse_loss(denoised, images) + cost}

    return measure


def feature_guided(classifier: nn.Module, settings: FeatureGuidedAutoencoder, noise: TrainAutoencoder) -> Objective:
    """Mean absolute difference of what the classifier makes of restored images from what it makes of the originals.

    Liao et al. 2018, "Defense against adversarial attacks using high-level representation guided denoiser" (arXiv
    1712.02976): of the features before the head, or of the logits. Arguments as of :func:`retraining`.
    """
    look = Features(classifier)
    index = {"logits": 0, "features": 1}[settings.guide]

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        denoised, cost = reconstruct(model, _mixed(classifier, images, labels, settings, noise, generator), generator)
        seen = look(denoised)
        with torch.no_grad():
            wanted = look(images)[index]
        return {"loss": F.l1_loss(seen[index], wanted) + cost, "accuracy": accuracy(seen[0], labels)}

    return measure


def joint_training(classifier: nn.Module, settings: JointAutoencoder, augmentation: Augmentation) -> Objective:
    """Adversarial training of an autoencoder alone: what it makes of images must lead the frozen classifier right.

    Cross-entropy on clean images and on examples that were crafted through both networks, as in
    :func:`robust_training`, and the squared error against the originals.

    Args:
        classifier: takes images ``(N, 1, H, W)`` in [0, 1], returns logits; in evaluation mode, parameters frozen.
        settings: adversary, and weights of the parts of the loss.
        augmentation: of images that are trained on.
    """

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        share = _ramped(progress, settings.ramp)
        adversarial = examples(Purified(model, classifier), images, labels, settings.adversary, generator, share)
        # one batch, since batch norm must not tell the two apart
        denoised, cost = reconstruct(model, torch.cat([images, adversarial]), generator)
        clean_logits, logits = classifier(denoised).chunk(2)
        error = F.mse_loss(denoised, torch.cat([images, images]))
        loss = _mean_of_both(clean_logits, logits, labels, settings.clean_weight)
        loss = loss + settings.reconstruction_weight * error + cost
        return {"loss": loss, "squared_error": error, **_accuracies(clean_logits, logits, labels)}

    return measure


def robust_training(settings: AdversarialTraining | Trades, augmentation: Augmentation) -> Objective:
    """What makes a classifier robust itself: cross-entropy on adversarial examples of it, or TRADES.

    - Madry et al. 2018 (arXiv 1706.06083), equation 2.1; with a ``clean_weight``, that share of the loss is the
      cross-entropy on the clean images (Goodfellow et al. 2015, arXiv 1412.6572, section 6).
    - Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy" (arXiv 1901.08573),
      equation 5: cross-entropy on clean images plus ``beta`` times the divergence KL(clean || adversarial) of the
      predictions, which is also what the examples are crafted for.

    Validation accuracy is the mean of that on clean images and of that on adversarial examples.
    """

    def measure(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        away_from = labels
        if isinstance(settings, Trades):
            with torch.no_grad():
                away_from = model(images).softmax(dim=1)
        share = _ramped(progress, settings.ramp)
        adversarial = examples(model, images, away_from, settings.adversary, generator, share)
        # one batch, since batch norm must not tell the two apart
        clean_logits, logits = model(torch.cat([images, adversarial])).chunk(2)
        if isinstance(settings, Trades):
            expected, predicted = (F.log_softmax(of, dim=1) for of in (clean_logits, logits))
            divergence = F.kl_div(predicted, expected, reduction="batchmean", log_target=True)
            loss = F.cross_entropy(clean_logits, labels) + settings.beta * divergence
        else:
            loss = _mean_of_both(clean_logits, logits, labels, settings.clean_weight)
        return {"loss": loss, **_accuracies(clean_logits, logits, labels)}

    return measure


def _ramped(progress: float, ramp: float) -> float:
    """Share of the radii, which rise evenly over the first part of a training."""
    return min(progress / ramp, 1) if ramp else 1


def _mean_of_both(clean_logits: Tensor, logits: Tensor, labels: Tensor, clean_weight: float) -> Tensor:
    """Weighted mean of the cross-entropies on clean images and on adversarial examples."""
    clean_loss, loss = F.cross_entropy(clean_logits, labels), F.cross_entropy(logits, labels)
    return clean_weight * clean_loss + (1 - clean_weight) * loss


def _accuracies(clean_logits: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Accuracies on clean images and on adversarial examples, and their mean, by which epochs are judged."""
    clean, robust = accuracy(clean_logits, labels), accuracy(logits, labels)
    return {"accuracy": (clean + robust) / 2, "clean_accuracy": clean, "robust_accuracy": robust}


def _mixed(
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: AttackedAutoencoder,
    noise: TrainAutoencoder,
    generator: torch.Generator,
) -> Tensor:
    """A batch that begins with adversarial examples of the target and ends with noisy images."""
    n_attacked = math.ceil(settings.adversarial_share * len(images))
    adversarial = examples(target, images[:n_attacked], labels[:n_attacked], settings.adversary, generator)
    noisy = add_noise(images[n_attacked:], noise.noises, noise.clean_share, generator)
    return torch.cat([adversarial, noisy])
