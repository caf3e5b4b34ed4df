"""The rows of ``defences``: purifiers in front of the classifier, and classifiers that replace it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasks.params.section import (
    Architecture,
    Count,
    CountOrOff,
    DottedPath,
    Pgd,
    Positive,
    Section,
    Share,
    Training,
    WithArguments,
    check_unit,
)

UNDEFENDED = "undefended"
"""Name of the undefended classifier among the targets of attacks, and the surrogate of transfer attacks."""


class Adversary(Section):
    """Adversarial examples that a training computes anew for each batch."""

    norm: Literal["linf", "l2"]
    """Norm of the ball around an image."""
    eps_range: tuple[Positive, Positive]
    """Smallest and largest eps, in 1/255; one is drawn for each batch, uniformly on a logarithmic scale."""
    pgd: Pgd

    @model_validator(mode="after")
    def _eps_in_order(self) -> Self:
        if not self.eps_range[0] <= self.eps_range[1] <= 255:
            raise ValueError(f"eps_range {list(self.eps_range)} must be a smallest and a largest value up to 255")
        check_unit(self.eps_range[1])
        return self


class Autoencoder(Section):
    """The denoising autoencoder of ``train_autoencoder``, unchanged: the defence of the study."""

    kind: Literal["autoencoder"]
    """Type of the defence."""


class TrainedAutoencoder(Section):
    """An autoencoder that is trained for this defence.

    It starts from the weights of ``train_autoencoder`` if the architecture is the same.
    """

    architecture: Architecture
    """``residual`` and ``residual_unet`` predict the noise instead of the image. ``unet`` and ``residual_unet`` have
    skip connections. ``variational`` draws its code at random in training."""
    training: Training


class DenoisingAutoencoder(TrainedAutoencoder):
    """An autoencoder of any architecture that is trained on the noise of ``train_autoencoder`` alone."""

    kind: Literal["denoising_autoencoder"]
    """Type of the defence."""


class AttackedAutoencoder(TrainedAutoencoder):
    """An autoencoder that is trained on adversarial examples."""

    adversary: Adversary
    adversarial_fraction: Annotated[float, Field(gt=0, le=1)]
    """Fraction of each batch that is adversarial; the rest is noisy as in ``train_autoencoder``."""


class RetrainedAutoencoder(AttackedAutoencoder):
    """An autoencoder trained on noise and on adversarial examples of the undefended classifier."""

    kind: Literal["retrained_autoencoder"]
    """Type of the defence."""


class FeatureGuidedAutoencoder(AttackedAutoencoder):
    """Like ``retrained_autoencoder``, but with a loss on the classifier's features or logits instead of pixels."""

    kind: Literal["feature_guided_autoencoder"]
    """Type of the defence."""
    guidance_layer: Literal["features", "logits"]
    """Output of the classifier that must be the same as for the clean image."""


class JointAutoencoder(TrainedAutoencoder):
    """An autoencoder that is trained adversarially, end to end through the frozen classifier behind it."""

    kind: Literal["joint_autoencoder"]
    """Type of the defence."""
    adversary: Adversary
    eps_warmup_fraction: Share
    """Fraction of the epochs over which eps rises linearly to that of the adversary."""
    clean_weight: Annotated[float, Field(ge=0, lt=1)]
    """Weight of the clean images in the cross-entropy; the rest is the weight of the adversarial examples."""
    reconstruction_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Weight of the mean squared error against the originals, relative to the cross-entropy."""


class FinetunedClassifier(Section):
    """The classifier, trained further on the output of the denoising autoencoder in front of it."""

    kind: Literal["finetuned_classifier"]
    """Type of the defence."""
    training: Training


class Certification(Section):
    """Certified radii: no perturbation within them changes the prediction, with a given probability."""

    n_samples: Annotated[int, Field(ge=100, le=10_000)]
    """Noisy copies from which the radius of an image is computed; ART draws all at once (200 kB each at 224 x 224)."""
    alpha: Annotated[float, Field(gt=0, le=0.05)]
    """Probability, for each image, that its certified radius is too large."""
    max_images: CountOrOff
    """Number of attacked images that are certified, chosen like ``attack.max_images``; 0: all."""


class RandomizedSmoothing(Section):
    """The classifier, trained further on noisy images; its prediction is the mean over several noisy copies.

    Cohen et al. 2019, "Certified adversarial robustness via randomized smoothing" (arXiv 1902.02918).
    """

    kind: Literal["randomized_smoothing"]
    """Type of the defence."""
    std: Annotated[float, Field(gt=0, le=1)]
    """Standard deviation of the noise, images in [0, 1]."""
    training: Training
    n_eot_samples: Annotated[int, Field(ge=2)]
    """Noisy copies whose predicted probabilities are averaged in one prediction. Attacks average at least 20 copies
    (EOT), even if this number is smaller."""
    certification: Certification


class RobustTraining(Section):
    """A classifier that is trained further on its own adversarial examples, without a purifier."""

    training: Training
    adversary: Adversary
    eps_warmup_fraction: Share
    """Fraction of the epochs over which eps rises linearly to that of the adversary."""


class AdversarialTraining(RobustTraining):
    """Adversarial training of the classifier."""

    kind: Literal["adversarial_training"]
    """Type of the defence."""
    clean_weight: Annotated[float, Field(ge=0, lt=1)]
    """Weight of the clean images in the loss; the rest is the weight of the adversarial examples."""


class Trades(RobustTraining):
    """TRADES: training for clean accuracy and for equal predictions in the whole ball."""

    kind: Literal["trades"]
    """Type of the defence."""
    beta: Positive
    """Weight of the divergence between the predictions on clean images and on adversarial examples."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.adversary.pgd.n_random_starts != 1:
            raise ValueError(
                "adversary.pgd.n_random_starts must be 1: the divergence has no gradient at the image itself"
            )
        return self


