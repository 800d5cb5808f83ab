"""Coroutines that start at once, with a Task and without."""

import asyncio

import pytest

from mta.eager import Done, start, then


async def after(*waited: "asyncio.Future[int] | None") -> int:
    """The sum of what these futures bring; None is a turn of the loop."""
    total = 0
    for each in waited:
        if each is None:
            await asyncio.sleep(0)
        else:
            total += await each
    return total


def brought(value: int) -> "asyncio.Future[int]":
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


async def test_who_need_not_wait_is_done_at_once() -> None:
    loop, heard, returned = asyncio.get_running_loop(), list[int](), list[object]()

    def from_the_loop() -> None:
        returned.append(start(after(), loop))
        returned.append(then(after(brought(3), brought(4)), heard.append))

    loop.call_soon(from_the_loop)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [each.value for each in returned if isinstance(each, Done)] == [0, 7]
    assert heard == []


async def test_who_waits_is_heard_of_when_the_last_future_is_there() -> None:
    loop, heard = asyncio.get_running_loop(), list[int]()
    first, second = loop.create_future(), loop.create_future()
    task = start(after(first, None, second), loop)
    assert then(after(first, None, second), heard.append) is None
    assert isinstance(task, asyncio.Task)
    first.set_result(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert heard == [] and not task.done()
    second.set_result(2)
    assert await task == 3
    assert heard == [3]


async def test_a_future_that_fails_fails_inside() -> None:
    heard = list[str]()
    future = asyncio.get_running_loop().create_future()

    async def careful() -> str:
        try:
            await future
        except OSError as error:
            return str(error)
        return ""

    assert then(careful(), heard.append) is None
    future.set_exception(OSError("no space"))
    await asyncio.sleep(0)
    assert heard == ["no space"]


async def test_without_a_task_the_answer_comes_in_the_turn_after_the_future() -> None:
    order = list[str]()
    future = asyncio.get_running_loop().create_future()
    assert then(after(future), lambda _: order.append("heard")) is None
    future.set_result(0)
    asyncio.get_running_loop().call_soon(order.append, "next turn")
    await asyncio.sleep(0)
    assert order == ["heard", "next turn"]


async def test_an_exception_is_the_callers_in_the_first_step_and_the_loops_later() -> None:
    loop, reported, heard = asyncio.get_running_loop(), list[BaseException](), list[int]()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    future = loop.create_future()

    async def broken() -> int:
        raise ValueError("at once")

    async def later() -> int:
        await future
        raise ValueError("later")

    with pytest.raises(ValueError, match="at once"):
        then(broken(), heard.append)
    assert then(later(), heard.append) is None
    future.set_result(0)
    await asyncio.sleep(0)
    assert [str(error) for error in reported] == ["later"]
    assert heard == []
