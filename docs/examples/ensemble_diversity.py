"""Diversity training of an ensemble (GAL, Kariyappa and Qureshi 2019, arXiv 1901.09981).

Broken by the adaptive attacks of Yang et al. 2020 (arXiv 2009.14720). The members are trained to have gradients of
different directions, so that adversarial images of another classifier deceive fewer of them.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def member(n_channels: int, n_classes: int) -> nn.Module:
    """Return one small classifier."""
    layers: list[nn.Module] = [nn.PixelUnshuffle(4)]
    for n_in, n_out, stride in ((16 * n_channels, 24, 1), (24, 48, 2), (48, 96, 2)):
        layers += [nn.Conv2d(n_in, n_out, 3, stride, padding=1), nn.BatchNorm2d(n_out), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, n_classes))


class Ensemble(nn.Module):
    """Mean of the predicted probabilities of some classifiers."""

    def __init__(self, members: list[nn.Module], diversity_weight: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.diversity_weight = diversity_weight

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, K)``, the log of the mean probabilities."""
        logits = torch.stack([each(images) for each in self.members])
        return logits.log_softmax(dim=2).logsumexp(dim=0)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy, and the alignment of the gradients of all pairs of members."""
        images = images.clone().requires_grad_()
        losses = [F.cross_entropy(each(images), labels) for each in self.members]
        gradients = [torch.autograd.grad(loss, images, create_graph=True)[0].flatten(1) for loss in losses]
        pairs = [F.cosine_similarity(a, b) for i, a in enumerate(gradients) for b in gradients[:i]]
        alignment = torch.stack(pairs).logsumexp(dim=0).mean()
        return torch.stack(losses).mean() + self.diversity_weight * alignment

    def fit(self, images: Tensor, labels: Tensor, n_epochs: int = 15) -> None:
        """Train all members together on the training images."""
        optimizer = torch.optim.Adam(self.parameters(), 1e-3)
        for rows in torch.split(torch.cat([torch.randperm(len(images)) for _ in range(n_epochs)]), 32):
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(images[rows], labels[rows]))
            optimizer.step()


def build(classifier: nn.Module, n_channels: int = 1, n_classes: int = 2, n_members: int = 3) -> nn.Module:
    """Return an ensemble of its own classifiers, so ``classifier`` is not used."""
    return Ensemble([member(n_channels, n_classes) for _ in range(n_members)], 0.5)
