"""Weights of other systems in and out. No torch, no transformers, no TensorFlow."""
