"""Balls, loss gradients, FGSM and PGD, for attacks and for adversarial training."""
