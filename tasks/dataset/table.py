"""Labels, patients, split and subgroups of images, from a table or from DICOM tags.

Ids of patients are replaced by salted hashes before anything is written or logged. Messages name files, never ids.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tasks.dataset.folder import format_paths, normalized_name
from tasks.dataset.prepared import SPLITS
from tasks.dataset.readers import ImageError, is_dicom, split_name
from tasks.dataset.readers.dicom_file import read_tags
from tasks.params import SUBGROUP, Table

if TYPE_CHECKING:
    import pandas as pd

GIVEN = "given "
"""Prefix of the further columns of a table, so that one of them can be called ``path`` or ``class``."""
UNKNOWN = "unknown"
"""Subgroup of an image whose value is empty."""
HASH_DIGITS = 16
"""Hexadecimal digits of a hashed id: with 64 bits, two equal hashes of a million ids are very improbable."""
N_EXAMPLES = 5
"""Maximum number of rows in a message."""


def read_table(folder: Path, settings: Table, classes: Sequence[str]) -> "pd.DataFrame":
    """Read the table of a folder of images.

    Args:
        folder: of the images; the table lies in it.
        settings: section ``acquire.table``; ``file`` is not empty.
        classes: allowed labels.

    Returns:
        One row for each image: ``path`` (relative to the folder, with slashes), ``class``, and the further columns of
        the settings that the table has, as ``given <column>``, all as text.

    Raises:
        ValueError: the table cannot be read, lacks a column, or has rows that cannot be used; the message names the
            files, or the rows if there are no such files. With a wrong header any cell could be the id of a patient.
    """
    import pandas as pd

    table = read_columns(_below(folder, settings.file), f"acquire.table.file: {settings.file!r}")
    wanted = [settings.path, settings.label, *_further_columns(settings)]
    if missing := [column for column in wanted if column not in table and column not in settings.dicom_tags]:
        raise ValueError(
            f"acquire.table.file: {settings.file!r} has no column {missing}. Its first row must have the names of its "
            f"{len(table.columns)} columns. Correct the row, or the names in acquire.table."
        )
    paths = [PurePosixPath(path.replace("\\", "/")).as_posix() for path in table[settings.path]]
    further = table[[column for column in _further_columns(settings) if column in table]]
    table = pd.DataFrame({"path": paths, "class": table[settings.label]}).join(further.add_prefix(GIVEN))
    outside = [PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts for path in table["path"]]
    _refuse_rows(outside, settings, "paths outside the folder")
    _refuse_rows([not (folder / path).is_file() for path in table["path"]], settings, "files that do not exist")
    _refuse(table["path"].duplicated(keep=False), table, settings, "rows with the same path")
    is_unknown = ~table["class"].isin(classes)
    _refuse(is_unknown, table, settings, f"images whose label is not one of acquire.classes {list(classes)}")
    if absent := [name for name in classes if name not in set(table["class"])]:
        raise ValueError(
            f"acquire.table.file: {settings.file!r} has no image of the classes {absent}. Every class needs images. "
            "Add rows, or remove the classes from acquire.classes."
        )
    targets = pd.Series(
        [normalized_name(target_path(path, name)) for path, name in zip(table["path"], table["class"], strict=True)]
    )
    by_target = targets.sort_values(kind="stable")
    _refuse(
        by_target.duplicated(keep=False),
        table.loc[by_target.index],
        settings,
        "rows whose copies would have the same name in the folder of their class, apart from case and accents",
    )
    folders = {str(parent) for target in targets for parent in PurePosixPath(target).parents}
    _refuse(targets.isin(folders), table, settings, "rows whose copies would have the name of a folder of other copies")
    return table


def read_columns(path: Path, named: str) -> "pd.DataFrame":
    """All columns of a CSV or Parquet file as text; an empty cell is the empty text.

    Args:
        path: of the file.
        named: the file in a message, with the key or the option that names it.

    Raises:
        ValueError: it cannot be read, or two columns have the same name.
    """
    import pandas as pd
    from pyarrow import ArrowException, parquet

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            # without pandas' metadata, of which damaged parts raise any error
            stored = parquet.read_table(path)
            # whole numbers beside empty cells would become floating point: 1 would be 1.0, and large numbers equal
            table: pd.DataFrame = stored.to_pandas(ignore_metadata=True, integer_object_nulls=True)
            return table.astype(object).where(table.notna(), "").astype(str)
        # pandas would rename the second of two equal names, and take the first cells of rows that are too long as names
        # of the rows
        lines = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True
        )
    except (ValueError, OSError, ArrowException) as error:
        raise ValueError(
            f"{named} cannot be read ({str(error).strip()}). It must be a CSV file in UTF-8 with commas and a header "
            "that has a name for every cell of a row, or a Parquet file. Correct it, or save it again."
        ) from None
    header = lines.iloc[0]
    if repeated := [i + 1 for i in header.index[header.duplicated(keep=False) & (header != "")]]:
        raise ValueError(
            f"{named} has several columns of one name: columns {repeated}. The first row must have the names of the "
            "columns, and they must differ. Rename or remove columns."
        )
    return lines[1:].set_axis(header.tolist(), axis=1).reset_index(drop=True)


def target_path(path: str, name: str) -> str:
    """Path of an image below ``images/``: in the folder of its class, which is not repeated.

    Args:
        path: relative to the source folder.
        name: class of the image.
    """
    first, _, rest = path.partition("/")
    return path if first == name and rest else f"{name}/{path}"


def describe_images(
    table: "pd.DataFrame", sources: Mapping[str, Path], settings: Table, salt_file: Path
) -> "pd.DataFrame":
    """Complete the table of the copied images: columns from DICOM tags, and hashed ids.

    Args:
        table: one row for each copied image: ``path`` below ``images/`` and, if there is a table, the further columns
            of :func:`read_table`.
        sources: file of each path, for the tags.
        settings: section ``acquire.table``.
        salt_file: file with the salt.

    Returns:
        ``path``, ``patient`` (hashed), ``split`` and ``subgroup_<name>``, as far as the settings name them.

    Raises:
        ValueError: an id, a tag or a split is missing, or a patient has images in two splits; the message names the
            files.
    """
    import pandas as pd

    table = table.reset_index(drop=True)
    tags = {column: keyword for column, keyword in settings.dicom_tags.items() if GIVEN + column not in table}
    if tags:
        _refuse([not is_dicom(sources[path]) for path in table["path"]], table, settings, "no DICOM files")
        try:
            found = [read_tags(sources[path], tags.values()) for path in table["path"]]
        except ImageError as error:
            raise ValueError(f"acquire.table.dicom_tags: {error}") from None
        for column, keyword in tags.items():
            table[GIVEN + column] = [values[keyword] for values in found]
    described = pd.DataFrame({"path": table["path"]})
    if settings.patient:
        ids = table[GIVEN + settings.patient].str.strip()
        _refuse(ids == "", table, settings, "images without a patient id")
        described["patient"] = hash_ids(ids, read_salt(salt_file))
    if settings.split:
        splits = table[GIVEN + settings.split]
        _refuse(~splits.isin(SPLITS), table, settings, f"images whose split is not one of {SPLITS}")
        described["split"] = splits
        if settings.patient:
            n_splits = described.groupby("patient")["split"].transform("nunique")
            _refuse(n_splits > 1, table, settings, "images of patients with images in several splits")
    for name in settings.subgroups:
        # a line break would end the row of a table
        values = table[GIVEN + name].str.split().str.join(" ")
        described[SUBGROUP + name] = values.where(values != "", UNKNOWN)
    return described


def join_table(table: "pd.DataFrame", described: "pd.DataFrame") -> "pd.DataFrame":
    """Add the columns of ``table.parquet`` to a table of images. With patient ids, the groups become the patients.

    Args:
        table: one row for each image; columns ``path`` and ``group``.
        described: from :func:`describe_images`; one row for each file.

    Returns:
        The same rows with ``patient``, ``split`` and subgroups; with patient ids, ``inferred_group`` has the groups
        that were inferred from the images, and ``group`` numbers the patients in the order of the images.
    """
    files = [split_name(Path(path))[0].as_posix() for path in table["path"]]
    added = described.set_index("path").loc[files].reset_index(drop=True)
    joined = table.reset_index(drop=True).join(added)
    if "patient" in added:
        joined["inferred_group"] = joined["group"]
        joined["group"] = joined["patient"].factorize()[0]
    return joined


def hash_ids(ids: "pd.Series[str]", salt: bytes) -> "pd.Series[str]":
    """Keyed hash of each id (HMAC-SHA-256, RFC 2104), as hexadecimal digits. Equal ids give equal hashes.

    Ids that differ only in the encoding of accents are equal (Unicode normalization form C).
    """
    normalized = ids.str.normalize("NFC")
    return normalized.map(lambda value: hmac.new(salt, value.encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS])


def read_salt(file: Path) -> bytes:
    """Content of the file with the salt. A file with a random salt is created if there is none."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w") as created:
            created.write(secrets.token_hex(32) + "\n")
    salt = file.read_bytes().strip()
    if len(salt) < HASH_DIGITS:
        raise ValueError(
            f"acquire.table.salt_file: {file} holds {len(salt)} bytes. A salt needs at least {HASH_DIGITS}, otherwise "
            "ids can be guessed. Remove the file; a new one is created."
        )
    return salt


