"""The expectations that always run: their limits, and the columns that they are about."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.dataset.manifest import Manifest
from tasks.dataset.own_expectations import DatasetExpectation
from tasks.dataset.readers import FORMATS, MODES
from tasks.params import Intensity, Validate

if TYPE_CHECKING:
    import pandas as pd

MIN_STD = 0.02
"""Minimum standard deviation of the grey levels in [0, 1]; an image below it is blank."""
MAX_SATURATED_FRACTION = 0.8
"""Maximum fraction of black and white pixels of an image."""
MAX_NEAR_DUPLICATE_FRACTION = 0.1
"""Maximum fraction of images with a near-duplicate. Above it, a split of single images has much leakage."""
MAX_GROUP_FRACTION = 0.1
"""Maximum fraction of the images in one group. A larger group probably has images of more than one patient."""
MIN_USED_RANGE = 0.25
"""Minimum used fraction of the values of files with more than 8 bits; below it the images lose many grey levels."""


def images_table(manifest: Manifest, intensity: Intensity | None) -> "pd.DataFrame":
    """Table of all images, including unreadable ones: the manifest and further columns for the expectations.

    Args:
        manifest: of the data set.
        intensity: map of the values to [0, 1]; None: the full range of each file.
    """
    import pandas as pd

    table = manifest.table.copy()
    same_pixels = table.groupby("sha256", sort=False)
    near_duplicates = table.groupby("near_duplicate_group", sort=False)
    table["shorter_side"] = table[["width", "height"]].min(axis=1)
    table["longer_side"] = table[["width", "height"]].max(axis=1)
    table["n_classes_of_pixels"] = same_pixels["class"].transform("nunique")
    table["is_exact_duplicate"] = table["sha256"].duplicated().astype(int)
    table["has_near_duplicate"] = (near_duplicates["path"].transform("size") > 1).astype(int)
    table["n_classes_of_near_duplicates"] = near_duplicates["class"].transform("nunique")
    table["group_fraction"] = table.groupby("group", sort=False)["path"].transform("size") / max(len(table), 1)
    table["decodes"] = 1
    unreadable = pd.DataFrame({"path": list(manifest.unreadable), "decodes": 0})
    table = pd.concat([table, unreadable], ignore_index=True) if len(unreadable) else table
    return table.assign(**scale_columns(manifest.table, intensity))


def scale_columns(table: "pd.DataFrame", intensity: Intensity | None) -> dict[str, "pd.Series[Any]"]:
    """Columns that show whether one map to [0, 1] suits all images.

    Args:
        table: readable images, with the columns of the manifest.
        intensity: the map; None: the full range of each file.

    Returns:
        ``used_range``: fraction of the possible values between the smallest and the largest value of all images of a
        class with more than 8 bits, for those images; 1 for others, and if the map does not depend on the possible
        values.
        ``scale``: unit and depth of an image as far as they must be equal. ``is_common_scale``: 1 if the scale is
        that of the parameters, or of most images.
    """
    import pandas as pd

    kind = intensity.kind if intensity else "full_range"
    used = pd.Series(1.0, index=table.index)
    is_deep = (table["bits"] > 8) & (table["possible_values"] > 0)
    if kind == "full_range" and not (intensity and intensity.bits) and is_deep.any():
        # by class: otherwise bright images of one class would hide that another class is dark
        deep = table[is_deep].groupby("class")
        span = deep["max_value"].transform("max") - deep["min_value"].transform("min")
        used[is_deep] = span / deep["possible_values"].transform("max")
    depth = table["bits"].map(lambda bits: "8 bits" if bits == 8 else "other than 8 bits")
    if kind == "full_range":
        scale = table["unit"]
    elif kind == "file_window":
        scale = pd.Series("window of each file", index=table.index)
    else:
        scale = table["unit"].where(table["format"] == "DICOM", depth)
    is_dicom = table["format"] == "DICOM"
    expected = intensity.unit if intensity and kind in ("window", "percentiles") and is_dicom.any() else None
    if expected is None and len(table):
        expected = scale.mode()[0]
    return {"used_range": used, "scale": scale, "is_common_scale": (scale == expected).astype(int)}


def classes_table(manifest: Manifest, classes: tuple[str, ...]) -> "pd.DataFrame":
    """Table of all classes: number of images, and number of images of the largest class divided by it."""
    import pandas as pd

    n_images = [int((manifest.table["class"] == name).sum()) for name in classes]
    imbalance = [max(n_images) / max(n, 1) for n in n_images]
    return pd.DataFrame({"class": list(classes), "n_images": n_images, "imbalance": imbalance})


def fixed_expectations(
    images: "pd.DataFrame", classes: "pd.DataFrame", settings: Validate
) -> Iterator[DatasetExpectation]:
    """The expectations that always run, in the order of the report.

    Args:
        images: of :func:`images_table`.
        classes: of :func:`classes_table`.
        settings: limits.
    """
    between, mean_between, in_set = (
        "ExpectColumnValuesToBeBetween",
        "ExpectColumnMeanToBeBetween",
        "ExpectColumnValuesToBeInSet",
    )
    readable = images[images["decodes"] == 1]

    def values(column: str) -> str:
        return ", ".join(sorted(readable[column].unique()))

    def value_range(table: "pd.DataFrame", column: str, format_: str, unit: str = "") -> str:
        if table.empty:
            return "no images"
        return f"{table[column].min():{format_}} to {table[column].max():{format_}}{unit}"

    def used_range() -> str:
        if readable.empty:
            return "no images of the values"
        darkest = readable.sort_values("used_range", kind="stable").iloc[0]
        where = f" in the class {darkest['class']}" if darkest["used_range"] < MIN_USED_RANGE else ""
        return f"{darkest['used_range']:.1%} of the values{where}"

    fraction = readable[["is_exact_duplicate", "has_near_duplicate"]].mean().fillna(0)
    # fmt: off
    yield DatasetExpectation(
        "decodes", "Every image decodes", "error", "images",
        f"{len(readable)} of {len(images)}", "all", in_set, "decodes", {"value_set": [1]},
    )
    yield DatasetExpectation(
        "known_format", "Every image has a supported format", "error", "images",
        values("format"), ", ".join(FORMATS), in_set, "format", {"value_set": list(FORMATS)},
    )
    yield DatasetExpectation(
        "known_mode", "Every image has a supported pixel mode", "error", "images",
        values("mode"), "a mode of Pillow with 1, 8 or 16 bits, or real numbers",
        in_set, "mode", {"value_set": list(MODES)},
    )
    yield DatasetExpectation(
        "range_used", "The images use the range of their bits", "error", "images",
        used_range(),
        f"at least {MIN_USED_RANGE:.0%}. For a scan with fewer bits than its file set prepare.intensity.bits, such as "
        "12, or set prepare.intensity.kind to window or percentiles",
        between, "used_range", {"min_value": MIN_USED_RANGE},
    )
    yield DatasetExpectation(
        "one_scale", "The values of all images have one unit and depth", "error", "images",
        values("scale"), "one. Set prepare.intensity.unit to the unit of the files, convert the other files, or set "
        "prepare.intensity.kind to file_window",
        between, "is_common_scale", {"min_value": 1},
    )
    yield DatasetExpectation(
        "shorter_side", "No image is too small", "error", "images",
        value_range(readable, "shorter_side", ".0f", " pixels"),
        f"at least {settings.min_side} pixels (validate.min_side)",
        between, "shorter_side", {"min_value": settings.min_side},
    )
    yield DatasetExpectation(
        "longer_side", "No image is too large", "error", "images",
        value_range(readable, "longer_side", ".0f", " pixels"),
        f"at most {settings.max_side} pixels (validate.max_side)",
        between, "longer_side", {"max_value": settings.max_side},
    )
    yield DatasetExpectation(
        "class_present", "Every class has images", "error", "classes",
        value_range(classes, "n_images", "d"), "at least 1", between, "n_images", {"min_value": 1},
    )
    yield DatasetExpectation(
        "class_size", "Every class has enough images", "error", "classes",
        value_range(classes, "n_images", "d"),
        f"at least {settings.min_images_per_class} (validate.min_images_per_class)",
        between, "n_images", {"min_value": settings.min_images_per_class},
    )
    yield DatasetExpectation(
        "class_balance", "The largest class is not much larger than the smallest", "error", "classes",
        f"{classes['imbalance'].max():.2f} times",
        f"at most {settings.max_imbalance_ratio:g} times (validate.max_imbalance_ratio)",
        between, "imbalance", {"max_value": settings.max_imbalance_ratio},
    )
    yield DatasetExpectation(
        "pixels_in_one_class", "Identical pixels are in one class only", "error", "images",
        f"{(readable['n_classes_of_pixels'] > 1).sum()} images in several classes", "none",
        between, "n_classes_of_pixels", {"max_value": 1},
    )
    yield DatasetExpectation(
        "exact_duplicates", "Few images have the pixels of an earlier image", "error", "images",
        f"{fraction['is_exact_duplicate']:.2%}",
        f"at most {settings.max_exact_duplicate_fraction:.2%} (validate.max_exact_duplicate_fraction)",
        mean_between, "is_exact_duplicate", {"max_value": settings.max_exact_duplicate_fraction},
    )
    yield DatasetExpectation(
        "not_blank", "No image is blank", "error", "images",
        f"standard deviation {value_range(readable, 'std', '.3f')}", f"at least {MIN_STD}",
        between, "std", {"min_value": MIN_STD},
    )
    yield DatasetExpectation(
        "not_saturated", "No image has mostly black and white pixels", "warning", "images",
        f"fraction of black and white pixels {value_range(readable, 'saturated_fraction', '.2f')}",
        f"at most {MAX_SATURATED_FRACTION}", between, "saturated_fraction", {"max_value": MAX_SATURATED_FRACTION},
    )
    yield DatasetExpectation(
        "near_duplicates", "Few images have a near-duplicate", "warning", "images",
        f"{fraction['has_near_duplicate']:.2%}", f"at most {MAX_NEAR_DUPLICATE_FRACTION:.2%}",
        mean_between, "has_near_duplicate", {"max_value": MAX_NEAR_DUPLICATE_FRACTION},
    )
    yield DatasetExpectation(
        "near_duplicates_in_one_class", "Near-duplicates are in one class only", "warning", "images",
        f"{(readable['n_classes_of_near_duplicates'] > 1).sum()} images in several classes", "none",
        between, "n_classes_of_near_duplicates", {"max_value": 1},
    )
    yield DatasetExpectation(
        "group_size", "No group is too large to be one patient", "warning", "images",
        f"largest {readable['group_fraction'].max() if len(readable) else 0:.2%} of images",
        f"at most {MAX_GROUP_FRACTION:.0%}", between, "group_fraction", {"max_value": MAX_GROUP_FRACTION},
    )
    # fmt: on
