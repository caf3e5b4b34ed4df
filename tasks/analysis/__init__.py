"""Analyses of the study: features, heat maps, intensities, resilience, detection, and the outcome of each claim."""
