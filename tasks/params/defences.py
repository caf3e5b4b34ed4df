"""The rows of ``defences``: what can stand in front of the classifier, or take its place."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.params.section import Architecture, Count, CountOrOff, Pgd, Positive, Section, Share, Training, check_unit

UNDEFENDED = "undefended"
"""Name of the bare classifier among the targets of attacks, and the surrogate of transfer attacks."""


class Adversary(Section):
    """Adversarial examples that a training crafts as it goes, other ones in each batch."""

    norm: Literal["linf", "l2"]
    """Norm of the perturbations' ball."""
    eps: tuple[Positive, Positive]
    """Smallest and largest radius as in ``attack.eps``; one is drawn for each batch, evenly on a logarithmic scale."""
    pgd: Pgd

    @model_validator(mode="after")
    def _eps_in_order(self) -> Self:
        if not self.eps[0] <= self.eps[1] <= 255:
            raise ValueError(f"eps must be a smallest and a largest value up to 255, not {list(self.eps)}")
        check_unit(self.eps[1])
        return self


class Autoencoder(Section):
    """The denoising autoencoder of ``train_autoencoder`` as it is: the study's defence."""

    kind: Literal["autoencoder"]
    """What the row is about."""


class TrainedAutoencoder(Section):
    """An autoencoder that is trained for this defence; it begins with ``train_autoencoder`` if that has its form."""

    architecture: Architecture
    """See :mod:`tasks.models.autoencoder`."""
    training: Training


class DenoisingAutoencoder(TrainedAutoencoder):
    """An autoencoder of any architecture, trained on the noise of ``train_autoencoder`` and on nothing else."""

    kind: Literal["denoising_autoencoder"]
    """What the row is about."""


class AttackedAutoencoder(TrainedAutoencoder):
    """An autoencoder that sees adversarial examples as it is trained."""

    adversary: Adversary
    adversarial_share: Annotated[float, Field(gt=0, le=1)]
    """Share of each batch that is adversarial; the rest is what ``train_autoencoder`` sees."""


class RetrainedAutoencoder(AttackedAutoencoder):
    """An autoencoder trained on noise and on adversarial examples of the undefended classifier."""

    kind: Literal["retrained_autoencoder"]
    """What the row is about."""


class FeatureGuidedAutoencoder(AttackedAutoencoder):
    """As ``retrained_autoencoder``, but what is to be restored is what the classifier makes of an image."""

    kind: Literal["feature_guided_autoencoder"]
    """What the row is about."""
    guide: Literal["features", "logits"]
    """What of the classifier is to be as on the clean image."""


class JointAutoencoder(TrainedAutoencoder):
    """An autoencoder attacked end to end, together with the frozen classifier behind it, as it is trained."""

    kind: Literal["joint_autoencoder"]
    """What the row is about."""
    adversary: Adversary
    ramp: Share
    """Share of the epochs over which the radii rise to those of the adversary."""
    clean_weight: Annotated[float, Field(ge=0, lt=1)]
    """Share of the cross-entropy that is about the images as they are."""
    reconstruction_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of the squared error against the originals, beside the classifier's cross-entropy."""


class FinetunedClassifier(Section):
    """The classifier, trained further on what the denoising autoencoder in front of it makes of noisy images."""

    kind: Literal["finetuned_classifier"]
    """What the row is about."""
    training: Training


class Certification(Section):
    """Radii within which no perturbation changes what is predicted, with a probability."""

    n_samples: Annotated[int, Field(ge=100, le=10_000)]
    """Noisy copies of each image that its radius is told from; ART draws them all at once, 400 kB each at 224 x 224."""
    failure: Annotated[float, Field(gt=0, le=0.05)]
    """Probability, for each image, that its radius is too large."""
    max_images: CountOrOff
    """Of the attacked images, those that are certified, stratified; 0: all."""


class RandomizedSmoothing(Section):
    """The classifier, trained further on noisy images, and several noisy looks at each image that it is to classify.

    Cohen et al. 2019, "Certified adversarial robustness via randomized smoothing" (arXiv 1902.02918).
    """

    kind: Literal["randomized_smoothing"]
    """What the row is about."""
    std: Annotated[float, Field(gt=0, le=1)]
    """Standard deviation of the noise, images in [0, 1]."""
    training: Training
    n_draws: Annotated[int, Field(ge=2)]
    """Looks whose predicted probabilities are averaged; attacks see the average, too (EOT, as in Salman et al. 2019,
    arXiv 1906.04584)."""
    certification: Certification


