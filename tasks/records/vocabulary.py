"""Vocabulary of the records: names of attacks, threat models and columns."""

CLEAN = "clean"
"""Attack of the rows of unchanged images: one row for each image and target, eps 0, threat model ``none``."""

THREAT_MODELS = ("none", "transfer", "adaptive", "black_box")
"""``transfer``: adversarial examples of the bare classifier; ``adaptive``: attacks end to end through the target;
``black_box``: attacks that use scores or labels alone."""

CURVE = ["target", "threat_model", "attack"]
"""Columns that identify a curve of accuracy against eps."""
POINT = [*CURVE, "norm", "eps"]
"""Columns that identify a point of a curve."""

SWEEP, SUITE, SQUARE, HOP_SKIP_JUMP = "sweep", "suite", "square", "hop_skip_jump"
SEARCHES = (SWEEP, SUITE, SQUARE)
"""Attacks that search for the smallest eps that breaks each image, and have a curve of their own."""
WORST_CASE = "worst_case"
"""Name of the strongest attack on each image, in metrics and curves."""

AS_GIVEN = ""
"""Name of the purifier in tables where images were not purified."""


def display_name(name: str) -> str:
    """Display name of a target, threat model or acquisition function: ``retrained autoencoder``."""
    return name.replace("_", " ")
