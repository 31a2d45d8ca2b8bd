"""Training: what is updated, how, on which devices, and how a run survives being stopped.

Import the submodules; the one function most callers need is :func:`zipper_jax.training.loop.train`.
"""
