"""Differences between two versions of a data set, from their manifests.

The reference is the version that the report compares with. It is in git, as a CSV file: the columns of the manifest
that identify the images, and the numeric columns.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

IDENTITY_COLUMNS = ("path", "class", "sha256")
NUMERIC_COLUMNS = ("width", "height", "file_size", "mean", "std", "saturated_fraction")
"""Columns of the manifest whose distributions are compared; units as in :data:`tasks.dataset.manifest.COLUMNS`."""
QUANTILES = (0.05, 0.5, 0.95)
ALL_CLASSES = "all classes"
"""Value of the column ``class`` in rows about all images."""


def write_reference(manifest: "pd.DataFrame", path: Path) -> None:
    """Write a manifest as the reference."""
    columns = [*IDENTITY_COLUMNS, *NUMERIC_COLUMNS]
    manifest[columns].to_csv(path, index=False, lineterminator="\n")


def read_reference(path: Path) -> "pd.DataFrame":
    """Read the reference: one row for each image, with IDENTITY_COLUMNS and NUMERIC_COLUMNS.

    Raises:
        ValueError: a column is missing, or a numeric column contains text.
    """
    import pandas as pd

    try:
        # keep_default_na: NA is a valid name of a class
        table = pd.read_csv(
            path, dtype=dict.fromkeys(IDENTITY_COLUMNS, "str"), keep_default_na=False, float_precision="round_trip"
        )
        missing = [column for column in (*IDENTITY_COLUMNS, *NUMERIC_COLUMNS) if column not in table]
        if missing:
            raise ValueError(f"missing columns: {', '.join(missing)}")
        return table.astype(dict.fromkeys(NUMERIC_COLUMNS, float))
    except ValueError as error:
        raise ValueError(
            f"{path}: {error}. It must be a reference in the current format. Write it again with "
            "`python -m flows.data_changes --keep`."
        ) from error


def image_changes(before: "pd.DataFrame", after: "pd.DataFrame") -> "pd.DataFrame":
    """Count the added, removed and changed images of each class.

    Images are identified by their paths, and their contents by the hash of their pixels. A moved file counts as one
    removed and one added image. A file that was saved again with the same pixels counts as neither.

    Args:
        before: manifest of the earlier version.
        after: manifest of the later version.

    Returns:
        one row for each class of either version, sorted by name: ``class``, ``n_before``, ``n_after``, ``n_added``,
        ``n_removed``, ``n_changed`` (same path, different pixels).
    """
    both = before.merge(after, on=["path", "class"], how="outer", suffixes=("_before", "_after"))
    is_before, is_after = both["sha256_before"].notna(), both["sha256_after"].notna()
    changes = both[["class"]].assign(
        n_before=is_before,
        n_after=is_after,
        n_added=is_after & ~is_before,
        n_removed=is_before & ~is_after,
        n_changed=is_before & is_after & (both["sha256_before"] != both["sha256_after"]),
    )
    return changes.groupby("class", as_index=False).sum()


def distribution_drift(before: "pd.DataFrame", after: "pd.DataFrame") -> "pd.DataFrame":
    """Compare the distributions of the numeric columns, over all images and within each class of both versions.

    The two-sample Kolmogorov-Smirnov statistic is the largest difference between the two empirical distribution
    functions, in [0, 1]. Its p-value assumes independent images. Slices of one patient are not independent, so the
    p-value is only a hint.

    Args:
        before: manifest of the earlier version, with images.
        after: manifest of the later version, with images.

    Returns:
        one row for each column and class, with ``all classes`` for all images: ``column``, ``class``,
        ``q05_before`` ... ``q95_after`` (quantiles, in the unit of the column), ``ks_statistic``, ``p_value``.

    Raises:
        ValueError: a version has no images.
    """
    import pandas as pd

    for name, manifest in (("earlier", before), ("later", after)):
        if manifest.empty:
            raise ValueError(
                f"the manifest of the {name} version has no images. Both versions need at least one image. "
                "Compare other versions."
            )
    classes = [name for name in sorted(before["class"].unique()) if name in set(after["class"])]
    rows = []
    for column in NUMERIC_COLUMNS:
        for name in (ALL_CLASSES, *classes):
            earlier, later = (
                (table if name == ALL_CLASSES else table[table["class"] == name])[column].astype(float)
                for table in (before, after)
            )
            rows.append({"column": column, "class": name} | _compare_distributions(earlier, later))
    return pd.DataFrame(rows)


def _compare_distributions(before: "pd.Series[float]", after: "pd.Series[float]") -> dict[str, float]:
    """Quantiles of both samples, and the Kolmogorov-Smirnov test, by column name."""
    from scipy.stats import ks_2samp

    test = ks_2samp(before, after)
    quantiles = {
        f"q{round(level * 100):02d}_{version}": float(values.quantile(level))
        for version, values in (("before", before), ("after", after))
        for level in QUANTILES
    }
    return quantiles | {"ks_statistic": float(test.statistic), "p_value": float(test.pvalue)}
