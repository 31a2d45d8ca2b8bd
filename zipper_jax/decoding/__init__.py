"""Generation with caches: one tower runs at a time, on what all towers have produced so far."""
