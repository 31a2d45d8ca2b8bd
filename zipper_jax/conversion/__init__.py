"""Import and export of weights: Hugging Face and T5X. No torch, no transformers, no TensorFlow."""
