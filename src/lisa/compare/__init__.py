"""Runs of several arms and seeds beside each other: steps to a quality, figures at the end, a report. No models."""
