"""A defended model outside the pipeline: bundle, model card, predictor, export, registry and promotion."""
