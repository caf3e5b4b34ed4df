"""Classifiers and autoencoders: architectures, training, saving and loading.

Every classifier takes float32 images ``(N, 1, H, W)`` in [0, 1] and returns logits ``(N, K)``. Every autoencoder
takes and returns images ``(N, 1, H, W)`` in [0, 1].
"""
