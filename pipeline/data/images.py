"""Photographs: decoding (upright by their EXIF orientation, in RGB) or an error that explains the problem."""

import hashlib
import io
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Keys that end in one of these, in upper or lower case, are photographs; others are ignored."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""The formats that are decoded, whatever the suffix. Not all of Pillow's: its EPS plugin starts Ghostscript."""

_SUFFIX_BY_START = {
    b"\xff\xd8": ".jpg",
    b"\x89P": ".png",
    b"RI": ".webp",
    b"GI": ".gif",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tif",
}
"""The suffix of each of ``FORMATS``, by the first two bytes of the file."""

MAX_BYTES = 64_000_000
"""Maximum size of a file: a larger one is hardly a photograph, and several at once would fill the memory."""

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
"""The transposition for each EXIF orientation (Exif 2.32, tag 0x0112)."""


class BadImageError(ValueError):
    """The bytes can't be decoded as a picture; the message explains why."""


class SlowImageError(BadImageError):
    """Decoding the picture takes longer than allowed."""


def content_hash(data: bytes) -> str:
    """A hash of the bytes of a file, 32 hexadecimal digits: equal files have equal hashes."""
    return hashlib.sha256(data).hexdigest()[:32]


def is_image(key: str) -> bool:
    """Whether the key's suffix is that of a photograph."""
    return key.lower().endswith(SUFFIXES)


def suffix_of(data: bytes) -> str:
    """The suffix for the format of a picture that ``decode`` accepts, whatever the name of its file."""
    return _SUFFIX_BY_START[data[:2]]


def decode(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Decode a picture, upright and in RGB, to ``size`` (height, width).

    The whole picture is resized, without a crop, which could remove what the caption should mention. An animation
    gives its first frame, transparency becomes white, and 16 bits per channel become 8.

    Returns:
        uint8 array of shape (height, width, 3), 0..255.

    Raises:
        BadImageError: the data is empty, none of ``FORMATS``, damaged, or has more than ``MAX_BYTES`` or more pixels
            than Pillow's safety limit.
        MemoryError: it needs more memory than there is.
    """
    return np.asarray(_upright_rgb(data, lambda _: (size[1], size[0]), max(size)))


def thumbnail(data: bytes, side: int) -> bytes:
    """A picture, upright and in RGB, as a JPEG whose longer side is ``side`` pixels, or its own if that is shorter.

    Raises:
        BadImageError, MemoryError: as ``decode``.
    """

    def shrunk(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1, side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    buffer = io.BytesIO()
    _upright_rgb(data, shrunk, side).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _upright_rgb(data: bytes, resized: Callable[[tuple[int, int]], tuple[int, int]], side: int) -> Image.Image:
    """The picture, resized by ``resized`` from its own (width, height); ``side`` is the longer side of the result."""
    if not data:
        raise BadImageError("the file is empty")
    if len(data) > MAX_BYTES:
        raise BadImageError(TOO_LARGE)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            # A JPEG is decoded at a smaller scale if that is at least twice the wanted size: this is quicker, and
            # keeps the pictures of a 100-megapixel camera below the limit.
            image.draft("RGB", (2 * side, 2 * side))
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            return _converted(image, resized)
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError(
            f"not a picture in a known format ({', '.join(FORMATS)}); convert it to one of them"
        ) from None
    except Image.DecompressionBombError:
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise BadImageError(f"more than {limit} million pixels; scale it down") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged data
        # Without numbers and quotations, so that the same damage is counted as one kind of error.
        why = re.sub(r"b?'.*'|\d+", "…", str(error)) or type(error).__name__
        raise BadImageError(
            f"cannot be decoded ({why}); upload it again, or save it again with another program"
        ) from error


def _converted(image: Image.Image, resized: Callable[[tuple[int, int]], tuple[int, int]]) -> Image.Image:
    image.load()
    # Not ImageOps.exif_transpose, which rewrites the EXIF data and fails if only these are damaged.
    to_upright = _TO_UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if to_upright is not None:
        image = image.transpose(to_upright)
    if image.mode.startswith("I;16"):
        # The upper byte, as Pillow does with 16-bit RGB; its own conversion of 16-bit grey clips at 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImageError("32-bit pixels have no defined white; save it with 8 or 16 bits per channel")
    # Before compositing on white, which gives the same result at every scale (Pillow weights colours by alpha).
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = image.resize(resized(image.size), Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image
