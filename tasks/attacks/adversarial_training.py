"""Training on adversarial examples that are crafted as the training goes."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.attacks.ball import Balls, radius
from tasks.attacks.gradient import pgd
from tasks.models.noise import add_noise
from tasks.models.training import Objective
from tasks.params import RetrainedAutoencoder, TrainAutoencoder


def retraining(classifier: nn.Module, settings: RetrainedAutoencoder, noise: TrainAutoencoder) -> Objective:
    """Mean squared error between the originals and what an autoencoder makes of adversarial and of noisy copies.

    The adversarial examples are those of the undefended classifier, by PGD; in each batch they are other ones.

    Args:
        classifier: takes images ``(N, 1, H, W)`` in [0, 1], returns logits; in evaluation mode, parameters frozen.
        settings: share, radii and PGD of the adversarial examples.
        noise: kinds of noise for the rest of the batch, and the share of it that has none.
    """
    balls = Balls(settings.norm, (0.0, 1.0))
    low, high = map(math.log, settings.eps)

    def measure(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        n_attacked = math.ceil(settings.adversarial_share * len(images))
        drawn = torch.rand((), generator=generator, device=generator.device)
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        ball = radius(math.exp(low + float(drawn) * (high - low)), settings.norm, images[0].numel())
        attacked, labels = images[:n_attacked], labels[:n_attacked]
        (adversarial,) = pgd(classifier, attacked, labels, [ball], balls, settings.pgd, seed, np.arange(n_attacked))
        noisy = add_noise(images[n_attacked:], noise.noises, noise.clean_share, generator)
        return {"loss": F.mse_loss(model(torch.cat([adversarial, noisy])), images)}

    return measure
