"""Attack methods, and the attack on one target with its checkpoints."""

import logging

# before the import of ART, which logs at level INFO where it stores its data
logging.getLogger("art").setLevel(logging.WARNING)
