"""Re-export of `sharding.mesh.MeshConfig`, the import path of Python configurations."""

from zipper_jax.sharding.mesh import MeshConfig

__all__ = ["MeshConfig"]
