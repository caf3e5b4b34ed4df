"""The sections ``acquire``, ``validate`` and ``prepare``: images, their table, requirements and split."""

import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from tasks.params.names import name_problem
from tasks.params.section import Count, CountOrOff, Fraction, OutsideData, Positive, Section, Share, not_bool

SUBGROUP = "subgroup_"
"""Prefix of the columns with subgroups in ``table.parquet`` and ``split.parquet``."""
Text = Annotated[str, Field(min_length=1)]
Keyword = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$")]
MIN_SIDE, MAX_SIDE = 32, 1024
"""Limits of height and width of prepared images, in pixels."""


def height_and_width(value: Any) -> tuple[int, int]:
    """Return height and width from one number or from both.

    Raises:
        ValueError: the value is neither, or a number is outside the limits.
    """
    sides = value if isinstance(value, list | tuple) else (value, value)
    if len(sides) != 2 or not all(type(side) is int and MIN_SIDE <= side <= MAX_SIDE for side in sides):
        raise ValueError(
            f"must be a whole number from {MIN_SIDE} to {MAX_SIDE} for square images, or two of them: [height, width]"
        )
    return sides[0], sides[1]


def size_as_given(size: tuple[int, int]) -> int | list[int]:
    """Return the height of a square, or ``[height, width]``: the inverse of :func:`height_and_width`."""
    return size[0] if size[0] == size[1] else list(size)


ImageSize = Annotated[tuple[int, int], BeforeValidator(height_and_width), PlainSerializer(size_as_given)]
"""Height and width of the prepared images; one number stands for a square."""
Channels = Annotated[Literal[1, 3], BeforeValidator(not_bool)]
"""Channels of the prepared images: grey, or red, green and blue."""
Resize = Literal["stretch", "pad", "crop"]
"""Treatment of images of another aspect ratio than that of the prepared images."""


class Volumes(Section):
    """Files with several images. The image number n of a file is called ``<file>#<n>``."""

    frames: Literal["refuse", "first", "all"]
    """Several frames of a DICOM file, pages of a TIFF, or volumes of a NIfTI file: ``refuse`` the file, or take the
    ``first`` or ``all``."""
    axis: Literal["axial", "coronal", "sagittal"]
    """Direction in which NIfTI volumes are cut into slices, in canonical orientation."""
    every: Count
    """Distance between two slices or frames that are taken; 1: all."""


class Table(Section):
    """Labels, patients, split and subgroups of the images."""

    file: str
    """CSV or Parquet file with one row for each image; a path below the folder of the images. Empty: the subfolders
    are the classes."""
    path: Text
    """Column of the paths, relative to the folder of the images."""
    label: Text
    """Column of the class."""
    patient: str
    """Column of the patient ids, which are hashed before they are written; empty: there are none."""
    split: str
    """Column with ``train``, ``validation`` or ``test``, which gives the split; empty: the split is drawn."""
    subgroups: tuple[Text, ...]
    """Columns whose values divide the images into subgroups, such as sex, age band, scanner or site."""
    dicom_tags: dict[Text, Keyword]
    """Columns that are filled from DICOM tags: ``{patient: PatientID, sex: PatientSex}``. No other tag is read."""
    salt_file: OutsideData
    """File with the salt of the hashed ids. It is created if it does not exist, and must not be published. It lies
    outside ``data/``."""

    @field_validator("subgroups")
    @classmethod
    def _subgroups_have_valid_names(cls, subgroups: tuple[str, ...]) -> tuple[str, ...]:
        for name in subgroups:
            if problem := name_problem(name):
                raise ValueError(f"the column {name!r} {problem}")
        return subgroups

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = [self.path, self.label, *filter(None, (self.patient, self.split)), *self.subgroups]
        if len(set(columns)) < len(columns):
            raise ValueError(f"the columns {columns} of table must differ")
        if unused := [column for column in self.dicom_tags if column not in columns]:
            raise ValueError(
                f"dicom_tags fills the columns {unused}, which are not used. Name them in patient, split or subgroups"
            )
        return self


class OwnExpectation(Section):
    """Your own expectation about the data set."""

    name: Annotated[str, Field(pattern=r"^[a-z]\w*$")]
    """Name in ``validation.json``, in the report and in messages."""
    description: Text
    """Sentence that is true if the expectation is met."""
    severity: Literal["error", "warning"]
    """``error``: the pipeline stops if it fails."""
    table: Literal["images", "classes"]
    """``images``: one row for each image, with the columns of ``manifest.parquet``. ``classes``: one row for each
    class, with ``class``, ``n_images`` and ``imbalance`` (largest class / this class)."""
    type: Annotated[str, Field(pattern=r"^Expect\w+$")]
    """Class of Great Expectations, such as ``ExpectColumnValuesToBeBetween``."""
    arguments: dict[Text, Any]
    """Arguments of the class, such as ``{column: width, min_value: 512}``."""


