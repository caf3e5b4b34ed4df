"""Intervals, tests and measures of classification, from arrays alone."""
