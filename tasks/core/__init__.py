"""The workspace's paths, checkpoints, digests and files: what every package builds on."""