class Intensity(Section):
    """Map from the values of a file to [0, 1]."""

    kind: Literal["full_range", "window", "percentiles", "file_window"]
    """``full_range``: the range of the significant bits of each file. ``window``: one range for all files.
    ``percentiles``: the range between two percentiles of the training images. ``file_window``: the window or table
    (VOI LUT) of each DICOM file."""
    bits: Annotated[int, Field(ge=0, le=16)]
    """Significant bits for ``full_range``, if the files do not declare them: 12 for a 12-bit scan in a 16-bit file; 0:
    as the files declare."""
    window: tuple[float, float]
    """Centre and width for ``window``, in ``unit``."""
    percentiles: tuple[float, float]
    """Lower and upper percentile for ``percentiles``."""
    unit: Literal["HU", "grey level"]
    """Unit of the values for ``window`` and ``percentiles``. DICOM files must agree with it."""

    @model_validator(mode="after")
    def _ranges_are_positive(self) -> Self:
        if not self.window[1] > 0:
            raise ValueError(f"the width of window {list(self.window)} must be above 0. Write [centre, width]")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles {list(self.percentiles)} must rise within 0 to 100. Write [lower, upper]")
        return self


class Phantom(Section):
    """Number of phantoms."""

    n_patients: Annotated[int, Field(ge=2)]
    """Patients over all classes."""
    n_slices_per_patient: Count
    """Adjacent slices of each patient."""


class Acquire(Section):
    """Source and classes of the images."""

    source: Literal["phantom", "folder", "kaggle"]
    """Source of the images; ``phantom``: CT-like images drawn by the computer, not scans."""
    folder: OutsideData
    """Folder with one subfolder for each class, outside ``data/``; used if ``source`` is ``folder``."""
    kaggle_dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
    """``owner/name`` of a Kaggle data set; used if ``source`` is ``kaggle``."""
    classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)]
    """Names of the classes and of their subfolders; the order determines the label numbers."""
    positive_class: str
    """Class of precision, recall and F1."""
    phantom: Phantom
    volumes: Volumes
    table: Table

    @field_validator("classes")
    @classmethod
    def _distinct_folder_names(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        # some file systems treat such names as equal
        if len({unicodedata.normalize("NFC", name).casefold() for name in classes}) < len(classes):
            raise ValueError(
                f"class names {list(classes)} must differ by more than upper and lower case and the encoding of accents"
            )
        for name in classes:
            if name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{name!r} is not a valid folder name")
            # the tables of all steps contain the names of classes
            if problem := name_problem(name):
                raise ValueError(f"{name!r} {problem}")
        return classes

    @model_validator(mode="after")
    def _positive_class_is_a_class(self) -> Self:
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!r} must be one of classes {list(self.classes)}")
        return self


class Validate(Section):
    """Requirements on the data set."""

    min_side: Count
    """Minimum length of the shorter side, in pixels."""
    max_side: Count
    """Maximum length of the longer side, in pixels."""
    max_megapixels: Positive
    """Maximum number of pixels, in millions; a larger image is rejected before it is decoded."""
    min_images_per_class: Count
    """Minimum number of images of every class."""
    max_imbalance_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    """Maximum ratio of the numbers of images of the largest and of the smallest class."""
    max_exact_duplicate_fraction: Share
    """Maximum fraction of images whose pixels are equal to those of an earlier image."""
    near_duplicate_correlation: Fraction
    """Pearson correlation of 32 x 32 thumbnails at and above which two images are near-duplicates."""
    same_group_correlation: Fraction
    """Pearson correlation of thumbnails at and above which two consecutive images are in one inferred group."""
    expectations: tuple[OwnExpectation, ...]
    """Your own expectations, in addition to those that always run."""

    @model_validator(mode="after")
    def _sides_ordered(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} must not be above max_side {self.max_side}")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [expectation.name for expectation in self.expectations]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of expectations must differ: {', '.join(names)}")
        return self


class Split(Section):
    """Split into training, validation and test images."""

    strategy: Literal["auto", "stratified", "grouped"]
    """``stratified`` draws single images; ``grouped`` keeps all images of a group (a patient, if ids are given) in one
    split. ``auto``: ``grouped`` with patient ids and for a folder of your own, otherwise ``stratified``. A split in
    ``acquire.table`` is kept."""
    test_fraction: Fraction
    """Fraction of all images; unused with ``n_folds``."""
    validation_fraction: Fraction
    """Fraction of the images that are not test images."""
    n_folds: CountOrOff
    """Number of folds for cross-validation; 0: none. The test images are those of one fold, and every image is in
    exactly one fold. ``python -m flows.seeds`` runs all folds."""
    fold: CountOrOff
    """Number of the fold with the test images, from 0."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.n_folds == 1:
            raise ValueError("n_folds 1 leaves no training images. Set at least 2, or 0 for a single split")
        if self.fold >= max(self.n_folds, 1):
            raise ValueError(f"fold {self.fold} must be below n_folds {self.n_folds}, since folds are counted from 0")
        return self


class Prepare(Section):
    """Size, channels, intensity and split of the images."""

    image_size: ImageSize
    """Height and width in pixels, from 32 to 1024: one number for square images, or ``[height, width]``."""
    resize: Resize
    """``stretch`` changes the aspect ratio of an image to that of ``image_size``. ``pad`` keeps it, and fills the rest
    at both sides with 0 (black; the lowest value of the intensity range). ``crop`` keeps it, and removes all pixels
    beyond ``image_size`` from both sides."""
    crop_ratio: Annotated[float, Field(ge=1, le=4, allow_inf_nan=False)]
    """Size from which ``crop`` cuts, divided by ``image_size``. 1 cuts from the smallest image that covers it;
    torchvision's usual 256 for 224 is 1.142857."""
    channels: Channels
    """``1``: grey, colours become luma. ``3``: red, green and blue, grey files get three equal channels."""
    intensity: Intensity
    split: Split
