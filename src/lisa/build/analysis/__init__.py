"""What ``lisa analyse`` is made of: networks run on mixed inputs, what is measured of them, and pictures."""
