"""Parallel analyses: one thread for each of them."""

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from threadpoolctl import threadpool_limits

from tasks.models.compute import set_num_threads

log = logging.getLogger(__name__)

T = TypeVar("T")


def collect_in_threads(work: Mapping[str, Callable[[], Iterable[T]]], n_threads: int) -> list[T]:
    """Run functions in a pool of threads, and return the items that they yield, in the order of the functions.

    Each function computes with one thread, because many of the computations are too small to be split. The last
    functions start first; they take longest in the step ``analyze``. After an error, functions that have not started
    are cancelled, and the error is raised.

    Args:
        work: functions by the name that the log shows.
        n_threads: number of functions that run at the same time.
    """

    def collect(function: Callable[[], Iterable[T]]) -> list[T]:
        return list(function())

    with threadpool_limits(1), ThreadPoolExecutor(n_threads, initializer=set_num_threads, initargs=(1,)) as pool:
        names = {pool.submit(collect, function): name for name, function in reversed([*work.items()])}
        try:
            for number, future in enumerate(as_completed(names), start=1):
                future.result()
                log.info("%d/%d  %s", number, len(work), names[future])
        finally:
            pool.shutdown(cancel_futures=True)
    return [item for future in reversed(names) for item in future.result()]
