"""Attack methods, and the attack on one target with its checkpoints."""
