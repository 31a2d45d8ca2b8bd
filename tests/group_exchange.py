"""One process of a group that only exchanges values: ``group_exchange.py HOST:PORT COUNT INDEX [FAILING]``.

It prints what it has seen as JSON; process FAILING (or "all") fails after the exchanges, while the others wait for it.
"""

import json
import sys

from zipper_jax.utils import distributed
from zipper_jax.utils.distributed import Group

ITEMS = list("abcdefg")

if __name__ == "__main__":
    where, count, index, *failing = sys.argv[1:]
    distributed.join(Group(where, int(count), int(index), heartbeat_seconds=60, join_seconds=100))
    with distributed.watched():
        own: list[str] = []

        def work(item: str) -> list:
            own.append(item)
            return [item, len(own), 0.1 + 0.2]

        shared = list(distributed.share(ITEMS, work))
        large = [len(text) for text in distributed.gather(index * 3_000_000)]
        seen = {"own": own, "shared": shared, "large": large, "first": distributed.from_first(index)}
        print(json.dumps(seen), flush=True)
        distributed.gather("printed")
        if failing in ([index], ["all"]):
            distributed.fail(2, f"error: process {index} cannot")
        if failing:
            distributed.gather("")
