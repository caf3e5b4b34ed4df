"""Records of robustness, and everything that is computed from them."""
