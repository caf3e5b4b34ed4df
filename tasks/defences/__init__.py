"""Purifiers in front of a classifier, and the targets of attacks as single networks."""
