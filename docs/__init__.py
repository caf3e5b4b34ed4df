"""Documents, and the commands that keep results for them and write their tables."""
