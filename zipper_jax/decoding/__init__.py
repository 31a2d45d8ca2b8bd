"""Generation with caches: one tower runs at a time, conditioned on the tokens of all towers so far."""
