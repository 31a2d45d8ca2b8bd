"""Profiles by the compiler's cycles: a small program compiled for a TPU, whose products and loops are known."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from zipper_jax.aot import bundles, kernels, profile
from zipper_jax.sharding.chips import chip
from zipper_jax.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LIBTPU = ROOT / ".cache" / "libtpu"
KIND = "TPU v5 lite"
L, B, D, T, N, H, V = 3, 2, 256, 256, 4, 128, 8192

PROGRAM = f"""
import json, os, sys
os.environ |= {{"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}}
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from zipper_jax.aot.topology import devices
from zipper_jax.ops.interval_attention.pallas_tpu import attention
from zipper_jax.ops.vocab_loss import OutputHead, vocab_loss

s = SingleDeviceSharding(devices("v5e:1x1")[0])
def like(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=s)

def plain(x, w, q):
    def body(c, w):
        with jax.named_scope("towers/a"):
            c = jnp.tanh(c @ w)
            with jax.named_scope("norm"):
                c = c * jax.lax.rsqrt(jnp.mean(jnp.square(c.astype(jnp.float32)), -1, keepdims=True)).astype(c.dtype)
        return c, None
    y, _ = jax.lax.scan(body, x, w)
    with jax.named_scope("self_attention"):
        weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, q).astype(jnp.float32), -1)
    with jax.named_scope("optimizer"):
        y = jax.lax.cond(weights.sum() > 0, lambda y: y * 2 - 1, lambda y: y, y)
        return jax.lax.cond(weights.sum() < 0, jax.named_scope("rarely")(lambda y: y @ w[0]), lambda y: y, y), weights

def kernel(q, k, start, end):
    with jax.named_scope("self_attention"):
        def out(q, k):
            once = attention(q, k, k, start, end, scale=0.1)[0]
            return attention(once, k, k, start, end, scale=0.1)[0].astype(jnp.float32).sum()  # an equal kernel
        return jax.grad(out, argnums=(0, 1))(q, k)

def vocabulary(x, table, targets, weights):
    with jax.named_scope("loss"):
        return jax.grad(lambda x: vocab_loss(x, [table], targets, weights, OutputHead(implementation="auto")).total)(x)

