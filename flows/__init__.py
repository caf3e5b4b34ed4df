"""Prefect flows: the pipeline, audits, the registry, labelling; and the commands around DVC."""
