"""Array operations, independent of models."""
