"""Training: configuration, optimizer, step functions, the loop, and exact resumption.

Import the submodules; the one function most callers need is :func:`zipper_jax.training.loop.train`.
"""
