"""TPU topology descriptions from libtpu, on machines without TPUs."""

import os
import re
from typing import Any

from zipper_jax.utils.errors import UserError

EXAMPLES = "v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:8x8"
_NAME = re.compile(r"(v[2-6][a-z]*|tpu\w+):\d+x\d+(x\d+)?$")


def devices(name: str, slices: int = 1) -> list[Any]:
    """The devices of one or more TPU slices, as targets of compilation.

    Args:
        name: ``GENERATION:AxB`` or ``GENERATION:AxBxC``, chips along each side: ``v5e:16x16``. ``1x1`` and ``1x1x1``
            are one chip of the smallest slice that libtpu describes.
        slices: Number of such slices, joined by the data centre's network.

    Raises:
        UserError: libtpu is missing, or there is no such topology.
    """
    if not _NAME.match(name):
        raise UserError(f"--topology={name!r}: give GENERATION:AxB or AxBxC, in chips, for example {EXAMPLES}")
    one = name.endswith((":1x1", ":1x1x1"))
    described_name = re.sub(r":1x1", ":2x2", name) if one else name
    # Read by libtpu as it is loaded: keeps it from searching for TPUs and querying the cloud's metadata server.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    import jax
    from jax.experimental import topologies

    try:
        import libtpu  # noqa: F401  (its absence would be told in many lines otherwise)

        described = topologies.get_topology_desc(platform="tpu", topology_name=described_name, num_slices=slices)
    except ImportError:
        raise UserError(
            "compiling for TPUs needs libtpu (it runs without a TPU): pip install --editable '.[tpu]' in the checkout"
        ) from None
    except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--topology={name!r}: {reason}; known, for example: {EXAMPLES}") from None
    return list(described.devices)[:1] if one else list(described.devices)
