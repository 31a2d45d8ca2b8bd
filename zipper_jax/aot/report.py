"""Report on a program compiled ahead of time: memory, collectives, estimated time."""

import re
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

import jax
from jax.sharding import Mesh

from zipper_jax.aot.bounds import Bounds, seconds
from zipper_jax.aot.hlo import Collective, collectives
from zipper_jax.sharding.chips import chip
from zipper_jax.training.config import TrainConfig
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.readable import size


@dataclass(frozen=True)
class Compiled:
    """Properties of a compiled program.

    Attributes:
        device: jax's ``device_kind``.
        mesh: Axis -> size.
        peak: Peak memory per device, in bytes.
        limit: Memory limit of a program, in bytes; None: not known.
        collectives: Most bytes first.
        compile_seconds: On this machine.
        bounds: Lower bounds on its cost.
        notes: Axes that are replicated because they do not divide.
        hlo: The optimised program.
        model_flops: Of one device in one step, without recomputation; None: not a training step.
        tokens: Most iterations of the loop over tokens; None: not a program that decodes.
    """

    device: str
    mesh: dict[str, int]
    peak: int
    limit: float | None
    collectives: list[Collective]
    compile_seconds: float
    bounds: Bounds
    notes: list[str] = field(default_factory=list)
    hlo: str = field(default="", repr=False)
    model_flops: float | None = None
    tokens: int | None = None

    @property
    def sent(self) -> float:
        """Bytes that a device sends per step."""
        return sum(c.moved for c in self.collectives)

    def as_json(self) -> dict[str, Any]:
        """JSON for result files, with collectives summed by kind."""
        kinds: dict[str, float] = {}
        for c in self.collectives:
            kinds[c.kind] = kinds.get(c.kind, 0.0) + c.moved
        own = {k: v for k, v in asdict(self).items() if k not in ("collectives", "bounds", "notes", "hlo")}
        libtpu = ".".join(version("libtpu").split(".")[:3])  # figures change with the compiler
        return {**own, "libtpu": libtpu, "bounds": self.bounds._asdict(), "sent": self.sent, "sent_by_kind": kinds}


def compiled(
    lowered: Any, advice: list[str], mesh: Mesh, bounds: Bounds, notes: list[str], turns: int | None = None
) -> Compiled:
    """Compile a lowered program.

    Args:
        lowered: From ``jit(...).lower(...)``.
        advice: What to change if it does not fit.
        mesh: Its devices.
        bounds: Lower bounds on its cost.
        notes: Notes to print.
        turns: Iterations to assume for loops of unknown trip count; None: there are none.

    Raises:
        UserError: It exceeds the devices' memory; the message has its largest buffers.
    """
    began = time.perf_counter()
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise _explained(error, advice) from None
    took = time.perf_counter() - began
    kind, text = mesh.devices.flat[0].device_kind, done.as_text()
    known = chip(kind)
    return Compiled(
        device=kind,
        mesh=dict(mesh.shape),
        peak=peak_memory(done),
        limit=known.memory if known else None,
        collectives=collectives(text, mesh.size, turns),
        compile_seconds=took,
        bounds=bounds,
        notes=notes,
        hlo=text,
    )


def peak_memory(compiled: Any) -> int:
    """Peak memory per device in bytes: arguments, results that do not alias them, temporaries and code."""
    m = compiled.memory_analysis()
    whole = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes + m.temp_size_in_bytes
    peak = getattr(m, "peak_memory_in_bytes", 0)
    return int(max(peak, whole) + m.generated_code_size_in_bytes)


def mesh_advice(config: TrainConfig) -> str:
    """Advice for any program that exceeds memory."""
    return f"MeshConfig.fsdp (now {config.mesh.fsdp}) or tensor (now {config.mesh.tensor}) higher"


def _explained(error: Exception, advice: list[str]) -> UserError:
    """XLA's out-of-memory error, shortened: needed and available memory, largest buffers, what to change."""
    text = str(error)
    if "RESOURCE_EXHAUSTED" not in text:
        return UserError(f"compilation failed: {text.splitlines()[0]}")
    largest = re.findall(r"Size: ([\d.]+[KMG])\s+(?:Operator: op_name=\"([^\"]*)\"[^\n]*\n\s*)?Shape: (\S+)", text)
    first = text.splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    shown = [f"{size} {shape} {place}" for size, place, shape in largest[:5]]
    return UserError(f"{first}; change: {'; '.join(advice)}; the largest buffers:", shown)


def lines(done: Compiled, label: str, per: str) -> list[str]:
    """The output of ``zipper compile``; ``per``: the unit of one run of the program, step or token."""
    out = [f"{label}: compiled in {done.compile_seconds:.0f} s"]
    out += [f"note         {note}" for note in done.notes]
    limit = f" of {size(done.limit)} ({done.peak / done.limit:.0%})" if done.limit else ""
    out.append(f"memory       {size(done.peak)} peak per device{limit}")
    bound = done.bounds
    out.append(
        f"collectives  {done.sent / 1e9:.3f} GB sent per device and {per}; lower bound {bound.network / 1e9:.3f} GB"
    )
    for c in done.collectives[:5]:
        out.append(f"             {c.moved / 1e9:8.3f} GB {c.kind} over {c.devices}, {c.times} times, {c.place[-80:]}")
    known = chip(done.device)
    if done.mesh["slices"] > 1:
        out.append(f"{per:<12} no estimate: the bandwidth between slices is not known")
    elif known and known.bandwidth and known.link:
        each = seconds(bound, known, done.sent)
        worst = max(each, key=lambda name: each[name])
        parts = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in each.items())
        least, most = max(each.values()) * 1e3, sum(each.values()) * 1e3
        out.append(f"{per:<12} {least:.1f} ms with full overlap, {most:.1f} ms without; bound by {worst}")
        out.append(f"             {parts}: estimates at peak rates, not measured")
    return out
