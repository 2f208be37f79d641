"""Photographs: bytes to pixels, or an error that says what is wrong with them."""

import io
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Keys that end in one of these, in either case, are photographs; a listing passes over the others."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded, whatever the suffix says. Not all that Pillow knows: its EPS plugin, for one, starts Ghostscript."""

_SUFFIX_BY_START = {
    b"\xff\xd8": ".jpg",
    b"\x89P": ".png",
    b"RI": ".webp",
    b"GI": ".gif",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tif",
}
"""Of files in ``FORMATS``, by their first two bytes."""

MAX_BYTES = 64_000_000
"""Of a file, at most: beyond that it is no photograph, and many at once would fill the memory."""

TOO_LARGE = f"larger than {MAX_BYTES // 1_000_000} MB; scale it down"

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation (Exif 2.32, tag 0x0112)."""


class BadImageError(ValueError):
    """The bytes are not a picture that can be decoded; the message says why."""


def is_image(key: str) -> bool:
    """Whether the key's suffix is that of a photograph."""
    return key.lower().endswith(SUFFIXES)


def suffix_of(data: bytes) -> str:
    """The suffix of the format in which bytes are that ``decode`` takes, whatever their file was called."""
    return _SUFFIX_BY_START[data[:2]]


def decode(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decode a picture, upright and in RGB, to ``size`` (height, width).

    The whole picture is squeezed into ``size``, as the encoder's usual tutorials do: a crop could cut away what the
    caption should speak of. An animation gives its first frame; transparency is laid on white; 16 bits a channel
    become 8.

    Returns:
        uint8 array of shape (height, width, 3), 0..255.

    Raises:
        BadImageError: the data is empty, none of ``FORMATS``, damaged, has more than ``MAX_BYTES`` or more pixels than
            Pillow's safety limit, or needs more memory than there is.
    """
    return np.asarray(_upright_rgb(data, lambda _: (size[1], size[0]), max(size)))


def thumbnail(data: bytes, side: int) -> bytes:
    """A picture, upright and in RGB, as a JPEG whose longer side is ``side`` pixels, or its own where that is shorter.

    Raises:
        BadImageError: as ``decode``.
    """

    def shrunk(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1, side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    buffer = io.BytesIO()
    _upright_rgb(data, shrunk, side).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _upright_rgb(data: bytes, resized: Callable[[tuple[int, int]], tuple[int, int]], side: int) -> Image.Image:
    """The picture, in the size (width, height) that its own is resized to; of which the longer side is ``side``."""
    if not data:
        raise BadImageError("the file is empty")
    if len(data) > MAX_BYTES:
        raise BadImageError(TOO_LARGE)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # A JPEG decodes straight to a smaller scale where that is at least twice the size wanted: quicker, and a
            # 100-megapixel camera's pictures stay below the limit.
            image.draft("RGB", (2 * side, 2 * side))
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            return _converted(image, resized)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"not a picture in a known format ({', '.join(FORMATS)}); save it as one of them") from None
    except Image.DecompressionBombError:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BadImageError(f"more than {limit} million pixels; scale it down") from None
    except MemoryError:
        raise BadImageError("needs more memory than a picture may take; scale it down") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged data
        # Without its numbers and what it quotes, so that pictures damaged alike count as one kind.
        why = re.sub(r"b?'.*'|\d+", "…", str(error)) or type(error).__name__
        raise BadImageError(
            f"cannot be decoded ({why}); upload it again, or save it anew in another program"
        ) from error


def _converted(image: Image.Image, resized: Callable[[tuple[int, int]], tuple[int, int]]) -> Image.Image:
    image.load()
    # Not ImageOps.exif_transpose: it writes the EXIF data anew, and fails on damaged data of an intact picture.
    to_upright = _TO_UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if to_upright is not None:
        image = image.transpose(to_upright)
    if image.mode.startswith("I;16"):
        # The upper byte, as Pillow does with 16-bit RGB; its own conversion of 16-bit grey clips at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImageError("32-bit pixels have no agreed white; save it with 8 or 16 bits a channel")
    # Before laying it on white, which is the same at every scale (Pillow weights colours by alpha) and cheaper here.
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = image.resize(resized(image.size), Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image
