"""Active learning: simulated in the step ``active_learning``, with a person in the flow ``labelling``."""
