"""Confidence intervals, paired tests, calibration and metrics of classification, from arrays."""