def _further_columns(settings: Table) -> list[str]:
    return [*filter(None, (settings.patient, settings.split)), *settings.subgroups]


def _below(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"acquire.table.file: {name!r} is no file below {str(folder)!r}. The table must lie in the folder of the "
            "images, so that DVC detects its changes. Move it there, or correct the name."
        )
    return path


def _refuse_rows(is_bad: Sequence[bool], settings: Table, problem: str) -> None:
    """Raise an error that gives the numbers of some rows, if there are any."""
    if bad := [str(number) for number, bad in enumerate(is_bad, start=1) if bad]:
        numbers = ", ".join(bad[:N_EXAMPLES]) + (f", ... ({len(bad)} in all)" if len(bad) > N_EXAMPLES else "")
        raise ValueError(
            f"acquire.table.file: {settings.file!r} has {problem}: row {numbers} below the header. The column "
            f"{settings.path!r} must have paths below the folder of the images. Correct or remove the rows."
        )


def _refuse(is_bad: "Sequence[bool] | pd.Series[bool]", table: "pd.DataFrame", settings: Table, problem: str) -> None:
    """Raise an error that names the files of some rows, if there are any."""
    if bad := [Path(path) for path in table["path"][list(is_bad)]]:
        named = f"acquire.table.file: {settings.file!r}" if settings.file else "acquire.table.dicom_tags: the source"
        raise ValueError(f"{named} has {problem}: {format_paths(bad, Path())}. Correct or remove them.")
