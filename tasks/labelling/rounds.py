"""Labelling rounds as folders: copies of the images, and a CSV file in which a person writes their classes.

A round is complete when every line of its ``query.csv`` has a class. The folders contain the complete state. Work can
continue on another machine with a copy of them.
"""

import csv
import filecmp
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from tasks.core.durable import rename_durably
from tasks.dataset.folder import IGNORED_NAMES, format_paths
from tasks.dataset.readers import SUFFIXES
from tasks.params.names import FORMULA

COLUMNS = ("number", "file", "class", "prediction", "confidence", "score")
SKIPPED = "-"
"""Entry in the column ``class`` for an image that cannot be labelled."""
COLLECTED = "labelled"
"""Folder of the labelled images, in the folder of the rounds."""
OF_FILE_MANAGERS = {*IGNORED_NAMES, ".ds_store"}
"""Files, in lower case, that appear in a folder when a person opens it."""


class LabelError(ValueError):
    """An entry of a ``query.csv`` is not valid; the message names the file and the line."""


@dataclass(frozen=True)
class LabellingRound:
    """Images that a person labels together."""

    folder: Path
    files: list[str]
    """Paths below the pool, the highest score first."""
    classes: list[str]
    """Class of each image; empty if it has none yet, ``SKIPPED`` if it cannot be labelled."""

    @property
    def table(self) -> Path:
        """The CSV file in which the person writes the classes."""
        return self.folder / "query.csv"

    @property
    def is_complete(self) -> bool:
        """True if every image has a class or is skipped."""
        return all(self.classes)

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """Path and class of the images that have a class."""
        pairs = zip(self.files, self.classes, strict=True)
        return [(file, name) for file, name in pairs if name and name != SKIPPED]

    def image(self, position: int) -> Path:
        """Path of the copy of an image; a DICOM file without suffix gets one, so that programs open it."""
        name = self.files[position]
        n_characters = next((len(suffix) for suffix in SUFFIXES if name.lower().endswith(suffix)), 0)
        suffix = name[-n_characters:] if n_characters else ".dcm"
        return self.folder / "images" / f"{position + 1:03d}{suffix}"


def read_rounds(folder: Path, classes: tuple[str, ...]) -> list[LabellingRound]:
    """Return the rounds of a folder in order.

    Raises:
        LabelError: a class is unknown, a file is not below the pool or is in two lines, or lines were removed, added or
            moved.
    """
    rounds = [_read_round(path.parent, classes) for path in sorted(folder.glob("round-[0-9][0-9]/query.csv"))]
    places: dict[str, str] = {}
    for labelling_round in rounds:
        for position, file in enumerate(labelling_round.files):
            place = f"line {position + 2} of {labelling_round.table}"
            if file in places:
                raise LabelError(
                    f"{file} is in {places[file]} and in {place}. An image is queried once. Put the line back, or "
                    "remove the folder of the copied round."
                )
            places[file] = place
    return rounds


