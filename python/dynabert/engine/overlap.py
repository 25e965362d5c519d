"""The next block is prepared while the caller works on this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Item], Made], items: Sequence[Item]) -> Iterator[Made]:
    """``make(item)`` for each item, in order, one item ahead of the caller on a thread of its own.

    At most two results exist at a time: the one handed out and the next. An error of ``make`` is raised where its
    result would come; those before it have come by then. A single item is made on the caller's thread.
    """
    if len(items) < 2:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="dynabert-ahead") as thread:
        coming = thread.submit(make, items[0])
        for item in items[1:]:
            made = coming.result()
            coming = thread.submit(make, item)
            yield made
        yield coming.result()
