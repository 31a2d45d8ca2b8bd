"""Skipped batches: update n reads the n-th batch that is not skipped. A pure function, so that resuming is exact."""

from collections.abc import Iterable, Sequence


class Skips:
    """Sorted, disjoint ranges of skipped batches; immutable.

    A batch's number is its index in the data order, from 0; the data order itself never changes.
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
        """The number of the batch that the update after ``step`` applied ones reads."""
        number = step
        for start, stop in self.ranges:
            if start > number:
                break
            number += stop - start
        return number

    def after(self, number: int) -> int:
        """The number of the next batch after ``number`` that is not skipped."""
        number += 1
        for start, stop in self.ranges:
            if start <= number < stop:
                number = stop
        return number

    def plus(self, *ranges: Sequence[int]) -> "Skips":
        """These ranges and more."""
        return Skips([*self.ranges, *ranges])

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def as_json(self) -> list[list[int]]:
        """The ranges as lists, for a checkpoint."""
        return [list(pair) for pair in self.ranges]
