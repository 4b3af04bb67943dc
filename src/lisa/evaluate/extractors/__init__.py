"""What networks read off a picture: depth, classes, people, and CLIP's embedding.

All of them are transformers models, read from a folder on this disk or from the Hub, and each says exactly which
weights it has (:class:`~lisa.evaluate.extractors.weights.Weights`), for the record of a result.
"""
