"""Collectives are read from real compiled programs, whose sizes are known, and from each way XLA writes a group."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zipper_jax.aot import hlo
from zipper_jax.sharding.mesh import MeshConfig, make_mesh

MESH = make_mesh(MeshConfig(data=2, fsdp=4))


def compiled(function, *shapes_and_specs, out=P()):
    shapes = [jax.ShapeDtypeStruct(s, np.float32, sharding=NamedSharding(MESH, p)) for s, p in shapes_and_specs]
    return jax.jit(function, out_shardings=NamedSharding(MESH, out)).lower(*shapes).compile().as_text()


def test_a_gather_of_a_sharded_array():
    (found,) = hlo.collectives(compiled(lambda x: x * 2, ((64, 16), P("fsdp"))), 8)
    assert (found.kind, found.size, found.devices, found.times) == ("all-gather", 64 * 16 * 4, 4, 1)
    assert found.moved == 64 * 16 * 4 * 3 / 4


def test_a_sum_over_all_devices():
    (found,) = hlo.collectives(compiled(lambda x: x.sum(0), ((64, 16), P(("data", "fsdp")))), 8)
    assert (found.kind, found.size, found.devices) == ("all-reduce", 16 * 4, 8)
    assert found.moved == 2 * 16 * 4 * 7 / 8


def test_loop_bodies_count_once_per_iteration():
    def function(x, kernels):
        def body(carry, kernel):
            def inner(carry, _):
                return jnp.tanh(carry @ kernel), None

            return jax.lax.scan(inner, carry, None, length=3)[0], None

        return jax.lax.scan(body, x, kernels)[0]

    # The product is summed over a sharded axis: one all-reduce of [2, 16] per iteration, 5 x 3 iterations.
    text = compiled(function, ((2, 16), P()), ((5, 16, 16), P(None, "fsdp")))
    sums = [c for c in hlo.collectives(text, 8) if c.kind == "all-reduce"]
    assert [(c.size, c.devices, c.times) for c in sums] == [(2 * 16 * 4, 4, 15)]


def test_a_loop_of_unknown_length_is_reported_or_counted_as_asked():
    def function(x, kernel):
        def step(s):
            return jnp.tanh(s @ kernel) + s.sum()

        return jax.lax.while_loop(lambda s: s.sum() < 100, step, x)

    text = compiled(function, ((2, 16), P()), ((16, 16), P("fsdp")))
    with pytest.raises(hlo.UnknownLoopError, match="trip count"):
        hlo.collectives(text, 8)
    assert {c.times for c in hlo.collectives(text, 8, turns=7)} >= {7}


PROGRAM = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%half (p: f32[8]) -> f32[8] {
  ROOT %g.1 = f32[8]{0:T(128)} all-gather(%p), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %start = f32[8] fusion(%p), kind=kCustom, calls=%half
  %g.2 = f32[8]{0:T(128)} all-gather(%p), channel_id=9, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t = (s32[], f32[8]) tuple(%i, %g.2)
}

%shared (p: f32[8]) -> f32[8] {
  ROOT %a.1 = f32[100]{0} all-to-all(%p), channel_id=8, replica_groups={{0,1,2,3}}, dimensions={0}
}

%chosen (p: f32[8]) -> f8e4m3fn[64] {
  ROOT %g.3 = f8e4m3fn[64]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]{0:T(128)}) while(%x), condition=%condition, body=%body, metadata={op_name="loop"}
  %r = (bf16[4,8], f32[2]) all-reduce(%a, %b), channel_id=1, replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
  %s = f32[2]{0} reduce-scatter(%x), channel_id=2, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %q = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), channel_id=3, replica_groups={}, dimensions={0}
  %v = f32[16]{0} all-reduce-start(%x), channel_id=6, replica_groups=[1,2]<=[2], to_apply=%add
  %again = f32[8]{0} call(%x), to_apply=%shared
  %twice = f32[8]{0} call(%x), to_apply=%shared
  %u = f32[8]{0} conditional(%x, %x, %x), true_computation=%chosen, false_computation=%add
  %o = f32[8]{0} all-reduce(%x), channel_id=4, replica_groups={{0},{1}}, to_apply=%add
  ROOT %e = f32[8]{0} collective-permute(%x), channel_id=5, source_target_pairs={{0,1},{1,0}}
}
"""


def test_every_way_a_group_is_written():
    found = {c.kind + str(c.devices): c for c in hlo.collectives(PROGRAM, 4)}
    assert found["all-reduce4"].size == 4 * 8 * 2 + 2 * 4
    assert found["reduce-scatter4"].size == 32, "the whole array, of which each device keeps a quarter"
    gathers = [c for c in hlo.collectives(PROGRAM, 4) if c.kind == "all-gather"]
    sizes = {(c.size, c.times) for c in gathers}
    assert sizes == {(32, 6), (128, 1), (64, 1)}, "one channel in two places is one gather; a branch counts"
    assert found["all-reduce2"].size == 64, "of an all-reduce that is started only the result is named"
    twice = [c for c in hlo.collectives(PROGRAM, 4) if c.kind == "all-to-all"]
    assert len(twice) == 2, "what is called from two places runs twice"
    assert found["collective-permute2"].moved == 32
    assert "all-reduce1" not in found, "a group of one sends nothing"


ACROSS_A_LOOP = """HloModule m

%condition (p: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%first (p: f32[8]) -> f32[64] {
  ROOT %g.1 = f32[64]{0} all-gather(%p), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}
}

%last (p: f32[8]) -> f32[64] {
  ROOT %g.4 = f32[64]{0} all-gather(%p), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.1 (p: f32[8]) -> f32[64] {
  ROOT %g.2 = f32[64]{0} all-gather(%p), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.2 (p: f32[8]) -> f32[64] {
  ROOT %g.3 = f32[64]{0} all-gather(%p), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f.1 = f32[64] fusion(%p), kind=kCustom, calls=%async_collective_fusion.1
  ROOT %f.2 = f32[64] fusion(%p), kind=kCustom, calls=%async_collective_fusion.2
}

ENTRY %main (x: f32[8]) -> f32[8] {
  BEGINS
  %w = (s32[], f32[8]{0:T(128)}) while(%x), condition=%condition, body=%body
  ROOT %e = f32[64] fusion(%w), kind=kCustom, calls=%last
}
"""


@pytest.mark.parametrize("begins", ["%async-collective-start = f32[64] fusion(%x), kind=kCustom, calls=%first", ""])
def test_a_collective_that_goes_on_during_a_loop_is_one(begins):
    (found,) = hlo.collectives(ACROSS_A_LOOP.replace("BEGINS", begins), 8)
    assert (found.kind, found.size, found.times) == ("all-gather", 256, 1)


def test_a_collective_in_a_loop_alone_is_one_of_each_turn():
    text = ACROSS_A_LOOP.replace("BEGINS", "").replace("calls=%last", "calls=%condition")
    (found,) = hlo.collectives(text, 8)
    assert found.times == 6
