"""Runs work that waits for a disk, or computes without the interpreter's lock, on several threads.

A program's last save may run in `atexit`, or in a thread that outlives the main one, when a `ThreadPoolExecutor`
accepts no more work. Here, threads are started while that is possible; after that, the caller's thread does the work.
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
    """Call `work` on several threads, wait for all, and raise the first error.

    Args:
        work: gets an event that is set once a thread has failed, or the wait was interrupted: then it should return.
        threads: the number of threads, at most.
    """
    errors: list[BaseException] = []
    stop = threading.Event()

    def guarded() -> None:
        try:
            work(stop)
        except BaseException as error:  # noqa: BLE001  # raised below, in the caller's thread
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
    except BaseException:  # an interrupt: no thread may use what the caller is about to close
        stop.set()
        for thread in started:
            thread.join()
        raise
    if errors:
        raise errors[0]


def over(items: Iterable[_Item], work: Callable[[_Item], _Result], threads: int) -> list[_Result]:
    """Call `work` for each item on several threads; the first error stops them, and is raised.

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


def start(work: Callable[[], _Result], name: str) -> Future[_Result]:
    """Call `work` in a thread of that name, for whose end a program waits; or at once, if it can't be started."""
    future: Future[_Result] = Future()
    try:
        threading.Thread(target=_fulfil, args=(future, work), name=name, daemon=False).start()
    except RuntimeError:  # the interpreter is shutting down, or there are too many threads
        _fulfil(future, work)
    return future


def is_ending() -> bool:
    """Return whether the interpreter is shutting down: executors reject work then."""
    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(int)
        except RuntimeError:
            return True
    return False


def explained(text: str) -> str:
    """Return an error's message, with a remedy if a library's threads couldn't start during shutdown."""
    if "cannot schedule new futures after" not in text:
        return text
    return (
        f"{text}. The interpreter is shutting down, and this strategy's library can't start threads any more: save "
        "earlier, or use a strategy that can, such as safetensors_tuned"
    )


class Beside:
    """A background thread that does what is submitted, in order, until the context ends."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(target=self._serve)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter is shutting down
            self._thread = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread:
            self._waiting.put(None)
            self._thread.join()

    def submit(self, work: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
        """Call `work` in the thread, or immediately if there is none, and return its future."""
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
    except BaseException as error:  # noqa: BLE001  # raised where the result is asked for
        future.set_exception(error)
