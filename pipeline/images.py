"""Photographs: bytes to pixels, or an error that says what is wrong with them."""

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Keys that end in one of these, in either case, are photographs; a listing passes over the others."""


class BadImageError(ValueError):
    """The bytes are not a picture that can be decoded; the message says why."""


def is_image(key: str) -> bool:
    """Whether the key's suffix is that of a photograph."""
    return key.lower().endswith(SUFFIXES)


def decode(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decode a picture, upright and in RGB, to ``size`` (height, width).

    The whole picture is squeezed into ``size``, as the encoder's usual tutorials do: a crop could cut away what the
    caption should speak of. An animation gives its first frame; transparency is laid on white.

    Returns:
        uint8 array of shape (height, width, 3), 0..255.

    Raises:
        BadImageError: the data is empty, no known format, damaged, or has more pixels than Pillow's safety limit.
    """
    if not data:
        raise BadImageError("the file is empty")
    height, width = size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                # JPEG decodes straight to a smaller scale where that is at least the size wanted.
                image.draft("RGB", (width * 2, height * 2))
                upright = ImageOps.exif_transpose(image)
                if upright.has_transparency_data:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                elif upright.mode.startswith(("I", "F")):
                    # 16- and 32-bit greys: convert() would clip at 255 instead of scaling.
                    upright = ImageOps.autocontrast(Image.fromarray(_to_byte_range(np.asarray(upright))))
                return np.asarray(upright.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
    except UnidentifiedImageError:
        raise BadImageError("not a picture in a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BadImageError(f"more than {limit} million pixels; scale it down") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged data
        raise BadImageError(f"cannot be decoded: {error or type(error).__name__}") from error


def _to_byte_range(pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    values = pixels.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    return ((values - low) * (255.0 / max(high - low, 1e-6))).astype(np.uint8)
