"""Losses of the autoencoder: reconstruction, perceptual distance, the adversarial game."""
