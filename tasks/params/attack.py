"""The section ``attack``."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from tasks.params.section import Count, CountOrOff, DottedPath, Pgd, Section, WithArguments, check_unit

SavedAttack = Literal["fgsm", "pgd"]
SAVED_ATTACKS: tuple[str, ...] = get_args(SavedAttack)
"""Attacks of this project whose adversarial images are saved, transferred and analysed."""


class ArtAttack(WithArguments):
    """An evasion attack of the Adversarial Robustness Toolbox; further keys are arguments of its class."""

    art: Annotated[str, Field(min_length=1)]
    """Name of a class of ``art.attacks.evasion``."""


class PluginAttack(WithArguments):
    """Your own attack; further keys are arguments of its function. See ``docs/how-to/own-defence.md``."""

    plugin: DottedPath
    """``package.module:function`` of a Python file in ``plugins/`` or of an installed package."""


class Attack(Section):
    """Attacks on the test images."""

    fixed_sensitivity: Annotated[float, Field(gt=0, lt=1)]
    """With two classes, the sensitivity on validation images at the operating point ``fixed_sensitivity``, at which the
    targets are compared."""
    norm: Literal["linf", "l2"]
    """Norm of the ball around an image."""
    eps: Annotated[tuple[Annotated[float, Field(gt=0, le=255)], ...], Field(min_length=1)]
    """Grid of radii in units of 1/255 of the value range, rising. For l2 the radius is
    eps / 255 * sqrt(number of pixels times channels), so that eps is the root-mean-square change of a value."""
    attacks: Annotated[tuple[SavedAttack | Literal["pgd_8_bit"] | ArtAttack | PluginAttack, ...], Field(min_length=1)]
    """Attacks at every eps of the grid, for the curves of accuracy against eps: ``fgsm``, ``pgd``;
    ``pgd_8_bit``, in steps of whole grey levels, whose images have 8 bits (linf; unchanged below eps 1); and rows
    ``{art: ClassName, ...arguments}`` for any evasion attack of ART that accepts a PyTorch classifier, and
    ``{plugin: package.module:function, ...arguments}`` for your own attack."""
    max_art_reference_images: CountOrOff
    """Attacked images, chosen like ``max_images``, on which FGSM and PGD are compared with those of ART; 0: all."""
    pgd: Pgd
    effort: Literal["quick", "standard", "exhaustive"]
    """Effort of the white-box suite and of the black-box attacks; a higher effort includes the results of a lower one.
    Published results need ``standard``. See ``docs/reference/checks.md`` and :mod:`tasks.attacks.effort`."""
    max_black_box_images: CountOrOff
    """Attacked images, chosen like ``max_images``, on which black-box attacks run without the white-box results, to
    measure their power; 0: all."""
    max_images: CountOrOff
    """Number of attacked test images; 0: all. They are stratified by class and spread over groups: within a class, one
    image of every group comes before a second one of any group."""
    max_validation_images: CountOrOff
    """Validation images, chosen like ``max_images``, that the sweep attacks; 0: all. A choice among targets uses their
    accuracy instead of that of test images."""
    batch_size: Count
    """Images of one forward pass."""
    saved_eps: tuple[float, ...]
    """The eps of the grid that are analysed; empty: all. Adversarial images of defences are saved for these alone,
    those of the undefended classifier for all eps, since they are transferred."""

    @model_validator(mode="after")
    def _lists_are_valid(self) -> Self:
        if list(self.eps) != sorted(set(self.eps)):
            raise ValueError(f"eps {list(self.eps)} must rise without repeats")
        check_unit(self.eps[-1])
        if len(set(self.saved_eps)) < len(self.saved_eps):
            raise ValueError(f"saved_eps {list(self.saved_eps)} must not repeat a value")
        if self.eight_bit_attacks and self.norm != "linf":
            raise ValueError(f"attacks: pgd_8_bit needs norm linf, not {self.norm}. Remove it, or set norm to linf")
        names = [row for row in self.attacks if isinstance(row, str)] + [*self.art_attacks, *self.plugin_attacks]
        if len(set(names)) < len(self.attacks):
            raise ValueError(f"attacks {names} must not repeat a name")
        if not self.saved_attacks:
            raise ValueError(f"attacks {names} must contain {' or '.join(SAVED_ATTACKS)}, whose images are transferred")
        if unknown := sorted(set(self.saved_eps) - set(self.eps)):
            raise ValueError(f"saved_eps {unknown} must be among eps {list(self.eps)}")
        return self

    @property
    def saved_attacks(self) -> tuple[str, ...]:
        """Those of ``SAVED_ATTACKS`` that ``attacks`` names."""
        return tuple(row for row in self.attacks if isinstance(row, str) and row in SAVED_ATTACKS)

    @property
    def eight_bit_attacks(self) -> tuple[str, ...]:
        """``pgd_8_bit``, if ``attacks`` names it. Its images count in the records and in the worst case."""
        return tuple(row for row in self.attacks if row == "pgd_8_bit")

    @property
    def art_attacks(self) -> dict[str, ArtAttack]:
        """Rows for attacks of ART, by the name of the attack in the records."""
        return {f"art_{row.art}": row for row in self.attacks if isinstance(row, ArtAttack)}

    @property
    def plugin_attacks(self) -> dict[str, PluginAttack]:
        """Rows for attacks of the user, by the name of the attack in the records."""
        rows = [row for row in self.attacks if isinstance(row, PluginAttack)]
        return {f"plugin_{row.plugin.rpartition(':')[2]}": row for row in rows}

    @property
    def analysed_eps(self) -> tuple[float, ...]:
        """The eps whose adversarial images are saved and analysed, rising."""
        return tuple(sorted(set(self.saved_eps))) or self.eps
