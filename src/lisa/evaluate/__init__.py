"""Metrics, protocols and the evaluation of generated pictures."""
