import threading
import time

import pytest

from sparse_dict.machine.background import mapped, prefetched


def test_items_come_in_order_and_all_from_one_other_thread():
    makers = []

    def make(i):
        makers.append(threading.current_thread())
        return i * i

    assert list(prefetched(map(make, range(50)))) == [i * i for i in range(50)]
    assert len(set(makers)) == 1
    assert threading.current_thread() not in makers


def test_the_next_items_are_made_while_one_is_used_and_no_more_than_asked_for():
    made = []
    items = prefetched((made.append(i) or i for i in range(100)), depth=3)
    for i in range(5):
        assert next(items) == i
        deadline = time.monotonic() + 10
        while len(made) < i + 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(made) == i + 4
    items.close()


def test_of_nothing_comes_nothing():
    assert list(prefetched([])) == []
    assert list(mapped(str, [], threads=3)) == []


def test_several_threads_work_at_once_and_their_results_come_in_order():
    together = threading.Barrier(3, timeout=10)

    def make(i):
        together.wait()
        return i * i

    assert list(mapped(make, range(9), threads=3)) == [i * i for i in range(9)]


def test_an_error_comes_where_its_item_would_have_come():
    def make(i):
        return 1 // (2 - i)

    for found in (prefetched(map(make, range(9))), mapped(make, range(9), threads=3)):
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(found)


def test_no_more_is_made_than_asked_for_and_nothing_for_a_user_who_has_left():
    made = []

    def make(i):
        made.append(i)
        return i

    for items in (prefetched(map(make, range(100)), depth=4), mapped(make, range(100), threads=3)):
        made.clear()
        for i in range(5):
            assert next(items) == i
            time.sleep(0.01)
            assert len(made) <= i + 1 + 4
        items.close()
        there = len(made)
        time.sleep(0.05)
        assert len(made) <= there + 3  # what was under way
