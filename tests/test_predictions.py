import numpy as np
import pytest
from torch import Tensor, nn

from tasks.attacks.predictions import Predictions, concatenate, predict, round_to_8_bits
from tasks.defences.purified import Purified
from tests.nets import linear_case


class Brighter(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + 0.1


def test_the_reconstruction_error_is_the_squared_change_by_the_purifier() -> None:
    model, images, _, _ = linear_case()
    undefended, defended = predict(model, images), predict(Purified(Brighter(), model), images)
    assert undefended.reconstruction_error is None
    assert defended.reconstruction_error == pytest.approx(np.full(40, 0.01), abs=1e-6)
    assert defended.logits == pytest.approx(predict(model, images + np.float32(0.1)).logits, abs=1e-5)
    assert undefended.logits[0, 0] == 0


def test_predictions_of_batches_equal_those_of_all_images_at_once() -> None:
    model, images, _, _ = linear_case()
    for target in (model, Purified(Brighter(), model)):
        whole = predict(target, images)
        parts: Predictions = concatenate([predict(target, images[:15]), predict(target, images[15:])])
        assert parts.logits == pytest.approx(whole.logits, abs=1e-6)
        if whole.reconstruction_error is None:
            assert parts.reconstruction_error is None
        else:
            assert parts.reconstruction_error == pytest.approx(whole.reconstruction_error)


def test_images_are_rounded_to_the_levels_of_an_8_bit_file() -> None:
    images = np.array([0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 1], dtype=np.float32)
    assert (round_to_8_bits(images) * 255).tolist() == pytest.approx([0, 0, 1, 254, 255])
    assert round_to_8_bits(images).dtype == np.float32
