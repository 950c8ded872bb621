import threading
import time

import pytest

from sparse_dict.ahead import ahead


def test_items_come_in_order_the_first_from_here_and_the_others_from_one_thread():
    makers = []

    def make(i):
        makers.append(threading.current_thread())
        return i * i

    assert list(ahead(map(make, range(50)))) == [i * i for i in range(50)]
    assert makers[0] is threading.current_thread()
    assert len(set(makers[1:])) == 1
    assert threading.current_thread() not in makers[1:]


def test_the_next_items_are_made_while_one_is_used_and_no_more_than_asked_for():
    made = []
    items = ahead((made.append(i) or i for i in range(100)), depth=3)
    for i in range(5):
        assert next(items) == i
        deadline = time.monotonic() + 10
        while len(made) < i + 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(made) == i + 4
    items.close()


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        yield 2
        raise OSError("the disk")

    found = ahead(items())
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(OSError, match="the disk"):
        next(found)


def test_nothing_is_made_for_a_user_who_has_left():
    made = []
    items = ahead((made.append(i) or i for i in range(100)), depth=2)
    next(items)
    items.close()
    there = len(made)
    time.sleep(0.05)
    assert there <= 4
    assert len(made) <= there + 1  # the one that was under way


def test_of_nothing_comes_nothing():
    assert list(ahead([])) == []
