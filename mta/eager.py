"""Run a coroutine at once, and make a Task only when it really has to wait.

Most questions of a session are answered without waiting (a table in memory, an address in mynetworks); a Task
for each would cost more than the answer.  Python 3.12 has eager tasks for this.  Before, the first step runs
here under a stand-in for the Task, so that code which asks for the current task (asyncio.timeout does) still
works when the coroutine goes on in a real one.

then() makes no Task at all, for a coroutine that mostly has to wait, and for one thing.
"""

import asyncio
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Generic, TypeVar, cast

from mta.record import dataclass

T = TypeVar("T")


@dataclass(slots=True)
class Done(Generic[T]):
    """The coroutine has returned this without waiting."""

    value: T


class _StandIn:
    """The part of a Task that code may use on itself; passed on to the real one as soon as there is one."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        self.task: asyncio.Task[object] | None = None

    def cancelling(self) -> int:
        return self.task.cancelling() if self.task is not None else 0

    def uncancel(self) -> int:
        return self.task.uncancel() if self.task is not None else 0

    def cancel(self, msg: object = None) -> bool:
        return self.task.cancel(msg) if self.task is not None else False


@types.coroutine
def _rest(coroutine: Coroutine[object, None, T], waiting: object) -> Generator[object, None, T]:
    """Go on with a coroutine that has been started and now waits for this future."""
    try:
        while True:
            try:
                yield waiting
            except BaseException as error:  # a cancellation goes into the coroutine, too
                waiting = coroutine.throw(error)
            else:
                waiting = coroutine.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)


def start(coroutine: Coroutine[object, None, T], loop: asyncio.AbstractEventLoop) -> Done[T] | asyncio.Task[T]:
    """Run as far as possible now.  An exception of the first step is raised here, a later one is the Task's."""
    if sys.version_info >= (3, 12):
        task = asyncio.Task(coroutine, loop=loop, eager_start=True)
        return Done(task.result()) if task.done() else task
    stand_in = _StandIn()
    as_task = cast("asyncio.Task[object]", stand_in)
    try:
        asyncio.tasks._enter_task(loop, as_task)
    except RuntimeError:  # we are in a Task
        return loop.create_task(coroutine)
    try:
        waiting = coroutine.send(None)
    except StopIteration as stop:
        return Done(stop.value)
    finally:
        asyncio.tasks._leave_task(loop, as_task)

    async def go_on() -> T:
        return await _rest(coroutine, waiting)

    task = loop.create_task(go_on())
    stand_in.task = task
    return task


def then(coroutine: Coroutine[object, None, T], done: Callable[[T], None]) -> Done[T] | None:
    """Run as far as possible now; the futures that it waits for run the rest, and done(its value) ends it.

    Two turns of the loop earlier than with a Task.  Nobody can cancel it; it must not ask for the current task, as
    asyncio.timeout does, nor raise: a later exception is only reported by the loop, and `done` never called.
    """
    try:
        waiting = coroutine.send(None)
    except StopIteration as stop:
        return Done(stop.value)
    _follow(coroutine, done, waiting)
    return None


def _follow(coroutine: Coroutine[object, None, T], done: Callable[[T], None], waiting: object) -> None:
    if waiting is None:  # a bare yield: only a turn of the loop
        asyncio.get_running_loop().call_soon(_go_on, coroutine, done)
        return
    future = cast("asyncio.Future[object]", waiting)
    future._asyncio_future_blocking = False  # as a Task does: it was awaited by somebody who knows how
    future.add_done_callback(lambda _: _go_on(coroutine, done))


def _go_on(coroutine: Coroutine[object, None, T], done: Callable[[T], None]) -> None:
    try:
        waiting = coroutine.send(None)
    except StopIteration as stop:
        done(stop.value)
    else:
        _follow(coroutine, done, waiting)
