"""Ahead of time: a run's real step compiled for TPUs that are not there, and what it will need of them."""
