from __future__ import annotations

from glmquant.memory import PAGE_NBYTES, Memory


def test_memory_begins_at_a_page_and_keeps_its_place_until_it_grows() -> None:
    memory = Memory()
    memory.fit(10)
    first = memory.address
    assert first % PAGE_NBYTES == 0
    memory.view[:2] = b"ab"
    memory.fit(PAGE_NBYTES)
    assert (memory.address, bytes(memory.view[:2])) == (first, b"ab")
    memory.fit(PAGE_NBYTES + 1)
    assert len(memory.view) == 2 * PAGE_NBYTES
