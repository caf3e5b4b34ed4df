"""Passwords, taken out of what is told."""

import re

CREDENTIALS = re.compile(
    # SQLAlchemy takes a password with slashes; what follows a port is no password
    r"//[^/:@\s]*:(?!\d+(?:[/?#\s]|$))[^@\s]*@"
    r"|//[^/\s]*@"
)
IN_QUERIES = re.compile(r"([?&](?:\w*password|passwd|pwd|\w*token|\w*secret|\w*key)=)[^&\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """A text with users and passwords taken out of the addresses in it."""
    return IN_QUERIES.sub(r"\1***", _without_credentials(text))


def _without_credentials(text: str) -> str:
    # a password with an unescaped @ leaves a rest that ends with another one
    while (shorter := CREDENTIALS.sub("//", text)) != text:
        text = shorter
    return text
