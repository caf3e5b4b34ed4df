"""Old names."""

from tasks.attacks.gradient.fgsm import fgsm
from tasks.attacks.gradient.losses import N_CONFIRMATIONS as FURTHER_LOOKS
from tasks.attacks.gradient.losses import NonFiniteLogits as NotFinite
from tasks.attacks.gradient.losses import logit_margin, loss_gradient, misclassified
from tasks.attacks.gradient.pgd import pgd

__all__ = ["FURTHER_LOOKS", "NotFinite", "fgsm", "logit_margin", "loss_gradient", "misclassified", "pgd"]
