"""Work in parts of about equal size: for the GPUs of a machine, for the workers of a launch."""

from collections.abc import Sequence


def balanced(loads: Sequence[float], parts: int) -> list[list[int]]:
    """Indices of `loads` in at most `parts` parts of about equal load, none of them empty.

    The heaviest are handed out first, each to the part that is lightest by then.
    """
    shares: list[list[int]] = [[] for _ in range(min(parts, len(loads)))]
    for i in sorted(range(len(loads)), key=lambda i: -loads[i]):
        lightest = min(shares, key=lambda share: (sum(loads[j] for j in share), len(share)))
        lightest.append(i)
    return [sorted(share) for share in shares]
