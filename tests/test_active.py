"""Which tapes record, where: pauses within pauses, recordings within pauses, threads and tasks."""

import asyncio
import threading

import pytest

import tapegrad as tg
from tapegrad.core.active import ACTIVE, Paused, current_context


def test_a_pause_within_a_pause_leaves_the_outer_one_in_place():
    a, b = tg.Tape(), tg.Tape()
    with a, a.pause():
        with b.pause():
            pass
        assert isinstance(ACTIVE.get(), Paused)
        v = tg.Variable(2.0) * 3.0
    assert v._slot == 0
    assert ACTIVE.get() is None
    assert len(a) == 0


def test_a_recording_within_a_pause_ends_where_the_pause_goes_on():
    a, b = tg.Tape(), tg.Tape()
    x = tg.Variable(2.0)
    with a, a.pause():
        with b:
            y = x * x
        assert isinstance(ACTIVE.get(), Paused)
        x * y
    assert (len(a), len(b)) == (0, 1)
    assert ACTIVE.get() is None


def test_tapes_that_do_not_end_in_the_order_in_which_they_began_each_keep_what_ran_meanwhile():
    a, b, x = tg.Tape(), tg.CapacitorTape(3), tg.Variable(2.0)
    a.begin()
    x * x
    b.begin()
    x * x
    a.stop()
    x * x
    b.stop()
    assert (len(a), len(b)) == (2, 2)
    assert ACTIVE.get() is None


def test_a_context_is_a_thread_and_a_task():
    found = []
    thread = threading.Thread(target=lambda: found.append(current_context()))
    thread.start()
    thread.join()
    assert found[0] != current_context()
    assert found[0][1] is current_context()[1] is None

    async def two():
        async def one():
            return current_context()

        here = current_context()
        return here, current_context(), await asyncio.create_task(one())

    here, again, other = asyncio.run(two())
    assert here == again != other
    assert here[0] == other[0] == threading.get_ident()
    assert here[1] is not None


def test_a_task_cannot_stop_what_another_began():
    async def main():
        tape = tg.CapacitorTape(3)
        tape.begin()

        async def stop():
            with pytest.raises(tg.errors.RecordingError, match="another thread or task"):
                tape.stop()

        await asyncio.create_task(stop())
        tape.stop()
        assert not tape.recording

    asyncio.run(main())
