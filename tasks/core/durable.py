"""Files that survive a power cut: a file gets its final name only after its bytes are on the disk."""

import errno
import os
from pathlib import Path


def rename_durably(partial: Path, path: Path) -> None:
    """Rename a complete file or folder, once its bytes are on the disk.

    Without this, a file system may write the new name first. After a power cut, an empty file has the final name.

    Args:
        partial: closed file, or folder of such files, in the folder of ``path``.
        path: the final name; an existing file is replaced.

    Raises:
        OSError: the disk is full, or ``path`` is a folder with files.
    """
    for written in (*partial.rglob("*"), partial):
        synchronize(written)
    partial.replace(path)
    synchronize(path.parent)


def write_bytes(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file in pieces.

    Raises:
        OSError: the disk is full, or the file cannot be written. The message names the file, unlike that of Python.
    """
    try:
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def synchronize(path: Path) -> None:
    """Wait until the bytes of a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems cannot do this for folders
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)
