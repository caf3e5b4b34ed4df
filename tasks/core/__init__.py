"""Paths of a workspace, checkpoints, digests, locks and files, for all packages."""