def create_round(
    folder: Path, pool: Path, files: list[str], predictions: list[str], confidence: np.ndarray, scores: np.ndarray
) -> LabellingRound:
    """Write the folder of a round: numbered copies of the images, and a CSV file with an empty column ``class``.

    Args:
        folder: of the round.
        pool: folder of the images.
        files: paths below ``pool`` of the n images.
        predictions: class that the classifier predicts for each image.
        confidence: probabilities of these classes, ``(n,)``.
        scores: of the acquisition function, ``(n,)``.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    new = LabellingRound(partial, files, [""] * len(files))
    (partial / "images").mkdir(parents=True)
    with new.table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i, name in enumerate(files):
            shutil.copyfile(pool / name, new.image(i))
            # a spreadsheet program takes =name for a formula
            cell = f"./{name}" if FORMULA.search(name) else name
            writer.writerow([i + 1, cell, "", predictions[i], f"{confidence[i]:.4f}", f"{scores[i]:.6g}"])
    rename_durably(partial, folder)
    return LabellingRound(folder, new.files, new.classes)


def write_classes(labelling_round: LabellingRound, given: list[str], classes: tuple[str, ...]) -> LabellingRound:
    """Write the classes of a round into its CSV file, and return the round with them.

    Args:
        labelling_round: whose file is written.
        given: class of each image, ``SKIPPED``, or empty.
        classes: all classes.

    Raises:
        LabelError: a class is unknown.
    """
    table = labelling_round.table
    lines = _read_lines(table)
    assert len(lines) == len(given)
    partial = table.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(line | {"class": name} for line, name in zip(lines, given, strict=True))
    rename_durably(partial, table)
    return _read_round(labelling_round.folder, classes)


def labelled_images(rounds: list[LabellingRound], pool: Path) -> list[tuple[str, str]]:
    """Return the path below the pool and the class of all labelled images.

    Raises:
        LabelError: a line does not name the image whose copy the person saw.
        ValueError: a labelled image is not in the pool.
    """
    labelled = [pair for labelling_round in rounds for pair in labelling_round.labelled]
    if missing := [file for file, _ in labelled if not (pool / file).is_file()]:
        raise ValueError(
            f"labelled images are missing from {pool}: {len(missing)} ({', '.join(missing[:5])}). Labelled images must "
            "stay in the pool. Put them back."
        )
    for labelling_round in rounds:
        for position, (file, name) in enumerate(zip(labelling_round.files, labelling_round.classes, strict=True)):
            copy = labelling_round.image(position)
            if name in ("", SKIPPED) and not (pool / file).is_file():
                continue
            if not (copy.is_file() and filecmp.cmp(pool / file, copy, shallow=False)):
                raise LabelError(
                    f"{labelling_round.table} has another file in line {position + 2} than {copy}: {file}. The column "
                    "file and the images must stay as they were written, since the class belongs to the image. Put "
                    "the line or the image back."
                )
    return labelled


def check_pool(pool: Path, folder: Path) -> None:
    """Check that the pool and the folder of the rounds do not contain each other, so that no round changes the pool.

    Raises:
        ValueError: one of them contains the other.
    """
    # links can hide that two folders are the same
    real_pool, real_folder = (Path(os.path.realpath(path)) for path in (pool, folder))
    if real_pool.is_relative_to(real_folder) or real_folder.is_relative_to(real_pool):
        raise ValueError(
            f"the pool and the folder of the rounds overlap: {pool} and {folder}. Neither may contain the other, "
            "because the flow writes into the folder of the rounds. Choose another folder, such as labels."
        )


def check_collected(rounds: list[LabellingRound], folder: Path) -> None:
    """Check that a folder has nothing but copies of images of the rounds, because :func:`collect_labelled` replaces it.

    Raises:
        ValueError: it has other files.
    """
    copies = {
        file: labelling_round.image(position)
        for labelling_round in rounds
        for position, file in enumerate(labelling_round.files)
    }

    def is_copy(path: Path) -> bool:
        _, _, file = path.relative_to(folder).as_posix().partition("/")
        copy = copies.get(file)
        return copy is not None and copy.is_file() and path.is_file() and filecmp.cmp(path, copy, shallow=False)

    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    if others := [path for path in files if path.name.lower() not in OF_FILE_MANAGERS and not is_copy(path)]:
        raise ValueError(
            f"{folder} has files that are not copies of images of the rounds: {format_paths(others, folder)}. The flow "
            "replaces this folder, and such files would be lost. Move them, or choose another folder of the rounds."
        )


def collect_labelled(rounds: list[LabellingRound], pool: Path, folder: Path) -> int:
    """Copy the labelled images into one folder for each class, as ``acquire.folder`` expects them.

    Args:
        rounds: with classes.
        pool: folder of the images; the copies keep its subfolders, because names identify the slices of a patient.
        folder: of the copies; older copies in it are deleted, so that no copy of a corrected image stays in a wrong
            class.

    Returns:
        Number of copies.

    Raises:
        ValueError: a labelled image is not in the pool, or the folder has other files than such copies.
    """
    check_pool(pool, folder)
    labelled = labelled_images(rounds, pool)
    check_collected(rounds, folder)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file, name in labelled:
        copy = partial / name / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pool / file, copy)
    shutil.rmtree(folder, ignore_errors=True)
    rename_durably(partial, folder)
    return len(labelled)


def _read_lines(table: Path) -> list[dict[str, str]]:
    """Return the lines of a ``query.csv`` by column; it may have been saved by any spreadsheet program."""
    try:
        # Excel writes a byte order mark
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"{table} has the wrong encoding: {error}. It must be UTF-8. Save it as CSV UTF-8.") from None
    # spreadsheets write semicolons in languages with a decimal comma
    first, _, _ = text.partition("\n")
    reader = csv.DictReader(text.splitlines(), delimiter=";" if ";" in first else ",")
    if reader.fieldnames is None or not {"number", "file", "class"} <= set(reader.fieldnames):
        raise LabelError(
            f"{table} has no valid header: {first.strip()!r}. The columns number, file and class are needed. Put the "
            f"first line back: {','.join(COLUMNS)}."
        )
    if repeated := sorted(name for name in COLUMNS if reader.fieldnames.count(name) > 1):
        raise LabelError(f"{table} has several columns of one name: {repeated}. Keep one of them.")
    return list(reader)


def _read_round(folder: Path, classes: tuple[str, ...]) -> LabellingRound:
    table = folder / "query.csv"
    files, given, unknown = [], [], []
    by_name = {name.casefold(): name for name in (*classes, SKIPPED)}
    for number, line in enumerate(_read_lines(table), start=1):
        entry = (line["class"] or "").strip()
        if line["number"] != str(number):
            raise LabelError(
                f"{table} has a wrong number in line {number + 1}: {line['number']}. Lines must keep their number and "
                f"their order; {number} belongs here. Put the lines back."
            )
        if entry and entry.casefold() not in by_name:
            unknown.append(f"{entry!r} in line {number + 1}")
        path = PurePosixPath(line["file"] or "")
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise LabelError(
                f"{table} has a wrong file in line {number + 1}: {line['file']!r}. It must be a path below the pool. "
                "Put the line back."
            )
        files.append(path.as_posix())
        given.append(by_name.get(entry.casefold(), ""))
    if unknown:
        raise LabelError(
            f"{table} has unknown classes: {', '.join(unknown)}. Allowed are {', '.join(classes)}, {SKIPPED} for an "
            "image that cannot be labelled, and nothing for an image without a class yet. Correct these lines."
        )
    n_images = sum(path.name.lower().endswith(SUFFIXES) for path in (folder / "images").iterdir())
    if len(files) != n_images:
        raise LabelError(
            f"{table} has the wrong number of lines: {len(files)}. It must have one line for each of the {n_images} "
            "images. Put the lines back."
        )
    return LabellingRound(folder, files, given)
