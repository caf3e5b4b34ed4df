"""The section ``analyze``."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.params.section import CountOrOff, Fraction, Positive, Section


class DetectorEvasion(Section):
    """Adaptive attacks on the classifier and each detector, and on the classifier and all detectors at once."""

    eps: tuple[float, ...]
    """The saved eps at which every detector is attacked; empty: no such attacks."""
    n_steps: Annotated[int, Field(ge=100, le=1000)]
    """Maximum number of gradient steps of each start; a start ends when the image is misclassified and its score is
    near that of a typical clean image. The relative step size is ``attack.pgd.relative_step_size``."""
    n_random_starts: Annotated[int, Field(ge=1, le=20)]
    """Random starts for images that are still flagged or correctly classified after the start at their image of PGD."""
    max_images: CountOrOff
    """Number of attacked images, chosen like ``attack.max_images``; 0: all."""

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        if len(set(self.eps)) < len(self.eps):
            raise ValueError(f"eps {list(self.eps)} must not repeat a value")
        return self


class ClaimBounds(Section):
    """Bounds by which the claims of the study are judged. The report shows the results with other bounds, too."""

    study_accuracy: Fraction
    """Accuracy that the classifier must reach."""
    separable_auroc: Fraction
    """AUROC from which two sets count as separable (Hosmer and Lemeshow 2013, "Applied Logistic Regression")."""
    min_accuracy_gain: Fraction
    """Gain in balanced accuracy from which retraining counts as helpful."""
    min_restored_fraction: Fraction
    """Fraction of the lost balanced accuracy that a defence must restore to count as helpful."""


class Analyze(Section):
    """Analyses of the saved adversarial images."""

    eps: Positive
    """The reported eps: claims, headline, model card and promotion use it. It is one of the saved eps."""
    false_positive_rate: Fraction
    """Maximum fraction of clean validation images above the threshold of a detector."""
    claim_bounds: ClaimBounds
    detector_evasion: DetectorEvasion