class Jpeg(Section):
    """JPEG compression (Das et al. 2017, arXiv 1705.02900)."""

    kind: Literal["jpeg"]
    """Type of the transform."""
    quality: Annotated[int, Field(ge=1, le=95)]
    """Quality as in Pillow."""


class BitDepth(Section):
    """Fewer grey levels (Xu et al. 2018, "Feature Squeezing", arXiv 1704.01155)."""

    kind: Literal["bit_depth"]
    """Type of the transform."""
    bits: Annotated[int, Field(ge=1, le=8)]
    """Bits of a pixel."""


class MedianSmoothing(Section):
    """Median over a window (Xu et al. 2018, arXiv 1704.01155)."""

    kind: Literal["median"]
    """Type of the transform."""
    window_size: Annotated[int, Field(ge=3, le=31)]
    """Side in pixels, odd."""

    @model_validator(mode="after")
    def _has_a_middle(self) -> Self:
        if self.window_size % 2 == 0:
            raise ValueError(f"window_size must be odd, not {self.window_size}: the window is centred on a pixel")
        return self


class TotalVariation(Section):
    """Total-variation denoising (Guo et al. 2018, arXiv 1711.00117, without random removal of pixels)."""

    kind: Literal["total_variation"]
    """Type of the transform."""
    weight: Positive
    """Weight of the total variation relative to half the squared error, images in [0, 1]."""
    n_iterations: Count
    """Iterations of the minimisation, which starts at the image itself."""


class GaussianNoise(Section):
    """Gaussian noise, drawn anew for every prediction."""

    kind: Literal["gaussian_noise"]
    """Type of the transform."""
    std: Annotated[float, Field(gt=0, le=1)]
    """Standard deviation, images in [0, 1]."""


ImageTransform = Annotated[
    Jpeg | BitDepth | MedianSmoothing | TotalVariation | GaussianNoise, Field(discriminator="kind")
]


class Preprocessing(Section):
    """Image processing before the classifier, or before the study's autoencoder and the classifier."""

    kind: Literal["preprocessing"]
    """Type of the defence."""
    transforms: Annotated[tuple[ImageTransform, ...], Field(min_length=1)]
    """Transforms, applied one after the other."""
    applied_before: Literal["classifier", "autoencoder"]
    """Network that receives the processed image."""
    n_eot_samples: Count
    """Draws whose predicted probabilities are averaged in one prediction if a transform is random. Attacks average at
    least 20 draws (EOT), even if this number is smaller. 1 if no transform is random."""

    @model_validator(mode="after")
    def _several_samples_only_if_random(self) -> Self:
        is_random = any(isinstance(transform, GaussianNoise) for transform in self.transforms)
        if self.n_eot_samples > 1 and not is_random:
            raise ValueError(f"n_eot_samples must be 1, not {self.n_eot_samples}: no transform is random")
        return self


class PluginDefence(WithArguments):
    """Your own defence, from a Python file in ``plugins/`` or an installed package.

    Further keys are arguments of its function. See ``docs/how-to/own-defence.md``.
    """

    kind: Literal["plugin"]
    """Type of the defence."""
    factory: DottedPath
    """``package.module:function`` that returns a ``torch.nn.Module``."""
    role: Literal["purifier", "classifier"]
    """``purifier``: takes and returns images, before the undefended classifier. ``classifier``: takes images and
    returns logits; the function gets the undefended classifier as the argument ``classifier``."""
    n_eot_samples: Count = 1
    """Draws of a random purifier whose predicted probabilities are averaged in one prediction."""


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
    | Preprocessing
    | PluginDefence,
    Field(discriminator="kind"),
]
