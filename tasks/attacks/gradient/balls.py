"""Old names."""

from tasks.attacks.gradient.norm_ball import NormBall, radius

Balls = NormBall
__all__ = ["Balls", "radius"]
