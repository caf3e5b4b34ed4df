"""Write ``docs/evidence/licences.md`` from the metadata of the packages in ``requirements.lock``.

Run ``python -m docs.write_licences`` in an environment that was installed from the lock file.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

LOCK = Path("requirements.lock")
PAGE = Path("docs/evidence/licences.md")

NOT_INSTALLED = "not installed here"
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|CNRI|Zlib|CC0|BSL-1\.0|Zope|DFSG approved|LLVM|" + NOT_INSTALLED
)

MPL = "The MPL applies to changed files of the package. This project changes none."
NVIDIA = (
    "NVIDIA's own terms. The packages are installed with torch on Linux and are used only with an NVIDIA GPU. Read the "
    "terms before you distribute an image that contains them. The CPU build of torch does not need them."
)
REVIEWED = {
    "asyncssh": "One of two licences can be chosen. DVC uses it for git over SSH; this project does not import it.",
    "certifi": "Certificates. " + MPL,
    "codespell": "Development only: a command that checks the spelling of the text.",
    "cuda-toolkit": NVIDIA,
    "dulwich": "One of two licences can be chosen: Apache-2.0.",
    "grandalf": "One of two licences can be chosen. `dvc dag` draws with it; this project does not import it.",
    "hypothesis": "Development only. " + MPL,
    "orjson": MPL,
    "pathspec": MPL,
    "psycopg2-binary": "Only for the extra `server` and for tests. SQLAlchemy imports it, and it can be replaced.",
    "pylibjpeg-libjpeg": "Only for the extra `jpeg12` and for tests: pydicom decodes 12-bit lossy JPEG with it. This "
    "project does not import it. An image with this extra is distributed under the GPL.",
    "pygit2": "The exception allows linking with programs under any licence. DVC uses it for git.",
    "shtab": MPL,
    "text-unidecode": "One of the licences can be chosen: the Artistic License.",
    "tqdm": MPL,
}
"""Package with a licence that is not only permissive -> consequence for this project."""

WITHOUT_METADATA = {"huey": "MIT", "skops": "MIT", "cuda-toolkit": "NVIDIA"}
"""Package without a licence in its metadata -> licence according to its licence file or publisher."""

HEAD = """# Licences

This project has the Apache License 2.0 (`LICENSE`). The repository contains no code of others and distributes no
packages: users install the packages of `requirements.lock` from their publishers. Two outputs contain code of others.
The report contains plotly.js (MIT, with its notice), and the Data Docs contain the styles and fonts of Great
Expectations.

An image that is built from `containers/Dockerfile` contains all packages. If you distribute such an image, you
distribute the packages.

`python -m docs.write_licences` writes this page from the metadata of the installed packages. It stops if a licence is
not permissive and was not reviewed.
"""


def main() -> None:
    """Write the page; stop if a licence is not permissive and was not reviewed."""
    licences = {name: licence_of(name) for name in locked_packages()}
    reviewed: dict[str, list[str]] = {}
    for name, licence in licences.items():
        if not is_permissive(licence):
            consequence = NVIDIA if name.startswith("nvidia-") else REVIEWED.get(name)
            if consequence is None:
                sys.exit(f"{name}: the licence {licence!r} was not reviewed. Add the package to REVIEWED in {__file__}")
            reviewed.setdefault(consequence, []).append(name)
    lines = [HEAD, "## Not only permissive", "", "| packages | licence | consequence for this project |"]
    lines += ["|---|---|---|"]
    for consequence, names in reviewed.items():
        of_names = "; ".join(dict.fromkeys(licences[name] for name in names))
        lines.append(f"| {', '.join(names)} | {of_names} | {consequence} |")
    lines += ["", "## All packages of the lock file", "", "| package | licence |", "|---|---|"]
    lines += [f"| {name} | {licence} |" for name, licence in licences.items()]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def locked_packages() -> list[str]:
    """Names of the packages in the lock file, without repeats."""
    lines = LOCK.read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(match[0] for line in lines if (match := re.match(r"[\w.-]+(?===)", line))))


def licence_of(name: str) -> str:
    """Licence of a package: from its expression, from a choice in its licence field, its classifiers, or the field."""
    try:
        package: Distribution = distribution(name)
    except PackageNotFoundError:
        return NOT_INSTALLED
    if expression := package.metadata.get_all("License-Expression"):
        return str(expression[0])
    classifiers = [each for each in package.metadata.get_all("Classifier") or [] if each.startswith("License ::")]
    known = [each.rpartition(" :: ")[2] for each in classifiers if each != "License :: OSI Approved"]
    # in some packages the field is the whole text of the licence
    field = "".join(package.metadata.get_all("License") or []).strip().partition("\n")[0].replace("|", "OR")
    if " OR " in field or not known:
        known = [field] if field else []
    return ", ".join(known) or WITHOUT_METADATA[name]


def is_permissive(licence: str) -> bool:
    """Return whether all parts of a licence are permissive."""
    return all(PERMISSIVE.search(each) for each in re.split(r" AND | OR | WITH |, ", licence))


if __name__ == "__main__":
    main()
