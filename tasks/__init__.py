"""The steps of the pipeline, one module for each, and the packages that they share."""

import os

# imported first, since it has to read the source files before any other module is loaded
from tasks.core import source as source

# Waiting threads sleep instead of spinning: beside another busy process, two spinning torch threads are many times
# slower. OpenMP reads this when torch loads it, so it is set before any step imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The results of matrix operations in numpy and SciPy depend on the number of threads, by default the number of cores.
# Both read this when they are loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Arrow's own allocator keeps freed memory, so memory would grow with the number of tables. Arrow reads this when it is
# loaded.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# Requests to servers on this machine do not use a proxy. Libraries read one of the two names.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(
    filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1,localhost"])
)
