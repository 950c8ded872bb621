"""Progress that suits where it is read: a bar on a terminal, a line now and then in a log file."""

import logging
import sys
import time
from typing import Self

from sparse_dict.machine import distributed

log = logging.getLogger(__name__)

LOG_EVERY_S = 15.0
FIRST_S = 2.0  # of a log's first line, which says how long it will take


class Progress:
    """Counts `unit`s up to `total` (None: unknown), with speed, time left and a few live values."""

    def __init__(self, description: str, total: int | None, unit: str, initial: int = 0) -> None:
        from tqdm import tqdm

        self.description = description
        self.total = total
        self.unit = unit
        self.done = initial
        self._begun = self._initial = initial
        self._started = time.monotonic()
        self._next_line = self._started + LOG_EVERY_S
        self._bar = (
            tqdm(
                desc=description, total=total, unit=unit, unit_scale=True,
                initial=initial, dynamic_ncols=True,
            )
            if sys.stderr.isatty() and distributed.main()
            else None
        )  # fmt: skip

    def advance(self, n: int, **values: float) -> None:
        """Count `n` more units; `values` are shown behind the bar, e.g. ``loss=4.2``."""
        first = self.done == self._begun
        self.done += n
        if first:  # what is compiled and warmed up says nothing of the time that is left
            self._initial, self._started = self.done, time.monotonic()
            self._next_line = self._started + FIRST_S
        if self._bar is not None:
            if values:
                shown = {key: f"{value:.4g}" for key, value in values.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(n)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LOG_EVERY_S
            whole, left = "", ""
            if self.total is not None:
                whole = f" of {self.total:,}"
                left = f", {(self.total - self.done) / max(self.rate, 1e-9):.0f} s left"
            tail = "".join(f", {key} {value:.4g}" for key, value in values.items())
            log.info(
                "%s: %s%s %s, %.0f/s%s%s",
                self.description, f"{self.done:,}", whole, self.unit, self.rate, left, tail,
            )  # fmt: skip

    def say(self, what: str) -> None:
        """Name what is done now, which may take long: beside the bar, or in a line."""
        if self._bar is not None:
            self._bar.set_description(f"{self.description}: {what}")
        elif distributed.main():
            log.info(
                "%s, %d of %s %s: %s", self.description, self.done, self.total, self.unit, what
            )

    @property
    def rate(self) -> float:
        """Units per second since the first of them were counted."""
        return (self.done - self._initial) / max(time.monotonic() - self._started, 1e-9)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
