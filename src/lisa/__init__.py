"""LISA: Likelihood Score Alignment for visual-condition side networks (arXiv 2606.27192)."""

__version__ = "0.1.0"
