"""The order in which blocks run and zips fire: pure Python on the configuration, no arrays.

A zip joins block k of one tower with block l of another, at a *stop* of each: after the block, or before it for fusions
with placement "inside". Soft tokens (placement "sequence") are read after a block of the source and enter before a
block of the receiver; those of a source that is read alone wait for nothing. Every zip at a stop reads the pre-fusion
state, so the schedule is a topological order of these states and their consumers. Blocks are numbered from 1, as in the
paper.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from zipper_jax.models.config_parts import Placement, TowerConfig, ZipConfig
from zipper_jax.models.fusion import fusion_class
from zipper_jax.utils.errors import UserError

if TYPE_CHECKING:
    from zipper_jax.models.config import ZipperConfig


class Source(NamedTuple):
    """A zip's effect at a stop of the receiver: pair number ``member`` of ``zip`` reads ``tower`` at ``block``, in this
    pass, or ``alone``, on its unimodal path."""

    zip: str
    member: int
    tower: str
    block: int
    alone: bool = False


class Read(NamedTuple):
    """A zip's read at a stop of the source: pair number ``member`` of ``zip`` reads it for the tower ``into``."""

    zip: str
    member: int
    tower: str
    block: int
    into: str
    inside: bool = False


class Fusion(NamedTuple):
    """The fusion at a stop of ``tower``.

    Placement "behind": the output m of ``block`` becomes m + the sum of the effects. "inside": ``block`` runs with the
    extra keys and values of its sources (none: it is only read). "sequence": soft tokens enter before ``block``.
    """

    tower: str
    block: int
    sources: tuple[Source, ...]
    placement: Placement = "behind"

    @property
    def inside(self) -> bool:
        """Whether it acts in the attention of ``block`` and reads inputs of blocks."""
        return self.placement == "inside"


class SoftTokens(NamedTuple):
    """A zip's soft tokens in the sequence of their receiver, made of the tokens of ``source``, from ``block`` on.

    ``alone``: the block of ``source`` after which it is read on its unimodal path; 0: it is read in the pass itself.
    ``stack``: how many consecutive tokens of ``source`` are one soft token, see `models.stacking`.
    """

    zip: str
    into: str
    source: str
    block: int
    alone: int = 0
    stack: int = 1

    def most(self, lengths: Mapping[str, int]) -> int:
        """The most soft tokens that sequences of ``lengths`` tokens of each tower give."""
        return lengths[self.source] // self.stack


class Stage(NamedTuple):
    """Blocks ``first`` to ``last`` (from 1, inclusive) of some towers, then the fusions at the stops reached.

    Attributes:
        runs: (tower, first, last).
        fusions: All read pre-fusion states.
        reads: Of the towers that reached a stop in this stage.
    """

    runs: tuple[tuple[str, int, int], ...]
    fusions: tuple[Fusion, ...]
    reads: tuple[Read, ...] = ()


def zip_pairs(zip_config: ZipConfig, towers: Mapping[str, TowerConfig]) -> tuple[tuple[int, int], ...]:
    """The block pairs of one ZipConfig in the order of its ``towers``, sorted.

    Raises:
        UserError: A block number outside the towers, a repeated pair, or no pair at all.
    """
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
    pairs = zip_config.pairs or ()
    for block_a, block_b in pairs:
        if not (1 <= block_a <= depth_a and 1 <= block_b <= depth_b):
            raise UserError(
                f"zip {zip_config.name}: pair ({block_a}, {block_b}) is outside towers of {depth_a} ({a}) and "
                f"{depth_b} ({b}) blocks; blocks are counted from 1"
            )
    if len(set(pairs)) != len(pairs):
        raise UserError(f"zip {zip_config.name}: a pair is given twice: {pairs}")
    return tuple(sorted(pairs))


