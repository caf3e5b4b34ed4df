"""Names in the results of the simulation, beside those of acquisition functions."""

ALL_LABELS = "all labels"
"""Name of the reference: the classifier that is trained on the true labels of all training images."""
