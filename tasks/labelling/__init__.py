"""Active learning: the simulated experiment, and the queries that a person answers."""
