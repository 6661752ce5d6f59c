from __future__ import annotations

import asyncio

from hpcsh.events import Event, EventBus, ImagePulled
from hpcsh.model import Image


def pulled(name: str) -> ImagePulled:
    return ImagePulled(Image(reference=name, path=f"/{name}"))


async def take(bus: EventBus, after: int, count: int) -> list[Event]:
    found: list[Event] = []
    async for event in bus.listen(after):
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_every_listener_gets_every_event_in_order() -> None:
    bus = EventBus()
    bus.publish(pulled("a"), 1.0)
    readers = [asyncio.create_task(take(bus, 0, 3)) for _ in range(5)]
    await asyncio.sleep(0)
    bus.publish(pulled("b"), 2.0)
    bus.publish(pulled("c"), 3.0)
    for found in await asyncio.gather(*readers):
        assert [e.number for e in found] == [1, 2, 3]


async def test_a_listener_resumes_by_number() -> None:
    bus = EventBus()
    for name in "abcd":
        bus.publish(pulled(name), 1.0)
    assert [e.number for e in await take(bus, 2, 2)] == [3, 4]
    assert bus.last == 4
