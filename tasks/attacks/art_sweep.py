"""The sweep as an attack of the Adversarial Robustness Toolbox (ART)."""

from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import numpy as np
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from art.utils import check_and_transform_label_format

from tasks.attacks.gradient.norm_ball import NormBall
from tasks.attacks.sweep import SweepResult, fgsm_sweep, pgd_sweep
from tasks.params import Precision

NORMS: dict[Any, str] = {np.inf: "linf", "inf": "linf", 2: "l2"}
"""ART's value for a norm -> name of the norm."""


class EpsilonSweep(EvasionAttack):  # type: ignore[misc]  # ART carries no types
    """Adversarial examples in the smallest ball of a grid that contains one.

    Robust accuracy at every eps of the grid takes about as long as one attack at one eps: see
    :mod:`tasks.attacks.sweep`.

    Args:
        estimator: ART's ``PyTorchClassifier`` with scalar ``clip_values`` and without preprocessing or postprocessing;
            a defence is part of the model.
        norm: ``np.inf``, ``"inf"`` or 2.
        eps: radii of the balls (or one), rising, in units of the images' values.
        max_iter: gradient steps of PGD; 0 is the fast gradient sign method.
        relative_step_size: step size of PGD divided by eps.
        num_random_init: further random starts of PGD for images that survive the first start.
        batch_size: images of one pass.
        seed: of the random starts.
        precision: ``"float32"`` or ``"bfloat16"``, of convolutions and matrix products in the gradients of PGD;
            success is decided in float32.
    """

    attack_params: ClassVar[list[str]] = [
        *EvasionAttack.attack_params,
        *("norm", "eps", "max_iter", "relative_step_size", "num_random_init", "batch_size", "seed", "precision"),
    ]
    _estimator_requirements: ClassVar[tuple[type, ...]] = (PyTorchClassifier,)

    def __init__(
        self,
        estimator: PyTorchClassifier,
        norm: Any = np.inf,
        eps: float | Sequence[float] = 8 / 255,
        max_iter: int = 40,
        relative_step_size: float = 0.25,
        num_random_init: int = 0,
        batch_size: int = 32,
        seed: int = 0,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm = norm
        self.eps = tuple(float(value) for value in np.atleast_1d(eps))
        self.max_iter = max_iter
        self.relative_step_size = relative_step_size
        self.num_random_init = num_random_init
        self.batch_size = batch_size
        self.seed = seed
        self.precision = precision
        self._check_params()

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        """Return the adversarial example of each image in its smallest ball, float32 ``(N, C, H, W)``.

        A misclassified image is returned unchanged; for an image that no ball breaks, the last attempt is returned.

        Args:
            x: images, ``(N, C, H, W)``.
            y: true classes ``(N,)``, or one-hot ``(N, K)``; by default the predictions of the classifier.
            kwargs: no other arguments are allowed.

        Raises:
            ValueError: other arguments, or logits that are not finite.
        """
        if kwargs:
            raise ValueError(f"EpsilonSweep.generate: unknown arguments {sorted(kwargs)}. Only x and y are allowed")
        return self.sweep(x, y).adversarial

    def sweep(self, x: np.ndarray, y: np.ndarray | None = None) -> SweepResult:
        """Return the examples with the index of the eps that breaks each image; arguments as of :meth:`generate`."""
        images = x.astype(np.float32)
        low, high = (float(value) for value in self.estimator.clip_values)
        if images.ndim != 4 or images.min() < low or images.max() > high:
            raise ValueError(
                f"x: shape {images.shape}. Images (N, C, H, W) with values from {low:g} to {high:g} are allowed"
            )
        if y is None:
            y = self.estimator.predict(images, batch_size=self.batch_size)
        # class numbers become one-hot; an array with K columns, such as logits, is not changed
        labels = check_and_transform_label_format(y, self.estimator.nb_classes).argmax(axis=1)
        model, ball = self.estimator.model.eval(), NormBall(NORMS[self.norm], (low, high))
        common = (model, images, labels, np.array(self.eps), ball, self.batch_size)
        if self.max_iter == 0:
            return fgsm_sweep(*common)
        steps = (self.max_iter, self.relative_step_size, self.num_random_init)
        return pgd_sweep(*common, *steps, self.seed, np.arange(len(images)), self.precision)

    def _check_params(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm: {self.norm!r}. Allowed: {list(NORMS)}")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision: {self.precision!r}. Allowed: {list(get_args(Precision))}")
        rising = bool(self.eps) and list(self.eps) == sorted(set(self.eps))
        if not rising or not 0 < self.eps[0] <= self.eps[-1] < np.inf:
            raise ValueError(f"eps: {list(self.eps)}. Positive, finite, rising radii are allowed")
        if self.max_iter < 0 or self.num_random_init < 0 or self.batch_size < 1 or self.relative_step_size <= 0:
            raise ValueError(
                f"max_iter {self.max_iter}, num_random_init {self.num_random_init}, batch_size {self.batch_size}, "
                f"relative_step_size {self.relative_step_size}. Allowed: max_iter and num_random_init at least 0, "
                "batch_size at least 1, relative_step_size above 0"
            )
        if self.estimator.clip_values is None or any(np.size(value) != 1 for value in self.estimator.clip_values):
            raise ValueError(
                f"estimator: clip_values {self.estimator.clip_values}. Two numbers are needed: the lowest and the "
                "highest value of a pixel"
            )
        # ART's default preprocessing subtracts 0 and divides by 1
        steps = self.estimator.preprocessing_operations
        if any(np.any(getattr(step, "mean", 1) != 0) or np.any(getattr(step, "std", 0) != 1) for step in steps):
            raise ValueError(
                "estimator: it has preprocessing, which this attack would ignore. Make it a part of the model"
            )
        if self.estimator.postprocessing_defences:
            raise ValueError(
                "estimator: it has postprocessing, which this attack would ignore. Make it a part of the model"
            )
