"""Vocabulary of the records: names of attacks and operating points."""

CLEAN = "clean"
"""Attack of the rows of unchanged images: one row for each image and target, eps 0, threat model ``none``."""

ART_REFERENCE = {"art_fgsm": "fgsm", "art_pgd": "pgd"}
"""Attacks of ART on a part of the images that a check compares with ours -> ours. They have no curves."""

PGD_8_BIT = "pgd_8_bit"
"""PGD in steps of whole grey levels, whose images have 8 bits."""
PGD_FIXED_DRAWS = "pgd_fixed_draws"
"""PGD on a random target with the same draws at every step."""

SUITE, SQUARE, HOP_SKIP_JUMP = "suite", "square", "hop_skip_jump"
VALIDATION_SWEEP = "sweep"
"""The sweep alone, on validation images, for the choice among targets."""
SUITE_DOUBLED = "suite_doubled"
"""The white-box suite with one more stage of twice the effort, which a check compares with the suite."""
SQUARE_ON_SURVIVORS = "square_on_survivors"
"""Square on the images that survive the suite, in the largest ball that each survives."""
SEARCHES = (SUITE, SUITE_DOUBLED, SQUARE_ON_SURVIVORS, SQUARE)
"""Attacks that search for the smallest eps that breaks each image, and have a curve of their own."""

AS_TRAINED, RECALIBRATED, FIXED_SENSITIVITY = "as_trained", "recalibrated", "fixed_sensitivity"
"""Operating points: no bias on the logits; biases with the highest balanced accuracy on validation images; a bias with
a given sensitivity there."""
