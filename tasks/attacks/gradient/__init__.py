"""Balls, loss gradients, FGSM and PGD: what attacks and adversarial training share."""
