"""A few threads for work that waits for a disk, or computes without the interpreter's lock.

A last save may come from `atexit`, or from a thread that outlives the main one, when a `ThreadPoolExecutor` takes no
more work. Here threads are started as long as that is possible; after that, the caller does the work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Self, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def run(work: Callable[[threading.Event], None], threads: int) -> None:
    """Call `work` on that many threads, and wait for all; the first error is raised.

    Args:
        work: gets an event that is set once a thread has failed, or the wait was interrupted: then it should return.
        threads: at most so many.
    """
    errors: list[BaseException] = []
    stop = threading.Event()

    def guarded() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001  # raised below, by the thread that waits
            errors.append(error)
            stop.set()

    started = []
    for _ in range(threads):
        thread = threading.Thread(target=guarded)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down, or there are too many threads
            break
        started.append(thread)
    if not started:
        guarded()
    try:
        for thread in started:
            thread.join()
    except BaseException:  # an interrupt: nobody may use what the caller is about to close
        stop.set()
        for thread in started:
            thread.join()
        raise
    if errors:
        raise errors[0]


def over(items: Iterable[_Item], work: Callable[[_Item], _Result], threads: int) -> list[_Result]:
    """Call `work` for each item, in order, on that many threads; an error ends it, and is raised.

    Returns:
        The results, in the order of the items.
    """
    waiting = enumerate(items)
    lock = threading.Lock()
    results: dict[int, _Result] = {}

    def worker(stop: threading.Event) -> None:
        while not stop.is_set():
            with lock:
                pair = next(waiting, None)
            if pair is None:
                return
            number, item = pair
            results[number] = work(item)

    run(worker, threads)
    return [results[number] for number in sorted(results)]


def is_ending() -> bool:
    """Whether the interpreter is about to end: executors take no more work then, and say so."""
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(int)
        except RuntimeError:
            return True
    return False


def explained(text: str) -> str:
    """An error's text, with the way out where a library's threads can't be started as the interpreter ends."""
    if "cannot schedule new futures after" not in text:
        return text
    return (
        f"{text}. The interpreter is about to end, and this strategy's library can't start threads any more: save "
        "earlier, or take a strategy that can, such as safetensors_direct"
    )


class Beside:
    """One thread beside the caller's, which does what it is given, in that order, until the context ends."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._serve)
        try:
            self._thread.start()
        except RuntimeError:  # as above
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._waiting.put(None)
            self._thread.join()

    def submit(self, work: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """Have it done; without a thread, now."""
        future: Future[_Result] = Future()
        if self._thread:
            self._waiting.put((future, lambda: work(*arguments)))
        else:
            _fulfil(future, lambda: work(*arguments))
        return future

    def _serve(self) -> None:
        while item := self._waiting.get():
            _fulfil(*item)


def _fulfil(future: Future[_Result], work: Callable[[], _Result]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001  # whoever asks for the result gets it
        future.set_exception(error)
