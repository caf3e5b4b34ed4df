"""Networks: how they are built, trained, saved and loaded.

Every classifier takes float32 images ``(N, 1, H, W)`` in [0, 1] and returns logits ``(N, K)``; every autoencoder
takes and returns images ``(N, 1, H, W)`` in [0, 1].
"""
