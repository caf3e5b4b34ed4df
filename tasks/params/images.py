"""Sections about files of images and their table."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.params.section import Count, Section

SUBGROUP = "subgroup_"
"""Prefix of the columns with subgroups in ``table.parquet`` and ``split.parquet``."""
Text = Annotated[str, Field(min_length=1)]
Keyword = Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$")]


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
    """Column with ``train``, ``validation`` or ``test``, which is kept exactly; empty: the split is drawn."""
    subgroups: tuple[Text, ...]
    """Columns whose values divide the images into subgroups, such as sex, age band, scanner or site."""
    dicom_tags: dict[Text, Keyword]
    """Columns that are filled from DICOM tags: ``{patient: PatientID, sex: PatientSex}``. No other tag is read."""
    salt_file: Text
    """File with the salt of the hashed ids. It is created if it does not exist, and must not be published."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        columns = [self.path, self.label, *filter(None, (self.patient, self.split)), *self.subgroups]
        if len(set(columns)) < len(columns):
            raise ValueError(f"the columns {columns} of table must differ")
        if unused := [column for column in self.dicom_tags if column not in columns]:
            raise ValueError(
                f"dicom_tags fills the columns {unused}, which nothing uses. Name them in patient, split or subgroups"
            )
        return self


class OwnExpectation(Section):
    """An expectation of your own about the data set."""

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
    """Significant bits for ``full_range``, if the files do not tell: 12 for a 12-bit scan in a 16-bit file; 0: as the
    files say."""
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
