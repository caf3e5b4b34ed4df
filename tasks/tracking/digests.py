"""Digests of files and folders as DVC writes them."""

import hashlib
import json
from pathlib import Path


def digest_of(path: Path) -> str:
    """MD5 of a file or folder as DVC writes it into dvc.lock (``.dir`` ends a folder's)."""
    if path.is_file():
        return _md5(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    listing = [{"md5": _md5(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listing.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
