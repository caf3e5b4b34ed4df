"""Labelling by a person, in rounds that are folders: images to look at, and a CSV file to fill in.

A round is answered once every line of its ``query.csv`` has a class. The folders are all that is remembered, so work
can rest between rounds for as long as it likes, and go on elsewhere with a copy of them.
"""

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.dataset.folder import files_below, printable, refusals
from tasks.dataset.images import SUFFIXES, ImageError, read_square

COLUMNS = ("number", "file", "class", "predicted", "confidence", "score")


SKIPPED = "-"
"""What is filled in for an image that can't be labelled."""


class LabelError(ValueError):
    """What was filled in can't be used; the message names file and line."""


@dataclass(frozen=True)
class Query:
    """Images that a round asks about."""

    folder: Path
    files: list[str]
    """Paths below the pool, in the order of asking."""
    told: list[str]
    """Class of each; empty where none is filled in, ``SKIPPED`` where none can be."""

    @property
    def table(self) -> Path:
        """The file to fill in."""
        return self.folder / "query.csv"

    @property
    def is_answered(self) -> bool:
        """Whether every image has its class, or is skipped."""
        return all(self.told)

    @property
    def labelled(self) -> list[tuple[str, str]]:
        """Path and class of the images that have one."""
        return [(file, name) for file, name in zip(self.files, self.told, strict=True) if name and name != SKIPPED]


def pool_files(pool: Path) -> list[str]:
    """Images below a folder, by path.

    Raises:
        ValueError: no such folder, or no image in it.
    """
    if not pool.is_dir():
        raise ValueError(f"{pool} is no folder; name the one that holds the images without labels")
    files = sorted(
        path.relative_to(pool).as_posix()
        for path in files_below(pool)
        # a linked folder may hold images: it is refused with what can't be read
        if path.suffix.lower() in SUFFIXES or path.is_dir()
    )
    if not files:
        raise ValueError(f"{pool} holds no image (looked for {', '.join(SUFFIXES)})")
    return files


def read_pool(pool: Path, files: list[str], side: int, max_megapixels: float) -> np.ndarray:
    """Images as the step ``prepare`` makes them, uint8 ``(N, 1, side, side)``.

    Raises:
        ValueError: files that can't be read, or are not taken, all of them in one message.
    """
    refused = refusals([pool / file for file in files], pool)
    unreadable = [f"{pool / printable(path, pool)}: {reason}" for path, reason in refused.items()]
    pixels = np.empty((len(files), 1, side, side), dtype=np.uint8)
    for row, file in enumerate(files):
        if pool / file in refused:
            continue
        try:
            pixels[row, 0] = read_square(pool / file, side, max_megapixels)
        except ImageError as error:
            unreadable.append(str(error))
    if unreadable:
        raise ValueError(
            "\n  ".join([f"{len(unreadable)} of {len(files)} images can't be read; move them away:", *unreadable])
        )
    return pixels


def read_rounds(folder: Path, classes: tuple[str, ...]) -> list[Query]:
    """All rounds that were begun, in order.

    Raises:
        LabelError: a class that is none, or a line that was changed.
    """
    return [_read_query(path.parent, classes) for path in sorted(folder.glob("round-[0-9][0-9]/query.csv"))]


def begin_round(
    folder: Path, pool: Path, files: list[str], predicted: list[str], confidence: np.ndarray, scores: np.ndarray
) -> Query:
    """A new round: its images, numbered in the order of asking, and a CSV file whose column ``class`` is empty.

    Args:
        folder: of the round.
        pool: folder of the images.
        files: paths below ``pool`` of the ``n`` images.
        predicted: class that the classifier takes each for.
        confidence: of these predictions, ``(n,)``.
        scores: why they were chosen, ``(n,)``.
    """
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    with (partial / "query.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for i, name in enumerate(files):
            shutil.copyfile(pool / name, partial / "images" / f"{i + 1:03d}{Path(name).suffix}")
            writer.writerow([i + 1, name, "", predicted[i], f"{confidence[i]:.4f}", f"{scores[i]:.6g}"])
    partial.rename(folder)
    return Query(folder, files, [""] * len(files))


def fill_in(query: Query, told: list[str], classes: tuple[str, ...]) -> Query:
    """Write classes into a round's file, which then stands for them.

    Raises:
        LabelError: a class that is none.
    """
    lines = _lines(query.table)
    assert len(lines) == len(told)
    partial = query.table.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(line | {"class": name} for line, name in zip(lines, told, strict=True))
    partial.replace(query.table)
    return _read_query(query.folder, classes)


def collect(rounds: list[Query], pool: Path, folder: Path) -> int:
    """Copy labelled images into a folder a class, as ``acquire.folder`` wants them, in place of what is there.

    Args:
        rounds: with labels.
        pool: folder of the images; subfolders are kept, since slices of a patient are known by their names.
        folder: made anew, so that a label that was corrected leaves nothing behind.

    Returns:
        How many were copied.

    Raises:
        ValueError: a labelled image is no longer in the pool.
    """
    labelled = [pair for query in rounds for pair in query.labelled]
    if gone := [file for file, _ in labelled if not (pool / file).is_file()]:
        raise ValueError(f"{len(gone)} labelled images are no longer in {pool}: {', '.join(gone[:5])}")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file, name in labelled:
        copy = partial / name / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pool / file, copy)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return len(labelled)


def _lines(table: Path) -> list[dict[str, str]]:
    """Lines of a round's file by column, whatever spreadsheet saved it."""
    try:
        # Excel writes a mark in front
        text = table.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"{table}: not UTF-8 ({error}); save it as CSV UTF-8") from None
    # and semicolons where the comma stands in numbers
    first, _, _ = text.partition("\n")
    reader = csv.DictReader(text.splitlines(), delimiter=";" if ";" in first else ",")
    if reader.fieldnames is None or not {"number", "file", "class"} <= set(reader.fieldnames):
        raise LabelError(f"{table}: the first line must hold the columns {', '.join(COLUMNS)}; put it back")
    return list(reader)


def _read_query(folder: Path, classes: tuple[str, ...]) -> Query:
    table = folder / "query.csv"
    files, told, wrong = [], [], []
    by_name = {name.casefold(): name for name in (*classes, SKIPPED)}
    for count, line in enumerate(_lines(table), start=1):
        given = (line["class"] or "").strip()
        if line["number"] != str(count):
            raise LabelError(
                f"{table}, line {count + 1}: number {line['number']} where {count} was; put the lines back"
            )
        if given and given.casefold() not in by_name:
            wrong.append(f"line {count + 1}: {given!r}")
        files.append(line["file"])
        told.append(by_name.get(given.casefold(), ""))
    allowed = f"{', '.join(classes)}, {SKIPPED} for an image that can't be labelled, or nothing for now"
    if wrong:
        raise LabelError(f"{table}: {'; '.join(wrong)}; allowed: {allowed}")
    n_images = sum(path.suffix.lower() in SUFFIXES for path in (folder / "images").iterdir())
    if len(files) != n_images:
        raise LabelError(f"{table}: {len(files)} lines for {n_images} images; put the lines back")
    return Query(folder, files, told)
