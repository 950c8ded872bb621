"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """Cores that this process may run on, which containers and `taskset` make fewer."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
