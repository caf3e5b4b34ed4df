"""Classifiers and autoencoders: architectures, training, saving, loading and import.

Every classifier takes float32 images ``(N, C, H, W)`` in [0, 1] and returns logits ``(N, K)``. Every autoencoder
takes and returns images ``(N, C, H, W)`` in [0, 1].
"""
