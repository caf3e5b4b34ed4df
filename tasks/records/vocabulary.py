"""The vocabulary of the records: names of attacks, threat models and columns, and how people write them."""

CLEAN = "clean"
"""Attack of the rows of unchanged images: one for each image and target, eps 0, threat model ``none``."""

THREAT_MODELS = ("none", "transfer", "adaptive")
"""``transfer``: crafted on the bare classifier; ``adaptive``: end to end through the target itself."""

CURVE = ["target", "threat_model", "attack"]
"""What names a curve: robustness against eps."""

SWEEP, SUITE, SQUARE = SEARCHES = ("sweep", "suite", "square")
HOP_SKIP_JUMP = "hop_skip_jump"
"""Attacks of the rows that come from the smallest eps that breaks each image."""

POINT = [*CURVE, "norm", "eps"]
"""What names a point of a curve."""

AS_GIVEN = ""
"""Where tables name a purifier: images that none has touched."""


def spoken(name: str) -> str:
    """The name of a target as people write it: ``retrained autoencoder``."""
    return name.replace("_", " ")