def soft_tokens(config: "ZipperConfig", receiver: str) -> tuple[SoftTokens, ...]:
    """The soft tokens that enter ``receiver``, in the order in which they enter."""
    found = []
    for z in config.zips:
        fusion = fusion_class(z.fusion)
        if receiver in z.receivers and fusion.placement == "sequence":
            (pair,) = zip_pairs(z, config.towers)
            block = dict(zip(z.towers, pair, strict=True))
            source = z.other(receiver)
            at = (1, block[source]) if fusion.alone else (block[receiver], 0)
            found.append(SoftTokens(z.name, receiver, source, *at, stack=fusion.stack(z, source)))
    return tuple(sorted(found, key=lambda soft: (soft.block, soft.zip)))


def positions_used(config: "ZipperConfig", receiver: str, lengths: Mapping[str, int]) -> int:
    """Positions of a tower's sequence of ``lengths`` tokens of each tower: its own tokens and soft ones."""
    return lengths[receiver] + sum(soft.most(lengths) for soft in soft_tokens(config, receiver))


def read_alone(config: "ZipperConfig") -> dict[str, int]:
    """Tower -> the last block that it runs on its unimodal path, for soft tokens elsewhere."""
    found: dict[str, int] = {}
    for receiver in sorted(config.towers):
        for soft in soft_tokens(config, receiver):
            if soft.alone:
                found[soft.source] = max(soft.alone, found.get(soft.source, 0))
    return found


_BEFORE: dict[Placement, int] = {"behind": 0, "inside": 1, "sequence": 2}


class _Stops(NamedTuple):
    """Tower -> stop -> the sources of its fusion, and its reads.

    A stop is a number: 3 * block after the block, one less inside it, two less where soft tokens enter before it.
    """

    fusions: dict[str, dict[int, tuple[Source, ...]]]
    reads: dict[str, dict[int, tuple[Read, ...]]]


def _stops(config: "ZipperConfig") -> _Stops:
    """The stops of every tower, in order; one that is only read from has no sources."""
    fusions: dict[str, dict[int, list[Source]]] = {name: {} for name in config.towers}
    reads: dict[str, dict[int, list[Read]]] = {name: {} for name in config.towers}
    for z in sorted(config.zips, key=lambda z: z.name):
        placement, alone = fusion_class(z.fusion).placement, fusion_class(z.fusion).alone
        inside = placement == "inside"
        for index, pair in enumerate(zip_pairs(z, config.towers)):
            block = dict(zip(z.towers, pair, strict=True))
            for tower in z.towers:
                other = z.other(tower)
                if tower in z.receivers:
                    stop = 3 * (1 if alone else block[tower]) - _BEFORE[placement]
                    fusions[tower].setdefault(stop, []).append(Source(z.name, index, other, block[other], alone))
                if other in z.receivers and not alone:
                    stop = 3 * block[tower] - inside
                    fusions[tower].setdefault(stop, [])
                    if placement != "sequence":  # soft tokens are remembered by the blocks that they go through
                        read = Read(z.name, index, tower, block[tower], other, inside)
                        reads[tower].setdefault(stop, []).append(read)
    return _Stops(
        {t: {s: tuple(found) for s, found in sorted(stops.items())} for t, stops in fusions.items()},
        {t: {s: tuple(found) for s, found in stops.items()} for t, stops in reads.items()},
    )


