"""Defences: what stands in front of the classifier; a defended model is one network."""

UNDEFENDED = "undefended"
"""Name of the bare classifier among the targets; it is the surrogate of transfer attacks, too."""
