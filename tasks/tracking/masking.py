"""Removal of users and passwords from text, and of links and HTML from Markdown."""

import re

CREDENTIALS = re.compile(
    # SQLAlchemy accepts a password with slashes, which can begin like a port; MLflow's links have /#/ after the port
    r"//[^/:@\s]*:(?!\d+/#/)[^@\s]*@"
    r"|//[^/\s]*@"
)
IN_QUERIES = re.compile(
    r"([?&](?:[\w-]*(?:password|token|secret|key|credential|signature)|passwd|pwd|sig)=)[^&\s'\"]*", re.IGNORECASE
)


def masked(text: str) -> str:
    """Remove users and passwords from the addresses in a text."""
    return IN_QUERIES.sub(r"\1***", _without_credentials(text))


def plain_markdown(text: str) -> str:
    """Return Markdown without links, images and HTML: names of files, classes and data sets can contain them."""
    text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)
    # inline links, references to a link, and the definitions of references
    return re.sub(r"\](?=[(\[:])", r"]\\", text)


def _without_credentials(text: str) -> str:
    # a password with an @ needs one round for each @
    while (shorter := CREDENTIALS.sub("//", text)) != text:
        text = shorter
    return text
