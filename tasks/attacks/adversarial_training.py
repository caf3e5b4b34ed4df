"""Training objectives of defences. With an attack, each batch has new adversarial examples of the current networks."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.gradient.norm_ball import NormBall, radius
from tasks.attacks.gradient.pgd import pgd
from tasks.defences.purified import Purified
from tasks.models.augmentation import augment
from tasks.models.features import LogitsAndFeatures
from tasks.models.noise import add_noise
from tasks.models.objectives import (
    accuracy,
    classification_objective,
    denoising_objective,
    gaussian_noise_transform,
    purified_noise_transform,
    reconstruct,
)
from tasks.models.training import InputTransform, Objective, no_transform
from tasks.params import (
    AdversarialTraining,
    Adversary,
    AttackedAutoencoder,
    Augmentation,
    Autoencoder,
    Defence,
    DenoisingAutoencoder,
    FeatureGuidedAutoencoder,
    FinetunedClassifier,
    JointAutoencoder,
    PluginDefence,
    Preprocessing,
    RandomizedSmoothing,
    RetrainedAutoencoder,
    Trades,
    TrainAutoencoder,
)


def objective_of(
    settings: Defence,
    noise_settings: TrainAutoencoder,
    augmentation: Augmentation,
    classifier: nn.Module,
    autoencoder: nn.Module,
) -> tuple[Objective, InputTransform]:
    """Return the objective with which a defence is trained, and the transform of the images before its network.

    Args:
        settings: of the defence, which has a training.
        noise_settings: noise of the training of the autoencoder.
        augmentation: augmentation of the training images of a classifier.
        classifier: the undefended one, in evaluation mode, parameters frozen.
        autoencoder: the one of ``train_autoencoder``, in evaluation mode, parameters frozen.
    """
    assert not isinstance(settings, Autoencoder | Preprocessing | PluginDefence)
    input_transform: InputTransform = no_transform
    match settings:
        case DenoisingAutoencoder():
            objective = denoising_objective(noise_settings)
        case RetrainedAutoencoder():
            objective = retraining_objective(classifier, settings, noise_settings)
        case FeatureGuidedAutoencoder():
            objective = feature_guided_objective(classifier, settings, noise_settings)
        case JointAutoencoder():
            objective = joint_training_objective(classifier, settings, augmentation)
        case FinetunedClassifier():
            input_transform = purified_noise_transform(autoencoder, noise_settings)
            objective = classification_objective(augmentation, input_transform)
        case RandomizedSmoothing():
            input_transform = gaussian_noise_transform(settings.std)
            objective = classification_objective(augmentation, input_transform)
        case AdversarialTraining() | Trades():
            objective = robust_training_objective(settings, augmentation)
    return objective, input_transform


def adversarial_examples(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    adversary: Adversary,
    generator: torch.Generator,
    eps_scale: float = 1,
) -> Tensor:
    """Return PGD examples of a batch, ``(N, C, H, W)``, at one random eps.

    Args:
        model: target. In training mode, its batch normalisation uses the statistics of the batch.
        images: float32 ``(N, C, H, W)`` in [0, 1].
        labels: true classes, int64 ``(N,)``, or class probabilities ``(N, K)``, from which the attack moves the
            prediction away.
        adversary: norm, range of eps, and parameters of PGD.
        generator: random generator for eps and the random starts.
        eps_scale: factor for eps, in (0, 1].
    """
    log_low, log_high = map(math.log, adversary.eps_range)
    uniform = float(torch.rand((), generator=generator, device=generator.device))
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    eps = math.exp(log_low + uniform * (log_high - log_low))
    scaled_radius = eps_scale * radius(eps, adversary.norm, images[0].numel())
    norm_ball = NormBall(adversary.norm, (0.0, 1.0))
    (adversarial,) = pgd(model, images, labels, [scaled_radius], norm_ball, adversary.pgd, seed, np.arange(len(images)))
    return adversarial


def retraining_objective(
    classifier: nn.Module, settings: AttackedAutoencoder, noise_settings: TrainAutoencoder
) -> Objective:
    """Return the objective of an autoencoder that is trained on adversarial and on noisy images.

    The loss is the mean squared error between its output and the clean images. The adversarial examples are computed on
    the undefended classifier.

    Args:
        classifier: takes images ``(N, C, H, W)`` in [0, 1], returns logits; in evaluation mode, parameters frozen.
        settings: adversary, and fraction of each batch that is adversarial.
        noise_settings: noise on the rest of the batch.
    """

    def objective(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        perturbed = _perturb(classifier, images, labels, settings, noise_settings, generator)
        denoised, penalty = reconstruct(model, perturbed, generator)
        return {"loss": F.mse_loss(denoised, images) + penalty}

    return objective


def feature_guided_objective(
    classifier: nn.Module, settings: FeatureGuidedAutoencoder, noise_settings: TrainAutoencoder
) -> Objective:
    """Return the objective of an autoencoder that preserves the classifier's features or logits of the clean images.

    The loss is the mean absolute difference between features (or logits) of denoised and of clean images (Liao et al.
    2018, "Defense against adversarial attacks using high-level representation guided denoiser", arXiv 1712.02976). The
    batches are those of :func:`retraining_objective`.

    Args:
        classifier: takes images ``(N, C, H, W)`` in [0, 1], returns logits; in evaluation mode, parameters frozen.
        settings: layer to compare, adversary, and fraction of each batch that is adversarial.
        noise_settings: noise on the rest of the batch.
    """
    logits_and_features = LogitsAndFeatures(classifier)
    layer = {"logits": 0, "features": 1}[settings.guidance_layer]

    def objective(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, _progress: float
    ) -> dict[str, Tensor]:
        perturbed = _perturb(classifier, images, labels, settings, noise_settings, generator)
        denoised, penalty = reconstruct(model, perturbed, generator)
        denoised_outputs = logits_and_features(denoised)
        with torch.no_grad():
            clean_outputs = logits_and_features(images)
        loss = F.l1_loss(denoised_outputs[layer], clean_outputs[layer]) + penalty
        return {"loss": loss, "accuracy": accuracy(denoised_outputs[0], labels)}

    return objective


def joint_training_objective(
    classifier: nn.Module, settings: JointAutoencoder, augmentation: Augmentation
) -> Objective:
    """Return the objective of an autoencoder that is trained adversarially in front of a frozen classifier.

    The loss adds two terms: the cross-entropy of the classifier on denoised images, clean and adversarial as in
    :func:`robust_training_objective`, and the mean squared error between denoised and clean images. The adversarial
    examples are computed end to end through both networks.

    Args:
        classifier: takes images ``(N, C, H, W)`` in [0, 1], returns logits; in evaluation mode, parameters frozen.
        settings: adversary, and weights of the terms of the loss.
        augmentation: augmentation of the training images.
    """

    def objective(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        eps_scale = _eps_scale(progress, settings.eps_warmup_fraction)
        target = Purified(model, classifier)
        adversarial = adversarial_examples(target, images, labels, settings.adversary, generator, eps_scale)
        # one batch, so that batch normalisation uses the same statistics for both
        denoised, penalty = reconstruct(model, torch.cat([images, adversarial]), generator)
        clean_logits, adversarial_logits = classifier(denoised).chunk(2)
        squared_error = F.mse_loss(denoised, torch.cat([images, images]))
        loss = _weighted_cross_entropy(clean_logits, adversarial_logits, labels, settings.clean_weight)
        loss = loss + settings.reconstruction_weight * squared_error + penalty
        accuracies = _accuracies(clean_logits, adversarial_logits, labels)
        return {"loss": loss, "squared_error": squared_error, **accuracies}

    return objective


def robust_training_objective(settings: AdversarialTraining | Trades, augmentation: Augmentation) -> Objective:
    """Return the objective of a classifier that is trained on its own adversarial examples.

    - Adversarial training: cross-entropy on adversarial examples (Madry et al. 2018, arXiv 1706.06083, equation 2.1).
      With a ``clean_weight``, this fraction of the loss is the cross-entropy on the clean images (Goodfellow et al.
      2015, arXiv 1412.6572, section 6).
    - TRADES: cross-entropy on clean images plus ``beta`` times the divergence KL(clean || adversarial) of the predicted
      probabilities (Zhang et al. 2019, arXiv 1901.08573, equation 5). The attack maximises the same divergence.

    The metric ``accuracy`` is the mean of clean and robust accuracy.

    Args:
        settings: adversary, and weights of the terms of the loss.
        augmentation: augmentation of the training images.
    """

    def objective(
        model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float
    ) -> dict[str, Tensor]:
        if model.training:
            images = augment(images, augmentation, generator)
        attacked_labels = labels
        if isinstance(settings, Trades):
            with torch.no_grad():
                attacked_labels = model(images).softmax(dim=1)
        eps_scale = _eps_scale(progress, settings.eps_warmup_fraction)
        adversarial = adversarial_examples(model, images, attacked_labels, settings.adversary, generator, eps_scale)
        # one batch, so that batch normalisation uses the same statistics for both
        clean_logits, adversarial_logits = model(torch.cat([images, adversarial])).chunk(2)
        if isinstance(settings, Trades):
            clean_log_probabilities = F.log_softmax(clean_logits, dim=1)
            adversarial_log_probabilities = F.log_softmax(adversarial_logits, dim=1)
            divergence = F.kl_div(
                adversarial_log_probabilities, clean_log_probabilities, reduction="batchmean", log_target=True
            )
            loss = F.cross_entropy(clean_logits, labels) + settings.beta * divergence
        else:
            loss = _weighted_cross_entropy(clean_logits, adversarial_logits, labels, settings.clean_weight)
        return {"loss": loss, **_accuracies(clean_logits, adversarial_logits, labels)}

    return objective


def _eps_scale(progress: float, warmup_fraction: float) -> float:
    """Return the factor for eps, which rises linearly to 1 over the first epochs.

    Args:
        progress: fraction of the training, in (0, 1].
        warmup_fraction: fraction of the training over which the factor rises; 0: the factor is always 1.
    """
    return min(progress / warmup_fraction, 1) if warmup_fraction else 1


def _weighted_cross_entropy(
    clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor, clean_weight: float
) -> Tensor:
    """Return the weighted mean of the cross-entropies on clean images and on adversarial examples."""
    clean_loss, adversarial_loss = F.cross_entropy(clean_logits, labels), F.cross_entropy(adversarial_logits, labels)
    return clean_weight * clean_loss + (1 - clean_weight) * adversarial_loss


def _accuracies(clean_logits: Tensor, adversarial_logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return clean accuracy, robust accuracy, and their mean, by which the best epoch is selected."""
    clean, robust = accuracy(clean_logits, labels), accuracy(adversarial_logits, labels)
    return {"accuracy": (clean + robust) / 2, "clean_accuracy": clean, "robust_accuracy": robust}


def _perturb(
    target: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: AttackedAutoencoder,
    noise_settings: TrainAutoencoder,
    generator: torch.Generator,
) -> Tensor:
    """Return a batch with adversarial examples of the target in its first part and noisy images in the rest."""
    n_attacked = math.ceil(settings.adversarial_fraction * len(images))
    adversarial = adversarial_examples(target, images[:n_attacked], labels[:n_attacked], settings.adversary, generator)
    noisy = add_noise(images[n_attacked:], noise_settings.noise_types, noise_settings.clean_fraction, generator)
    return torch.cat([adversarial, noisy])
