"""A defended model outside the pipeline: bundle, predictor, export, registry and promotion."""