def make_schedule(config: "ZipperConfig", towers: Collection[str] | None = None) -> tuple[Stage, ...]:
    """The stages of a pass over ``towers`` (None: all); states of other towers are already cached.

    In each round, every tower runs to its next stop, then all fusions fire whose source states are available. Towers
    that wait for another's state do not advance. A round without progress means a cycle.

    Raises:
        UserError: A cycle; the message names the blocks.
    """
    stops, depth = _stops(config), {t: 3 * config.towers[t].num_layers for t in config.towers}
    reached = dict.fromkeys(sorted(config.towers if towers is None else towers), 0)
    passed, ran = dict(reached), dict(reached)
    stages: list[Stage] = []
    while any(passed[t] < depth[t] for t in reached):
        before = dict(reached), dict(passed)
        runs: list[tuple[str, int, int]] = []
        fusions: list[Fusion] = []
        reads: list[Read] = []
        for tower in reached:
            goal = min((s for s in stops.fusions[tower] if s > passed[tower]), default=depth[tower])
            if goal > reached[tower]:
                reached[tower] = goal
                reads += stops.reads[tower].get(goal, ())
            if goal // 3 > ran[tower]:
                runs.append((tower, ran[tower] + 1, goal // 3))
                ran[tower] = goal // 3
        for tower, stop in reached.items():
            sources = stops.fusions[tower].get(stop, ())
            there = [s for s in sources if s.tower in reached and not s.alone]
            waits = any(_stop_of(s, stop) > reached[s.tower] for s in there)
            if passed[tower] == stop or waits:
                continue
            placement = _placement(stop)
            if sources or placement == "inside":
                fusions.append(Fusion(tower, _block(stop), sources, placement))
            passed[tower] = stop
            ran[tower] += placement == "inside"
        if (reached, passed) == before:
            raise UserError(_cycle_message(stops, reached, passed))
        if runs or fusions:
            stages.append(Stage(tuple(runs), tuple(fusions), tuple(reads)))
    return tuple(stages)


def _stop_of(source: Source, stop: int) -> int:
    """The stop at which ``source`` is read for the fusion at ``stop``."""
    return 3 * source.block - (_placement(stop) == "inside")


def _block(stop: int) -> int:
    return (stop + 2) // 3


def _placement(stop: int) -> Placement:
    return next(placement for placement, before in _BEFORE.items() if (stop + before) % 3 == 0)


def _cycle_message(stops: _Stops, reached: Mapping[str, int], passed: Mapping[str, int]) -> str:
    stuck = []
    for tower, stop in reached.items():
        if passed[tower] < stop:
            sources = " and ".join(f"{s.tower} block {s.block}" for s in stops.fusions[tower][stop])
            stuck.append(f"{tower} block {_block(stop)} waits for {sources}")
    return f"the zips form a cycle: {'; '.join(stuck)}; change ZipConfig.pairs so that later blocks join later blocks"


def group_stages(stages: tuple[Stage, ...]) -> tuple[tuple[Stage, ...], ...]:
    """Group consecutive stages that one scan can run: equal numbers of blocks, the same zips at the next member."""
    present = {tower for stage in stages for tower, _, _ in stage.runs}
    present |= {fusion.tower for stage in stages for fusion in stage.fusions}
    kept = {read for stage in stages for read in _reads_elsewhere(stage, present)}
    groups: list[list[Stage]] = []
    for stage in stages:
        if groups and _follows(groups[-1][-1], stage, kept, present):
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return tuple(tuple(group) for group in groups)


State = tuple[str, int, bool]
"""(tower, block, inside): the state that a zip at that stop reads."""


def _follows(before: Stage, after: Stage, kept: set[State], present: set[str]) -> bool:
    """Whether ``after`` repeats ``before`` and neither reads a state of, or leaves one for, another stage."""
    for stage in (before, after):
        if any(f.placement == "sequence" for f in stage.fusions):  # the receiver has more tokens from here on
            return False
        if not (stage.fusions or stage.reads) or _reads_elsewhere(stage, present) or _states(stage) & kept:
            return False

    def shape(stage: Stage, shift: int) -> object:
        runs = [(tower, last - first) for tower, first, last in stage.runs]
        fired = [(f.tower, f.placement, [(s.zip, s.member - shift, s.tower) for s in f.sources]) for f in stage.fusions]
        return runs, fired, [(r.zip, r.member - shift, r.tower, r.into) for r in stage.reads]

    return shape(before, 0) == shape(after, 1)


def _states(stage: Stage) -> set[State]:
    """States that the stage computes and zips may read: outputs of its runs, inputs of the blocks it runs inside."""
    inside = {(f.tower, f.block, True) for f in stage.fusions if f.inside}
    return inside | {(tower, last, False) for tower, _, last in stage.runs}


def _reads_elsewhere(stage: Stage, present: set[str]) -> set[State]:
    """States that the stage fuses or reads and an earlier stage computed."""
    used = {(f.tower, f.block, f.inside) for f in stage.fusions if f.placement != "sequence"}
    used |= {
        (s.tower, s.block, f.inside) for f in stage.fusions for s in f.sources if s.tower in present and not s.alone
    }
    used |= {(r.tower, r.block, r.inside) for r in stage.reads}
    return used - _states(stage)
