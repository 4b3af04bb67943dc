"""What the side features encode: probes, sensitivity to inputs, similarity between runs. Numbers only, no networks."""
