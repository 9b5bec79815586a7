"""Independent programmes two at a time: solvers let go of Python's lock while they work.

Which thread solves what does not change any answer, and the number of threads never does: it is fixed.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from planner.optimize.backends import abandon

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planner.optimize.decompose.budget import Budget

WORKERS = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


def solve_all(work: Callable[[Item], Result], items: Sequence[Item], budget: Budget) -> list[Result | None]:
    """Return `work` of every item, in order; None for what the end of the budget, or Ctrl-C, left undone."""
    crew = _Crew(work, items, budget)
    finished = [Event() for _ in range(min(WORKERS, len(items)))]
    for done in finished:
        Thread(target=crew.run, args=(done,), name="decompose", daemon=True).start()
    try:
        for done in finished:
            done.wait()
    except KeyboardInterrupt:
        budget.interrupt()
        abandon(budget.solver)
    if crew.failures:
        raise crew.failures[0]
    return list(crew.results)


class _Crew(Generic[Item, Result]):
    """What the threads share: items in line, and what became of them."""

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item], budget: Budget) -> None:
        self._work = work
        self._items = items
        self._budget = budget
        self._waiting: SimpleQueue[int] = SimpleQueue()
        for index in range(len(items)):
            self._waiting.put(index)
        self.results: list[Result | None] = [None] * len(items)
        self.failures: list[BaseException] = []

    def run(self, done: Event) -> None:
        """Work items off, one after the other, until there are none."""
        try:
            while self._budget.stopped_by is None and not self.failures:
                index = self._waiting.get_nowait()
                self.results[index] = self._work(self._items[index])
        except Empty:
            pass
        except BaseException as error:  # noqa: BLE001 - handed over to the caller's thread, where it is raised again
            self.failures.append(error)
        finally:
            done.set()
