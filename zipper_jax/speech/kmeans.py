"""Lloyd's k-means in numpy, on matrix products.

Axis letters: P points, K centroids, D dimension of points, F dimension of the space of distances.
"""

from __future__ import annotations

import logging

import numpy as np
from jaxtyping import Float, Int

logger = logging.getLogger(__name__)

_BLOCK = 4096  # points per matrix product: 4096 x 1024 distances are 16 MB, which stays in cache
_ITERATIONS = 12  # the error falls by less than 1 % after that


def nearest_centroid(points: Float[np.ndarray, "P D"], centroids: Float[np.ndarray, "K D"]) -> Int[np.ndarray, " P"]:
    """Return the index of each point's nearest centroid, int32 (ties: the lowest index)."""
    half_norms = 0.5 * np.square(centroids).sum(axis=1)
    nearest = np.empty(len(points), np.int32)
    for start in range(0, len(points), _BLOCK):
        block = slice(start, start + _BLOCK)
        # |p - c|^2 / 2 up to |p|^2 / 2, which is the same for every centroid
        nearest[block] = (half_norms - points[block] @ centroids.T).argmin(axis=1)
    return nearest


def fit_kmeans(
    points: Float[np.ndarray, "P D"],
    num_centroids: int,
    rng: np.random.Generator,
    projection: Float[np.ndarray, "D F"],
) -> Float[np.ndarray, "K D"]:
    """Run Lloyd's algorithm from distinct random points until convergence, at most 12 rounds; needs ``P >= K``.

    Distances are measured after ``projection``; as it is linear, the mean of the points remains the optimal centroid.
    A centroid without points restarts at the point farthest from its own centroid.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    seen = points @ projection
    centroids = points[np.sort(rng.choice(len(points), num_centroids, replace=False))]
    previous = None
    for iteration in range(_ITERATIONS):
        nearest = nearest_centroid(seen, centroids @ projection)
        if previous is not None and np.array_equal(nearest, previous):
            break
        previous = nearest
        centroids = _means(points, nearest, centroids)
        distances = np.square(seen - (centroids @ projection)[nearest]).sum(axis=1)
        empty = np.setdiff1d(np.arange(num_centroids), nearest)
        centroids[empty] = points[np.argsort(-distances, kind="stable")[: empty.size]]
        error = distances.mean() / seen.shape[1]
        logger.info(f"k-means round {iteration + 1} of at most {_ITERATIONS}: mean squared error {error:.4f}")
    return centroids


def _means(points: np.ndarray, nearest: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the mean of each centroid's points; a centroid without points is unchanged."""
    counts = np.bincount(nearest, minlength=len(centroids))
    order = np.argsort(nearest, kind="stable")
    used = np.flatnonzero(counts)
    starts = np.concatenate([[0], np.cumsum(counts[used])[:-1]])
    means = centroids.copy()
    means[used] = np.add.reduceat(points[order], starts, axis=0) / counts[used, None]
    return means
