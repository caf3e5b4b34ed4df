"""The study's analyses: features, heat maps, intensities, detectors, and whether the claims hold."""
