"""One process for each model, forked from one that has imported the libraries, with limits on time and memory."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one process may take."""

    seconds: float
    gigabytes: float


@dataclass
class Finished(Generic[T]):
    """What the process of a task sent, merged, and why it ended early, "" where it did not."""

    task: T
    seconds: float
    sent: dict[str, Any]
    ended: str


@dataclass
class _Running(Generic[T]):
    task: T
    process: ForkProcess
    connection: Connection
    start: float
    sent: dict[str, Any] = field(default_factory=dict)
    ended: str = ""

    def receive(self) -> bool:
        """Take what was sent; return whether the process is at its end."""
        with suppress(EOFError):
            while self.connection.poll():
                self.sent |= self.connection.recv()
            return False
        return True


def each(
    tasks: Iterable[T], work: Callable[[T], Iterator[dict[str, Any]]], limits: Limits, jobs: int
) -> Iterator[Finished[T]]:
    """Run `work` on each task in a process of its own, `jobs` at a time; yield the tasks as they finish."""
    waiting = iter(tasks)
    running: list[_Running[T]] = []
    while True:
        while len(running) < jobs and (task := next(waiting, None)) is not None:
            running.append(_start(task, work, limits))
        if not running:
            return
        wait([one.connection for one in running], timeout=1.0)
        for one in list(running):
            late = time.monotonic() - one.start > limits.seconds
            if not one.receive() and not late:
                continue
            running.remove(one)
            yield _finish(one, f"time limit of {limits.seconds:g} s" if late else "")


def _start(task: T, work: Callable[[T], Iterator[dict[str, Any]]], limits: Limits) -> _Running[T]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(task, work, limits, sender), daemon=True)
    process.start()
    sender.close()  # the child's copy is then the only one, and its end is the connection's
    return _Running(task, process, receiver, time.monotonic())


def _finish(one: _Running[T], ended: str) -> Finished[T]:
    if ended:
        one.process.kill()
    one.process.join()
    code = one.process.exitcode or 0
    if not ended and code:
        ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return Finished(one.task, time.monotonic() - one.start, one.sent, ended)


def _child(task: T, work: Callable[[T], Iterator[dict[str, Any]]], limits: Limits, sender: Connection) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, int(limits.gigabytes * 1e9)),
        (resource.RLIMIT_CPU, int(limits.seconds) + 1),  # should nobody be left to end this process
    ):
        resource.setrlimit(kind, (most, most))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    for sent in work(task):
        sender.send(sent)
