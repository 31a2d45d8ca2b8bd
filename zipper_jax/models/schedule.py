"""In which order blocks run and zips fire: pure Python on the configuration, no arrays.

A zip joins block k of one tower with block l of another. Every zip at a block reads pre-fusion states (the outputs of
the blocks), so the order is a topological order of pre- and post-fusion states. Blocks are numbered from 1, as in the
paper.
"""

from typing import NamedTuple

from zipper_jax.errors import UserError


class Source(NamedTuple):
    """One zip's effect on a receiving block: the member'th pair of ``zip`` reads ``tower`` behind block ``block``."""

    zip: str
    member: int
    tower: str
    block: int


class Fusion(NamedTuple):
    """The post-fusion state of ``tower`` behind ``block``: m + the sum of the effects, in sorted zip order."""

    tower: str
    block: int
    sources: tuple[Source, ...]


class Stage(NamedTuple):
    """Blocks ``first`` to ``last`` (from 1, inclusive) of some towers, then fusions of what is ready.

    runs: (tower, first, last). fusions: as they fire, all reading pre-fusion states.
    """

    runs: tuple[tuple[str, int, int], ...]
    fusions: tuple[Fusion, ...]


def zip_pairs(zip_config, towers) -> tuple[tuple[int, int], ...]:
    """The block pairs of one ZipConfig in the order of its ``towers``, sorted; raises UserError outside the towers."""
    a, b = zip_config.towers
    depth_a, depth_b = towers[a].num_layers, towers[b].num_layers
    if zip_config.intervals is not None:
        step_a, step_b = zip_config.intervals[a], zip_config.intervals[b]
        margin = 0 if zip_config.after_last_block else 1
        count = min((depth_a - margin) // step_a, (depth_b - margin) // step_b)
        if count < 1:
            raise UserError(
                f"zip {zip_config.name}: intervals {dict(zip_config.intervals)} give no zip in towers of {depth_a} and "
                f"{depth_b} blocks; use smaller intervals, explicit pairs, or after_last_block = True"
            )
        return tuple((n * step_a, n * step_b) for n in range(1, count + 1))
    for block_a, block_b in zip_config.pairs:
        if not (1 <= block_a <= depth_a and 1 <= block_b <= depth_b):
            raise UserError(
                f"zip {zip_config.name}: pair ({block_a}, {block_b}) lies outside towers of {depth_a} ({a}) and "
                f"{depth_b} ({b}) blocks; blocks are counted from 1"
            )
    if len(set(zip_config.pairs)) != len(zip_config.pairs):
        raise UserError(f"zip {zip_config.name}: a pair is given twice: {zip_config.pairs}")
    return tuple(sorted(zip_config.pairs))


def tower_fusions(config) -> dict[str, dict[int, tuple[Source, ...]]]:
    """tower -> block -> what is read there. A block that is only read from has an entry with no sources."""
    points: dict[str, dict[int, list[Source]]] = {name: {} for name in config.towers}
    for z in sorted(config.zips, key=lambda z: z.name):
        for index, pair in enumerate(zip_pairs(z, config.towers)):
            block = dict(zip(z.towers, pair, strict=True))
            for tower in z.towers:
                sources = points[tower].setdefault(block[tower], [])
                if tower in z.receivers:
                    other = z.other(tower)
                    sources.append(Source(z.name, index, other, block[other]))
    return {t: {b: tuple(s) for b, s in sorted(blocks.items())} for t, blocks in points.items()}


def make_schedule(config) -> tuple[Stage, ...]:
    """The stages of the joint forward pass. Raises UserError naming the blocks of a cycle.

    Round by round, every tower runs up to its next zip; then every zip fires whose states are there. A tower that waits
    for another's state keeps its place. A round in which nothing happens is a cycle.
    """
    points = tower_fusions(config)
    done = dict.fromkeys(sorted(config.towers), 0)  # blocks run
    passed = dict(done)  # the block behind which the tower has been fused, or needed no fusing
    stages = []
    while any(passed[tower] < config.towers[tower].num_layers for tower in done):
        runs, fusions = [], []
        for tower, ran in done.items():
            goal = min((b for b in points[tower] if b > passed[tower]), default=config.towers[tower].num_layers)
            if goal > ran:
                runs.append((tower, ran + 1, goal))
                done[tower] = goal
        for tower, block in done.items():
            sources = points[tower].get(block, ())
            if passed[tower] == block or any(source.block > done[source.tower] for source in sources):
                continue
            if sources:
                fusions.append(Fusion(tower, block, sources))
            passed[tower] = block
        if not runs and not fusions:
            raise UserError(_cycle_message(points, done, passed))
        stages.append(Stage(tuple(runs), tuple(fusions)))
    return tuple(stages)


def _cycle_message(points, done, passed) -> str:
    stuck = [
        f"{tower} block {block} waits for {' and '.join(f'{s.tower} block {s.block}' for s in points[tower][block])}"
        for tower, block in done.items()
        if passed[tower] < block
    ]
    return f"the zips form a cycle: {'; '.join(stuck)}; change ZipConfig.pairs so that later blocks join later blocks"


def group_stages(stages: tuple[Stage, ...]) -> tuple[tuple[Stage, ...], ...]:
    """Joins consecutive stages that one scan can run: equal numbers of blocks, the same zips one member further on."""
    kept = {read for stage in stages for read in _reads_elsewhere(stage)}
    groups: list[list[Stage]] = []
    for stage in stages:
        if groups and _follows(groups[-1][-1], stage, kept):
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return tuple(tuple(group) for group in groups)


def _follows(before: Stage, after: Stage, kept: set[tuple[str, int]]) -> bool:
    """Whether ``after`` is ``before`` over again, and neither needs or leaves a state for another stage."""
    for stage in (before, after):
        if not stage.fusions or _reads_elsewhere(stage) or any((t, last) in kept for t, _, last in stage.runs):
            return False

    def shape(stage, shift):
        runs = [(tower, last - first) for tower, first, last in stage.runs]
        return runs, [(f.tower, [(s.zip, s.member - shift, s.tower) for s in f.sources]) for f in stage.fusions]

    return shape(before, 0) == shape(after, 1)


def _reads_elsewhere(stage: Stage) -> set[tuple[str, int]]:
    """Pre-fusion states that the stage fuses or reads but that an earlier stage computed."""
    ends = {(tower, last) for tower, _, last in stage.runs}
    used = {(f.tower, f.block) for f in stage.fusions}
    used |= {(s.tower, s.block) for f in stage.fusions for s in f.sources}
    return used - ends
