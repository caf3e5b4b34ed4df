"""Write ``docs/evidence/licences.md`` from what the installed packages of ``requirements.lock`` say of themselves.

``python -m docs.write_licences``, in an environment that was made of the lock file.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

LOCK = Path("requirements.lock")
PAGE = Path("docs/evidence/licences.md")

NOT_HERE = "not installed here"
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|CNRI|Zlib|CC0|BSL-1\.0|Zope|DFSG approved|LLVM|" + NOT_HERE
)

MPL = "MPL binds changes to its own files, and there are none."
NVIDIA = (
    "NVIDIA's own terms. They come with torch on Linux and do nothing without a GPU of theirs; read the terms before "
    "an image that holds them is given to others. torch for the CPU comes without them."
)
JUDGED = {
    "asyncssh": "One of the two; git over SSH for DVC. Not imported by this project.",
    "certifi": "Certificates. " + MPL,
    "cuda-toolkit": NVIDIA,
    "dulwich": "By choice Apache-2.0.",
    "grandalf": "One of the two; `dvc dag` draws with it. Not imported by this project.",
    "hypothesis": "Development only. " + MPL,
    "orjson": MPL,
    "pathspec": MPL,
    "psycopg2-binary": "The extra `server`, and tests: a library that is imported by SQLAlchemy, and can be replaced.",
    "pygit2": "The exception lets programs under any licence be linked with it; git for DVC.",
    "shtab": MPL,
    "text-unidecode": "By choice the Artistic License.",
    "tqdm": MPL,
}
"""Packages that are not permissive, or not in all they say: what that means here."""

TOLD_ELSEWHERE = {"huey": "MIT", "skops": "MIT", "cuda-toolkit": "NVIDIA"}
"""What the licence file of a package, or its maker's name, says where its metadata say nothing."""

HEAD = """# Licences

This project is under the Apache License 2.0 (`LICENSE`). Its files hold no code of others, and it passes
no package on: who installs it gets the packages of `requirements.lock` from their makers. What it writes may hold some:
the report's page holds plotly.js (MIT, its notice is in the page), and Great Expectations' Data Docs their own styles
and fonts.

An image built of `containers/Dockerfile` holds all packages: who gives one to others passes them on.

`python -m docs.write_licences` writes this page from what the installed packages say of themselves, and stops at one
that is not permissive and was not judged.
"""


def main() -> None:
    """Write the page; fail where a package is not permissive and nobody has judged it."""
    licences = {name: licence_of(name) for name in locked()}
    odd: dict[str, list[str]] = {}
    for name, licence in licences.items():
        if not is_permissive(licence):
            judgement = NVIDIA if name.startswith("nvidia-") else JUDGED.get(name)
            if judgement is None:
                sys.exit(f"{name} ({licence}): say in JUDGED of {__file__} what that means here")
            odd.setdefault(judgement, []).append(name)
    lines = [HEAD, "## Not permissive, or not in all they say", "", "| packages | licence | what it means here |"]
    lines += ["|---|---|---|"]
    for judgement, names in odd.items():
        said = "; ".join(dict.fromkeys(licences[name] for name in names))
        lines.append(f"| {', '.join(names)} | {said} | {judgement} |")
    lines += ["", "## All packages of the lock file", "", "| package | licence |", "|---|---|"]
    lines += [f"| {name} | {licence} |" for name, licence in licences.items()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def locked() -> list[str]:
    """Names in the lock file, each once."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(match[0] for line in lines if (match := re.match(r"[\w.-]+(?===)", line))))


def licence_of(name: str) -> str:
    """What a package says: a licence expression, else a choice in its field, else its classifiers, else its field."""
    try:
        package: Distribution = distribution(name)
    except PackageNotFoundError:
        return NOT_HERE
    if expression := package.metadata.get_all("License-Expression"):
        return str(expression[0])
    classifiers = [each for each in package.metadata.get_all("Classifier") or [] if each.startswith("License ::")]
    known = [each.rpartition(" :: ")[2] for each in classifiers if each != "License :: OSI Approved"]
    # some put the whole text there
    field = "".join(package.metadata.get_all("License") or []).strip().partition("\n")[0].replace("|", "OR")
    if " OR " in field or not known:
        known = [field] if field else []
    return ", ".join(known) or TOLD_ELSEWHERE[name]


def is_permissive(licence: str) -> bool:
    """Whether every licence that is named is a permissive one."""
    return all(PERMISSIVE.search(each) for each in re.split(r" AND | OR | WITH |, ", licence))


if __name__ == "__main__":
    main()
