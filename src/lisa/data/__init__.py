"""Samples, sources, paired transforms, conditions and caches."""
