"""The steps of the pipeline, one module each, and folders of what they share."""

import os

# first, so that it has read the source files before any other module is loaded
from tasks.core import source as source

# Threads that wait for each other sleep instead of spinning: beside another busy process a spinning pair of torch
# threads is many times slower. Read when torch loads its OpenMP library, so it is set before any step imports it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What numpy and SciPy make of matrices depends on the number of threads, which would be that of the machine's cores.
# Read when they are loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Arrow's own allocator keeps what has been freed, so that memory would grow with the tables. Read when it is loaded.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# Servers on this machine are not asked through a proxy. Libraries read either spelling.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
    filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost"])
)
