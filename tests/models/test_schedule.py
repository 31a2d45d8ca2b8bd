"""The schedule against a plain reading of what depends on what; groups, cycles, pairs."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import IMAGE, SPEECH, TEXT, ZIP, pair, trio

from zipper_jax.models.config import ModalityConfig, ZipConfig, ZipperConfig
from zipper_jax.models.schedule import group_stages, make_schedule, zip_pairs
from zipper_jax.utils.errors import UserError

TOWERS = {"a": TEXT, "b": SPEECH, "c": IMAGE}


def config(*zips, towers=TOWERS):
    return ZipperConfig(towers=towers, modalities={t: ModalityConfig(t, 19) for t in towers}, zips=zips)


def points(zips):
    """tower -> block -> {(other tower, other block, zip, member)} written there, from the definition alone."""
    found = {}
    for z in zips:
        for index, blocks in enumerate(sorted(z.pairs)):
            for side in (0, 1):
                into, other = z.towers[side], z.towers[1 - side]
                if z.into is None or into in z.into:
                    found.setdefault((into, blocks[side]), set()).add((other, blocks[1 - side], z.name, index))
    return found


def has_cycle(zips, towers=TOWERS):
    """post(t, k) needs pre(t, k) and pre of its sources; pre(t, k) needs post(t, k - 1). Depth-first search."""
    found, state = points(zips), {}

    def visit(tower, block):  # the post-fusion state
        if block == 0 or state.get((tower, block)) == "done":
            return False
        if state.get((tower, block)) == "open":
            return True
        state[tower, block] = "open"
        needs = [(tower, block - 1), *((t, b - 1) for t, b, _, _ in found.get((tower, block), ()))]
        cyclic = any(visit(*need) for need in needs)
        state[tower, block] = "done"
        return cyclic

    return any(visit(tower, t.num_layers) for tower, t in towers.items())


def check_schedule(stages, zips, towers=TOWERS):
    """Every block once and in order, every fusion once, after its sources and before the next block of its tower."""
    ran, fused = dict.fromkeys(towers, 0), {}
    wanted = points(zips)
    for stage in stages:
        for tower, first, last in stage.runs:
            assert first == ran[tower] + 1
            assert all((tower, b) in fused or (tower, b) not in wanted for b in range(1, first))
            assert not any((tower, b) in wanted for b in range(first, last)), "ran past a zip"
            ran[tower] = last
        for fusion in stage.fusions:
            assert (fusion.tower, fusion.block) not in fused
            assert ran[fusion.tower] == fusion.block
            for source in fusion.sources:
                assert ran[source.tower] >= source.block
            assert [s.zip for s in fusion.sources] == sorted(s.zip for s in fusion.sources)
            fused[fusion.tower, fusion.block] = {(s.tower, s.block, s.zip, s.member) for s in fusion.sources}
    assert ran == {name: t.num_layers for name, t in towers.items()}
    assert fused == wanted


def zips_between(names):
    depths = [TOWERS[n].num_layers for n in names]
    one = st.tuples(st.integers(1, depths[0]), st.integers(1, depths[1]))
    pairs = st.lists(one, min_size=1, max_size=4, unique=True).map(tuple)
    return st.tuples(st.just(names), pairs, st.sampled_from([None, names[:1], names[1:]]))


def make_zips(drawn):
    return tuple(ZipConfig(towers=names, pairs=pairs, into=into) for names, pairs, into in drawn)


three_zips = st.tuples(zips_between(("a", "b")), zips_between(("c", "a")), zips_between(("b", "c")))


@given(st.one_of(st.tuples(zips_between(("a", "b"))), three_zips))
@settings(max_examples=300)
def test_any_zips_run_in_order_or_are_a_cycle(drawn):
    zips = make_zips(drawn)
    if has_cycle(zips):
        with pytest.raises(UserError, match="cycle"):
            config(*zips)
    else:
        check_schedule(make_schedule(config(*zips)), zips)


def test_cycle_names_its_blocks():
    crossed = ZipConfig(towers=("a", "b"), pairs=((1, 2), (2, 1)))
    with pytest.raises(UserError, match=r"a block 1 waits for b block 2.*b block 1 waits for a block 2"):
        config(crossed)


def test_the_same_crossing_in_one_direction_is_no_cycle():
    crossed = ZipConfig(towers=("a", "b"), pairs=((1, 2), (2, 1)), into=("a",))
    check_schedule(make_schedule(config(crossed)), (crossed,))


def test_cycle_through_three_towers():
    ring = [ZipConfig(towers=t, pairs=((1, 2),), into=t[:1]) for t in (("a", "b"), ("b", "c"), ("c", "a"))]
    with pytest.raises(UserError, match="cycle"):
        config(*ring)
    check_schedule(make_schedule(config(*ring[:2])), ring[:2])


@pytest.mark.parametrize(
    ("intervals", "after_last", "pairs"),
    [
        ((1, 2), False, ((1, 2), (2, 4))),
        ((1, 1), False, ((1, 1), (2, 2))),
        ((1, 1), True, ((1, 1), (2, 2), (3, 3))),
        ((3, 5), True, ((3, 5),)),
        ((2, 1), False, ((2, 1),)),
        ((1, 4), False, ((1, 4),)),
    ],
)
def test_intervals(intervals, after_last, pairs):
    z = ZipConfig(("text", "speech"), dict(zip(("text", "speech"), intervals)), after_last_block=after_last)
    assert zip_pairs(z, {"text": TEXT, "speech": SPEECH}) == pairs


def test_intervals_without_a_zip():
    with pytest.raises(UserError, match=r"intervals .* give no zip in towers of 3 and 5 blocks"):
        pair(zips=(dataclasses.replace(ZIP, intervals={"text": 3, "speech": 5}),))


@pytest.mark.parametrize("bad", [(0, 1), (4, 1), (1, 0), (1, 6), (-1, 1)])
def test_pairs_outside_the_towers(bad):
    with pytest.raises(UserError, match=r"is outside towers of 3 \(text\) and 5 \(speech\)"):
        pair(zips=(ZipConfig(("text", "speech"), pairs=((1, 1), bad)),))


def test_pairs_given_twice_or_not_at_all():
    with pytest.raises(UserError, match="given twice"):
        pair(zips=(ZipConfig(("text", "speech"), pairs=((1, 1), (1, 1))),))
    with pytest.raises(UserError, match="pairs"):
        pair(zips=(ZipConfig(("text", "speech"), pairs=()),))


def test_regular_zips_are_one_group_and_irregular_ones_are_not():
    groups = group_stages(make_schedule(pair()))
    assert [len(g) for g in groups] == [2, 1]
    assert groups[0][1].runs == (("speech", 3, 4), ("text", 2, 2))
    assert all(len(g) == 1 for g in group_stages(make_schedule(trio())))


@given(three_zips)
@settings(max_examples=100)
def test_groups_lose_and_reorder_nothing(drawn):
    zips = make_zips(drawn)
    if not has_cycle(zips):
        stages = make_schedule(config(*zips))
        assert tuple(s for g in group_stages(stages) for s in g) == stages
