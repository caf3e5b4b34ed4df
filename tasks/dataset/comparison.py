"""What changed between two versions of a data set, from their manifests.

The reference is the version in git that the report compares with: the columns of a manifest that tell images apart and
say what they are like, as text that a diff can show.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("width", "height", "bytes", "mean", "std", "saturated")
"""Columns of the manifest whose distributions are compared; units as in :data:`tasks.dataset.manifest.COLUMNS`."""
QUANTILES = (0.05, 0.5, 0.95)
ALL = "all classes"
TEXTS = ("path", "class", "sha256")


def write_reference(manifest: "pd.DataFrame", path: Path) -> None:
    """Make a manifest the reference."""
    columns = [*TEXTS, *NUMBERS]
    manifest[columns].to_csv(path, index=False, lineterminator="\n")


def read_reference(path: Path) -> "pd.DataFrame":
    """The reference: ``path``, ``class``, ``sha256`` and :data:`NUMBERS` of each image.

    Raises:
        ValueError: columns are missing, or a number is none.
    """
    import pandas as pd

    try:
        # a class may be called NA
        table = pd.read_csv(
            path, dtype=dict.fromkeys(TEXTS, "str"), keep_default_na=False, float_precision="round_trip"
        )
        missing = [column for column in (*TEXTS, *NUMBERS) if column not in table]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        return table.astype(dict.fromkeys(NUMBERS, float))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write it anew by `python -m flows.data_changes --keep`") from error


def image_changes(before: "pd.DataFrame", after: "pd.DataFrame") -> "pd.DataFrame":
    """Count images by class.

    Images are told apart by their paths, their contents by the hash of their pixels: a file that was only moved is one
    removed and one added, a file that was written anew with the same pixels is neither.

    Args:
        before: manifest of the earlier version.
        after: manifest of the later version.

    Returns:
        one row a class of either version, in order of their names: ``class``, ``n_before``, ``n_after``, ``n_added``,
        ``n_removed``, ``n_changed`` (same path, other pixels).
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


def drift(before: "pd.DataFrame", after: "pd.DataFrame") -> "pd.DataFrame":
    """Compare the distributions of the manifest's numbers, over all images and within each class of both versions.

    The distance is Kolmogorov and Smirnov's: the largest difference between the two shares of images up to a value, in
    [0, 1]; its p-value holds for independent images, which slices of one patient are not, so it is a hint.

    Args:
        before: manifest of the earlier version, with images.
        after: manifest of the later version, with images.

    Returns:
        one row a column and class (``all classes`` over all images): ``column``, ``class``,
        ``q05_before`` ... ``q95_after`` (quantiles, in the column's unit), ``distance``, ``p_value``.

    Raises:
        ValueError: a version without images.
    """
    import pandas as pd
    from scipy.stats import ks_2samp

    if before.empty or after.empty:
        raise ValueError("a version without images has no distribution to compare")
    classes = [name for name in sorted(before["class"].unique()) if name in set(after["class"])]
    rows = []
    for column in NUMBERS:
        for name in (ALL, *classes):
            earlier, later = (
                (table if name == ALL else table[table["class"] == name])[column].astype(float)
                for table in (before, after)
            )
            test = ks_2samp(earlier, later)
            quantiles = {
                f"q{round(share * 100):02d}_{when}": float(values.quantile(share))
                for when, values in (("before", earlier), ("after", later))
                for share in QUANTILES
            }
            rows.append(
                {"column": column, "class": name}
                | quantiles
                | {"distance": float(test.statistic), "p_value": float(test.pvalue)}
            )
    return pd.DataFrame(rows)
