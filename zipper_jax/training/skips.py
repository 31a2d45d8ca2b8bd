"""Which batch an update reads: the n-th of those that are not left out. A pure function, so that resuming is exact."""

from collections.abc import Iterable, Sequence


class Skips:
    """Ranges of batches that are left out, sorted and apart; immutable.

    A batch's number is its place in the data order from 0; the data order itself never changes.
    """

    def __init__(self, ranges: Iterable[Sequence[int]] = ()) -> None:
        merged: list[tuple[int, int]] = []
        for start, stop in sorted((int(start), int(stop)) for start, stop in ranges):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        self.ranges = tuple(merged)

    def batch(self, step: int) -> int:
        """The batch that the update after ``step`` applied ones reads."""
        number = step
        for start, stop in self.ranges:
            if start > number:
                break
            number += stop - start
        return number

    def after(self, number: int) -> int:
        """The next batch behind ``number`` that is not left out."""
        number += 1
        for start, stop in self.ranges:
            if start <= number < stop:
                number = stop
        return number

    def plus(self, *ranges: Sequence[int]) -> "Skips":
        """With more ranges."""
        return Skips([*self.ranges, *ranges])

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def as_json(self) -> list[list[int]]:
        """For a checkpoint."""
        return [list(pair) for pair in self.ranges]
