"""`MeshConfig` under the path that configurations in Python import it by; it is defined in `sharding.mesh`."""

from zipper_jax.sharding.mesh import MeshConfig

__all__ = ["MeshConfig"]
