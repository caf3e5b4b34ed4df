"""A plug-in of pydicom that decodes compressed frames with imagecodecs (pydicom's guide "Decoder plugins").

GDCM, for which pydicom brings a plug-in, is not used, because it ends the process at some damaged frames of lossless
JPEG. Lossy JPEG with 12 bits is left to pydicom's plug-in for pylibjpeg: on a file of pydicom's examples, imagecodecs
differs from it by one level.
"""

from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.pixels import get_decoder

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

NAME = "imagecodecs"
JPEG, LOSSLESS_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit), (uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS, JPEG_2000 = (uid.JPEGLSLossless, uid.JPEGLSNearLossless), (uid.JPEG2000Lossless, uid.JPEG2000)
SYNTAXES = (*JPEG, *LOSSLESS_JPEG, *JPEG_LS, *JPEG_2000)
"""Transfer syntaxes that this plug-in decodes."""
# pydicom reads this name
DECODER_DEPENDENCIES: dict[str, tuple[str, ...]] = dict.fromkeys(SYNTAXES, ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """Return whether the plug-in decodes a transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: "DecodeRunner") -> bytes:
    """Decode one frame.

    Args:
        source: the compressed frame.
        runner: of pydicom, with the properties of the frame; those that decoding changes are set.

    Returns:
        Samples of all pixels, row by row, the samples of one pixel side by side.

    Raises:
        ValueError: the decoded frame has another shape than the DICOM file declares, or more bits.
        Exception: for damaged frames, the codecs raise errors of several types.
    """
    syntax, n_samples = runner.transfer_syntax, runner.samples_per_pixel
    decoded: Any
    if syntax in JPEG_LS:
        decoded = imagecodecs.jpegls_decode(source)
    elif syntax in JPEG_2000:
        decoded = imagecodecs.jpeg2k_decode(source)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            # the codec has converted them
            runner.set_option("photometric_interpretation", "RGB")
    else:
        decoded = decode_jpeg(source, n_samples)
    frame = np.ascontiguousarray(decoded)
    expected = (runner.rows, runner.columns, n_samples) if n_samples > 1 else (runner.rows, runner.columns)
    if frame.shape != expected:
        raise ValueError(f"the compressed frame has the shape {frame.shape}, and the DICOM file {expected}")
    n_bits = 8 * frame.dtype.itemsize
    if n_bits > runner.bits_allocated or not _fits(frame, runner.bits_stored):
        # pydicom would drop the highest bits
        raise ValueError(
            f"the compressed frame has values with more bits than the DICOM file: {runner.bits_stored} of "
            f"{runner.bits_allocated}"
        )
    runner.set_option("planar_configuration", 0)
    runner.set_option("bits_allocated", n_bits)
    return frame.tobytes()


def _fits(frame: np.ndarray, bits: int) -> bool:
    """Return whether some bits hold all values, as numbers without sign or with it."""
    signed = frame.view(f"i{frame.dtype.itemsize}")
    fits_unsigned = frame.min() >= 0 and frame.max() < 2**bits
    return bool(fits_unsigned or (signed.min() >= -(2 ** (bits - 1)) and signed.max() < 2 ** (bits - 1)))


def decode_jpeg(source: bytes, n_samples: int) -> np.ndarray:
    """Decode a JPEG frame, lossy or lossless, without a conversion of its colours.

    Args:
        source: the compressed frame.
        n_samples: samples of a pixel.
    """
    # pydicom converts colours, as the DICOM file defines; between equal colour spaces, the codec converts nothing
    colours = "RGB" if n_samples == 3 else None
    decoded: np.ndarray = imagecodecs.jpeg8_decode(source, colorspace=colours, outcolorspace=colours)
    return decoded


for each in SYNTAXES:
    get_decoder(each).add_plugin(NAME, (__name__, decode_frame.__name__))
