"""Check the text of the repository for phrases that the style of this project bans.

``python -m docs.check_prose`` prints every match with its file and line, and fails if there is one. ``make lint`` runs
it. The phrases are paraphrases of technical terms, personifications, and docstrings and headings that begin with "What"
or "Who" in place of a verb or a noun.
"""

import re
import subprocess
import sys
from pathlib import Path

BANNED = {
    r"\b(told|tell|tells|telling) (apart|from)\b|\bcan'?t be told\b": "not significant, or: separates",
    r"\bmay as well\b": "not better than",
    r"\bwho (knows|does not know|asks|sees|looks|attacks|ignores)\b|\bwhoever\b": "the threat model, or the role",
    r"\bwhat (withstands|holds|breaks|stands|falls|is known to be broken|it comes to|it takes|becomes of)\b": "a noun",
    r"\b(hears?|heard) (of|from|the|it)\b|\bhears? nothing\b": "receives, or: no-op",
    r"\b(is|are|was|were) (right|wrong) (on|about)\b": "accuracy is ...",
    r"\bgoes? on (from|where|with)\b|\bwent on from\b": "resumes from",
    r"\b(server|store|tracking) is out\b(?! of\b)": "is unavailable",
    r"\b(is|are) let in\b": "access control",
    r"\bmakes? of (it|them|the|an?|each|images?|noisy|clean|adversarial)\b": "prediction, output",
    r"\b(many|several|further|noisy|single|five|few) looks\b|\bat every look\b|\blooks at (it|them|each)\b": "passes",
    r"\bwithstand(s|ing)?\b|\bwithstood\b": "survives, robust",
    r"\b(?-i:he|him|himself|his|anybody)\b|(?<!@)\bnobody\b(?!@)": "no persons for programs and attackers",
    r"\b(spoken|taught|untaught)\b": "plain names",
    (
        r"\bthe (\w+ )?(report|page|store|file|server|attack|defence|check|pipeline) "
        r"(says|knows|tells|sees|hears|wants|does not (say|know|tell|see|hear|want))\b"
    ): "shows, has, contains, prints, detects or needs",
}
"""Pattern, case-insensitive -> what to write instead."""

DOCSTRING_START = re.compile(r'^\s*(?:[rf]?""")(Of|What|Who|Whether|How|Where) ')
"""First words that stand in place of a noun or verb."""
HEADING_START = re.compile(r"^#+ (Of|What|Who|Whether) ")
"""The same for headings of Markdown files, in which "How" and "Where" are allowed."""

SKIPPED = (
    "CHANGELOG.md",
    "LICENSE",
    "docs/check_prose.py",
    "tests/test_docs.py",
    "docs/evidence/results/",
    "docs/evidence/performance/",
)
SUFFIXES = {".md", ".py", ".yaml", ".yml", ".toml", ".j2", ".js"}


def main() -> None:
    """Print all matches in the tracked text files; exit with 1 if there are any."""
    found = [match for path in text_files(Path()) for match in matches(path)]
    print("\n".join(found))
    sys.exit(1 if found else 0)


def text_files(root: Path) -> list[Path]:
    """Text files of a repository that are in git or not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603  a list of arguments, no shell
    names = [name for name in listed if Path(name).suffix in SUFFIXES or name == "Makefile"]
    return [root / name for name in names if not name.startswith(SKIPPED) and (root / name).is_file()]


def matches(path: Path) -> list[str]:
    """Matches in one file as ``file:line: phrase (write: ...)``."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        for pattern, advice in BANNED.items():
            found += [
                f"{path}:{number}: {match[0]!r} (write: {advice})"
                for match in re.finditer(pattern, line, re.IGNORECASE)
            ]
        if start := DOCSTRING_START.match(line):
            found.append(f"{path}:{number}: docstring begins with {start[1]!r} (write: a verb or a noun)")
        if path.suffix == ".md" and (start := HEADING_START.match(line)):
            found.append(f"{path}:{number}: heading begins with {start[1]!r} (write: a noun)")
    return found


if __name__ == "__main__":
    main()