class RobustTraining(Section):
    """A classifier trained further on adversarial examples of itself; nothing stands in front of it."""

    training: Training
    adversary: Adversary
    ramp: Share
    """Share of the epochs over which the radii rise to those of the adversary."""


class AdversarialTraining(RobustTraining):
    """The classifier, trained further to be right on adversarial examples of itself."""

    kind: Literal["adversarial_training"]
    """What the row is about."""
    clean_weight: Annotated[float, Field(ge=0, lt=1)]
    """Share of the loss that is about the images as they are."""


class Trades(RobustTraining):
    """The classifier, trained further to be right, and to say the same in the whole ball."""

    kind: Literal["trades"]
    """What the row is about."""
    beta: Positive
    """Weight of the divergence of what is predicted of adversarial from what is predicted of clean images."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.adversary.pgd.n_restarts != 1:
            raise ValueError("adversary.pgd.n_restarts must be 1: at the image itself the divergence has no gradient")
        return self


class Jpeg(Section):
    """JPEG compression (Das et al. 2017, arXiv 1705.02900)."""

    method: Literal["jpeg"]
    """What the step does."""
    quality: Annotated[int, Field(ge=1, le=95)]
    """As Pillow takes it."""


class BitDepth(Section):
    """Fewer grey levels (Xu et al. 2018, "Feature Squeezing", arXiv 1704.01155)."""

    method: Literal["bit_depth"]
    """What the step does."""
    bits: Annotated[int, Field(ge=1, le=8)]
    """Of a pixel."""


class MedianSmoothing(Section):
    """Median over a window (Xu et al. 2018, arXiv 1704.01155)."""

    method: Literal["median"]
    """What the step does."""
    window: Annotated[int, Field(ge=3, le=31)]
    """Side in pixels, odd."""

    @model_validator(mode="after")
    def _has_a_middle(self) -> Self:
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, so that a pixel is in its middle, not {self.window}")
        return self


class TotalVariation(Section):
    """Denoising by total variation (as in Guo et al. 2018, arXiv 1711.00117, without their dropping of pixels)."""

    method: Literal["total_variation"]
    """What the step does."""
    strength: Positive
    """Weight of the total variation against half the squared error, images in [0, 1]."""
    n_steps: Count
    """Of the minimisation, which starts at the image itself."""


class GaussianNoise(Section):
    """Gaussian noise, drawn anew at every look."""

    method: Literal["gaussian_noise"]
    """What the step does."""
    std: Annotated[float, Field(gt=0, le=1)]
    """Standard deviation, images in [0, 1]."""


Step = Annotated[Jpeg | BitDepth | MedianSmoothing | TotalVariation | GaussianNoise, Field(discriminator="method")]


class Preprocessing(Section):
    """Steps of image processing before the classifier, or before the study's autoencoder and the classifier."""

    kind: Literal["preprocessing"]
    """What the row is about."""
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    """One after the other."""
    before: Literal["classifier", "autoencoder"]
    """What the processed image goes to."""
    n_draws: Count
    """Looks whose predictions are averaged, where a step is random: attacks see the average, too, so that gradients are
    expectations over transformation (Athalye et al. 2018, arXiv 1802.00420); 1 where none is."""

    @model_validator(mode="after")
    def _draws_only_of_what_is_random(self) -> Self:
        if self.n_draws > 1 and not any(isinstance(step, GaussianNoise) for step in self.steps):
            raise ValueError(f"n_draws must be 1, not {self.n_draws}: no step draws at random")
        return self


Defence = Annotated[
    Autoencoder
    | DenoisingAutoencoder
    | RetrainedAutoencoder
    | FeatureGuidedAutoencoder
    | JointAutoencoder
    | FinetunedClassifier
    | RandomizedSmoothing
    | AdversarialTraining
    | Trades
    | Preprocessing,
    Field(discriminator="kind"),
]