q, ranges = like({B}, {T}, {N}, {H}), like({B}, {T}, dtype="int32")
programs = {{
    "plain": jax.jit(plain).lower(like({T}, {D}), like({L}, {D}, {D}), q),
    "kernel": jax.jit(kernel).lower(q, like({B}, {T}, {N // 2}, {H}), ranges, ranges),
    "vocabulary": jax.jit(vocabulary).lower(
        like({B}, {T}, {D}), like({V}, {D}), ranges, like({B}, {T}, dtype="float32")
    ),
    "vocabulary, several blocks": jax.jit(vocabulary).lower(
        like({B}, {4 * T}, {D}), like({V}, {D}), like({B}, {4 * T}, dtype="int32"), like({B}, {4 * T}, dtype="float32")
    ),
}}
print(json.dumps({{name: lowered.compile().as_text() for name, lowered in programs.items()}}))
"""

pytestmark = pytest.mark.skipif(find_spec("libtpu") is None and not LIBTPU.is_dir(), reason="no libtpu")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[dict[str, str], Path]:
    folder = tmp_path_factory.mktemp("dumped")
    paths = [str(ROOT), str(LIBTPU), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "LIBTPU_INIT_ARGS": bundles.dump_flags(str(folder)),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), folder


def test_loops_branches_and_products_are_counted(compiled):
    found = profile.profile(compiled[0]["plain"], KIND)
    assert "rarely" in compiled[0]["plain"], "a branch that is not counted"
    assert sum(o.flops for o in found.operations) == 2 * T * D * D * L + 2 * B * N * T * T * H
    parts = {part.name: part for part in found.parts(chip(KIND))}
    assert {"tower a", "norms", "self-attention", "optimizer"} <= set(parts)
    assert all(0 <= part.ideal <= part.seconds for part in parts.values())
    assert sum(part.seconds for part in parts.values()) == pytest.approx(found.seconds)
    # A product takes at least its time at the peak rate, and the loop's counts every iteration.
    product = max((o for o in found.operations if o.part == "tower a"), key=lambda o: o.flops)
    assert product.times == L
    assert product.cycles / found.clock > 0.9 * product.flops / chip(KIND).flops


def test_kernels_are_counted_or_refused(compiled):
    text, folder = compiled[0]["kernel"], compiled[1]
    with pytest.raises(UserError, match=r"custom kernel 'interval_attention.*cycles are not known"):
        profile.profile(text, KIND)
    found = kernels.kernel_calls(text)
    assert len(found) == 4
    calls = sorted(set(found.values()))
    assert [(c.rows, c.heads, c.kv_heads, c.queries, c.keys, c.head_dim, c.backward) for c in calls] == [
        (B, N, N // 2, T, T, H, False), (B, N, N // 2, T, T, H, True),
    ]  # fmt: skip
    schedules = bundles.schedules(folder)
    assert not found.keys() <= schedules.keys()  # equal kernels are scheduled once
    one, four = (kernels.kernel_costs(text, schedules, chip(KIND), documents) for documents in (1, 4))
    assert set(one) == set(kernels.kernel_calls(text))
    assert all(one[name].flops > 3 * four[name].flops > 0 for name in one)
    found = profile.profile(text, KIND, one)
    attention = sum(o.cycles for o in found.operations if o.part == "self-attention")
    assert attention >= sum(cost.cycles for cost in one.values()) > 0


@pytest.mark.parametrize(("name", "tokens"), [("vocabulary", B * T), ("vocabulary, several blocks", 4 * B * T)])
def test_the_vocabularys_kernel_is_counted(compiled, name, tokens):
    """Once, and its two others in the branch that is taken rarely not; no logits are held."""
    text, folder = compiled[0][name], compiled[1]
    calls = kernels.vocab_calls(text)
    assert sorted((c.tokens, c.vocabulary, c.embed_dim, c.top) for c in calls.values()) == [
        *[(tokens, V, D, False)] * 2, (tokens, V, D, True),
    ]  # fmt: skip
    costs = kernels.kernel_costs(text, bundles.schedules(folder), chip(KIND), 1)
    assert costs.keys() == calls.keys()
    found = profile.profile(text, KIND, costs)
    counted = [o for o in found.operations if o.flops]
    assert [o.flops for o in counted] == [4 * tokens * V * D]
    assert counted[0].part == "logits and loss"
    assert 1 < counted[0].cycles / found.clock / (counted[0].flops / chip(KIND).flops) < 1.5
    assert f"[{tokens},{V}]" not in text


def test_a_comparison_names_every_part(compiled):
    found = profile.as_json(profile.profile(compiled[0]["plain"], KIND), chip(KIND))
    faster = {**found, "parts": {"norms": {"seconds": 2 * found["parts"]["norms"]["seconds"], "ideal": 0.0}}}
    rows = {line[:28].strip(): line.split() for line in profile.compare(found, faster)}
    assert rows["norms"][-1] == "0.50"
    assert rows["optimizer"][-1] == "new"
    with pytest.raises(UserError, match="against"):
        profile.compare(found, {**found, "device": "TPU v5"})


def test_an_unknown_device_or_a_program_for_a_cpu_is_refused():
    with pytest.raises(UserError, match="no clock is known for 'TPU v9'"):
        profile.profile("", "TPU v9")
    with pytest.raises(UserError, match="states no cycles"):
        profile.profile("ENTRY %main (x: f32[2]) -> f32[2] {\n  ROOT %x = f32[2]{0} parameter(0)\n}\n", KIND)


COPIES = """HloModule m, is_scheduled=true
ENTRY %main (x: bf16[1024,1024]) -> bf16[1024,1024] {
  %x = bf16[1024,1024]{1,0} parameter(0)
  %start.1 = ((bf16[1024,1024]{1,0}), bf16[512,1024]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) slice-start(%x), slice={[0:512]}
  %start.2 = (bf16[1024,1024]{1,0:S(1)}, bf16[1024,1024]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %a = bf16[8,128]{1,0:S(1)} add(%x1, %x1), backend_config={"estimated_cycles":"BUSY"}
  %b = bf16[1024,1024]{1,0} negate(%x), backend_config={"estimated_cycles":"READ"}
  %done.1 = bf16[512,1024]{1,0:S(1)} slice-done(%start.1)
  %c = bf16[8,128]{1,0:S(1)} add(%a, %a), backend_config={"estimated_cycles":"LATER"}
  %done.2 = bf16[1024,1024]{1,0:S(1)} copy-done(%start.2)
  ROOT %sum = bf16[1024,1024]{1,0:S(1)} scatter(%done.2, %done.1)
}
"""


@pytest.mark.parametrize("busy, later", [(0, 0), (500, 0), (1500, 100), (2000, 1000), (9000, 0), (9000, 9000)])
def test_asynchronous_copies_take_the_bandwidth_that_operations_leave(busy, later):
    peak = chip(KIND)

    def cycles(size: float) -> float:
        return size / peak.bandwidth * peak.clock

    half, whole = cycles(1024 * 1024), cycles(2 * 1024 * 1024)
    read = 2 * whole + 700  # reads and writes an array and leaves the memory idle for 700 cycles
    text = COPIES.replace("BUSY", str(busy)).replace("READ", str(int(read))).replace("LATER", str(later))
    found = profile.profile(text, KIND)
    left = busy + int(read) - 2 * whole  # idle cycles of the memory before the first copy is needed
    first = max(0.0, half - left)
    second = max(0.0, whole - max(0.0, left - half) - later)
    expected = busy + int(read) + later + first + second
    assert found.seconds * peak.clock == pytest.approx(expected, abs=1)
    moved = sum(o.moved for o in found.operations)
    assert moved == pytest.approx(1024 * 1024 + 2 * 1024 * 1024 * 3, abs=64)
    assert found.unestimated == {"sum": 1}
    assert any("no cycles" in line for line in profile.lines(found, peak, None, "step"))
