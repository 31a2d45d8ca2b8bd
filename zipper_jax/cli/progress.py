"""One line that says how far a long piece of work is."""

import sys
import time


class Progress:
    """``progress(n)``: n more of ``total`` are done. Draws on a terminal; elsewhere a line every ten seconds."""

    def __init__(self, total: int, unit: str):
        self._total, self._unit, self._done = max(total, 1), unit, 0
        self._begun = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        finished = self._done >= self._total
        if finished or now - self._shown > (0.1 if self._live else 10.0):
            self._shown = now
            spent = now - self._begun
            left = spent * (self._total - self._done) / self._done if self._done else 0.0
            bar = "#" * int(30 * self._done / self._total)
            line = f"[{bar:30}] {self._done / self._total:4.0%} of {self._total:,} {self._unit}, {left:.0f} s left"
            print(f"\r{line}" if self._live else line, end="\n" if finished or not self._live else "", file=sys.stderr)
            sys.stderr.flush()
