"""Photographs: decoding (upright by their EXIF orientation, in RGB) or an error that explains the problem."""

import contextlib
import hashlib
import io
import posixpath
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pillow_heif.as_plugin import HeifImageFile

# Pillow's own reader of uncompressed TIFFs takes planes of 16 bits for planes of 8.
TiffImagePlugin.READ_LIBTIFF = True

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""The formats that are decoded, by the beginning of the file, and the suffixes of their keys, the usual one first."""

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Keys that end in one of these, in upper or lower case, are photographs."""

_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "AVIF": AvifImageFile,
    "HEIF": HeifImageFile,
}
"""What decodes each format. Not ``Image.open``: it judges the size of a JPEG before it can be scaled down, and takes a
picture with pixels of an unsupported kind for a file of no known format."""

OTHER_SUFFIXES = frozenset(
    """
    .txt .md .csv .tsv .json .jsonl .xml .xmp .aae .html .htm .css .js .log .ini .cfg .conf .yaml .yml .toml .url .lnk
    .pdf .doc .docx .odt .rtf .xls .xlsx .ods .ppt .pptx .pages .numbers .key .eml .ics .vcf .ttf .otf .woff .woff2
    .mov .mp4 .m4v .avi .mkv .webm .mpg .mpeg .mts .m2ts .3gp .wmv .flv .lrv .insv .thm .mp3 .m4a .wav .aac .flac .ogg
    .opus .wma .mid .zip .gz .tgz .tar .bz2 .xz .zst .7z .rar .iso .dmg .exe .msi .dll .so .dylib .apk .jar .class .py
    .ipynb .sh .bat .c .h .cpp .java .go .rs .db .sqlite .sqlite3 .sql .parquet .feather .npy .npz .pkl .h5 .pt .pth
    .onnx .keras .safetensors .lrcat .psd .psb .xcf .ai .svg .eps .ps .ico .icns .indd .blend .stl .obj .fbx .dxf .dwg
    .dng .nef .nrw .cr2 .cr3 .crw .arw .srf .sr2 .raf .orf .rw2 .pef .srw .raw .3fr .iiq .x3f .rwl .kdc .dcr .mrw .erf
    .jp2 .j2k .jpx .jxl .hdr .exr .tga .pcx .ppm .pgm .pbm .pnm .qoi .dds .bpg .sha256 .md5 .sha1 .part .crdownload
    """.split()  # noqa: SIM905 - a list of as many literals is harder to read
)
"""Keys that end in one of these are no photographs that can be decoded, and are not looked at. Raw pictures of cameras
are TIFFs, too, but of these Pillow would read a thumbnail."""

START_BYTES = 64
"""Bytes from the beginning of a file that tell its format."""

_STARTS = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF.{4}WEBP",
    "GIF": rb"GIF8[79]a",
    # Many texts begin with BM, too: what follows in a picture is the length of its header.
    "BMP": rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    # Brands of files; mif1 is that of both.
    "AVIF": rb".{4}ftyp(.{4})*(avif|avis)",
    "HEIF": rb".{4}ftyp(.{4})*(heic|heix|hevc|hevx|heim|heis|hevm|hevs)",
}
"""How the files of each format begin."""

MAX_BYTES = 64_000_000
"""Maximum size of a file: a larger one is hardly a photograph, and several at once would fill the memory."""

MAX_PIXELS = 90_000_000
"""Maximum number of pixels; a JPEG may have more, because it is decoded at a smaller scale."""

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

_ON_ITS_SIDE = (5, 6, 7, 8)
"""The EXIF orientations of pictures whose stored width is the height of the upright picture."""


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: uint8 array of shape (height, width, 3) at the size that was asked for, upright and in RGB, 0..255.
        width: of the upright picture itself, in pixels.
        height: the same.
    """

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


class BadImageError(ValueError):
    """The bytes can't be decoded as a picture; the message explains why."""


class SlowImageError(BadImageError):
    """Decoding the picture takes longer than allowed."""


def content_hash(data: bytes) -> str:
    """A hash of the bytes of a file, 32 hexadecimal digits: equal files have equal hashes."""
    return hashlib.sha256(data).hexdigest()[:32]


def is_image(key: str) -> bool | None:
    """Whether a key is that of a photograph by its suffix; ``None`` if the suffix is unknown, or there is none."""
    suffix = posixpath.splitext(key)[1].lower()
    return True if suffix in SUFFIXES else False if suffix in OTHER_SUFFIXES else None


def format_of(start: bytes) -> str | None:
    """The format, one of ``FORMATS``, of a file that begins with these bytes; ``None`` if it is no picture.

    Args:
        start: at least the first ``START_BYTES`` of the file, or all of a shorter one.
    """
    start = start[:START_BYTES]
    return next((form for form, pattern in _STARTS.items() if re.match(pattern, start, re.DOTALL)), None)


def suffix_of(data: bytes) -> str:
    """The suffix for the format of a picture that ``decode`` accepts, whatever the name of its file."""
    return FORMATS[format_of(data) or ""][0]


def decode(data: bytes, size: tuple[int, int]) -> Picture:
    """Decode a picture, upright and in RGB, to ``size`` (height, width).

    The whole picture is resized, without a crop, which could remove what the caption should mention. An animation
    gives its first frame, transparency becomes white, and 16 bits per channel become 8.

    Raises:
        BadImageError: the data is in none of the formats of ``FORMATS``, damaged, of a kind whose colours are not
            known, or has more than ``MAX_BYTES`` or ``MAX_PIXELS``.
        MemoryError: it needs more memory than there is.
    """
    pixels, own_size = _upright_rgb(data, lambda _: (size[1], size[0]), max(size))
    return Picture(np.asarray(pixels), *own_size)


def thumbnail(data: bytes, side: int) -> bytes:
    """A picture, upright and in RGB, as a JPEG whose longer side is ``side`` pixels, or its own if that is shorter.

    Raises:
        BadImageError, MemoryError: as ``decode``.
    """

    def shrunk(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1, side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    buffer = io.BytesIO()
    _upright_rgb(data, shrunk, side)[0].save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _upright_rgb(
    data: bytes, resized: Callable[[tuple[int, int]], tuple[int, int]], side: int
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, resized by ``resized`` from its (width, height) as decoded, and its own (width, height).

    ``side`` is the longer side of the result.
    """
    if not data:
        raise BadImageError("the file is empty")
    if len(data) > MAX_BYTES:
        raise BadImageError(TOO_LARGE)
    if (form := format_of(data)) is None:
        raise BadImageError(f"not a picture in a known format ({', '.join(FORMATS)}); convert it to one of them")
    if form == "PNG":
        data = _essential_chunks(data)
    elif form == "AVIF":
        data = _without_exif(data)
    try:
        return _converted(*_loaded(form, data, side), resized)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged data
        raise BadImageError(f"cannot be decoded ({form}: {_explained(error)}") from error


def _explained(error: Exception) -> str:
    """The reason of an error of Pillow's, and what to do."""
    if isinstance(error.__cause__, KeyError):  # Pillow's tables lack it
        return "unknown compression or kind of pixels); save it with another program, as a JPEG or a PNG"
    reason = "it breaks off" if isinstance(error.__cause__, struct.error) else str(error)
    if (code := re.fullmatch(r"decoder error (-\d+)", reason)) is not None:
        reason = ImageFile.ERRORS.get(int(code[1]), "decoding error")
        if code[1] == _OUT_OF_MEMORY:
            raise MemoryError from error
    # Without quotations, counts and long numbers, so that the same damage is counted as one kind of error. Short
    # numbers are often the reason: versions, and kinds of pixels.
    reason = re.sub(r" \(\d+ bytes not processed\)", "", reason)
    reason = " ".join(re.sub(r"b?'.*'|\d{3,}|\d+(?= bytes)", "…", reason).split()) or type(error).__name__
    return f"{reason}); upload it again, or save it again with another program"


_OUT_OF_MEMORY = "-9"
"""Pillow's code of a codec that gets no memory."""


def _loaded(form: str, data: bytes, side: int) -> tuple[ImageFile.ImageFile, tuple[int, int]]:
    """The picture with its pixels decoded, at a smaller scale where ``side`` allows it, and its size at full scale."""
    try:
        return _load(form, data, side)
    except OSError:
        if form != "JPEG":
            raise
        # If only the end marker is missing, what is put in front of a new one changes nothing.
        body = data.rstrip(b"\xff")
        loaded, *others = (_load(form, body + more + _END_OF_JPEG, side) for more in (b"", *_FILLINGS))
        if any(other.tobytes() != loaded[0].tobytes() for other, _ in others):
            raise
        return loaded


_END_OF_JPEG = b"\xff\xd9"

_FILLINGS = (
    b"\xaa" * 64,
    b"\x55" * 64,
    b"".join(b"\xff" + bytes([marker]) + b"\xaa" * 8 for marker in range(0xD0, 0xD8)),
)
"""Where a JPEG breaks off too early, these are decoded to other pixels than none. The last has the restart markers."""


def _load(form: str, data: bytes, side: int) -> tuple[ImageFile.ImageFile, tuple[int, int]]:
    image = _PLUGINS[form](io.BytesIO(data))
    full_size = image.size
    if form == "JPEG":
        # A JPEG is decoded at a smaller scale if that is at least twice the wanted size: this is quicker, and keeps
        # the pictures of a 200-megapixel camera below the limit.
        image.draft("RGB", (2 * side, 2 * side))
    if image.width * image.height > MAX_PIXELS:
        raise BadImageError(f"more than {MAX_PIXELS // 1_000_000} million pixels; scale it down, or save it as a JPEG")
    image.load()
    # Loading a TIFF turns it upright.
    return image, full_size if form == "JPEG" else image.size


def _essential_chunks(png: bytes) -> bytes:
    """A PNG without the chunks that do not matter: Pillow refuses a picture if a text in it is damaged, or long.

    What remains are the pixels, their transparency, the EXIF data and XMP, which hold the orientation.
    """
    kept = [png[:8]]
    depth = colours = 0
    for name, data, checksum in _chunks(png):
        is_intact = zlib.crc32(name + data) == checksum
        if name == b"IHDR" and len(data) == 13:
            depth, colours = data[8:10]
        if name == b"tRNS" and is_intact:
            kept.append(_chunk(name, _transparent_colour(data, depth, colours)))
        elif name in _PNG_PICTURE or (is_intact and (name + data[:32]).startswith(_PNG_ORIENTATION)):
            kept.append(_chunk(name, data, checksum))
    return b"".join(kept)


_PNG_PICTURE = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}

_PNG_ORIENTATION = (
    b"eXIf",
    b"iTXtXML:com.adobe.xmp\0\0",
    b"tEXtRaw profile type exif\0",
    b"zTXtRaw profile type exif\0",
)
"""The beginnings of chunks with EXIF data or XMP."""

_PNG_GREY, _PNG_RGB = 0, 2
"""Colour types (PNG, third edition, 11.2.1)."""


def _transparent_colour(data: bytes, depth: int, colours: int) -> bytes:
    """The transparency of a PNG, scaled to the 8 bits of the pixels with which Pillow compares it."""
    if colours == _PNG_RGB and depth == 16:
        raise BadImageError("16 bits per channel and a transparent colour; save it with an alpha channel")
    if colours == _PNG_GREY and depth in (2, 4):
        return struct.pack(">H", int.from_bytes(data[:2]) * 255 // (2**depth - 1) & 255)
    return data


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Name, data and checksum of each chunk; of one that breaks off, what there is."""
    place = 8
    while place < len(png):
        stop = place + 8 + int.from_bytes(png[place : place + 4])
        yield png[place + 4 : place + 8], png[place + 8 : stop], int.from_bytes(png[stop : stop + 4])
        place = stop + 4


def _chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def _without_exif(avif: bytes) -> bytes:
    """An AVIF whose EXIF data are not found: damaged ones would be an error, and its orientation is not in them."""
    start = int.from_bytes(avif[:4])
    stop = start + int.from_bytes(avif[start : start + 4])
    if avif[start + 4 : start + 8] != b"meta":
        return avif
    return avif[:start] + avif[start:stop].replace(b"Exif", b"none") + avif[stop:]


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, which is upright, if there is none or the EXIF data are damaged.

    Not by ``ImageOps.exif_transpose``, which rewrites the EXIF data and fails if only these are damaged.
    """
    with contextlib.suppress(Exception):  # anything, as above
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _converted(
    image: ImageFile.ImageFile, size: tuple[int, int], resized: Callable[[tuple[int, int]], tuple[int, int]]
) -> tuple[Image.Image, tuple[int, int]]:
    """The picture, upright, in RGB and resized, and its upright ``size``."""
    pixels = _with_8_bits(image)
    orientation = _orientation(image)
    if orientation in _TO_UPRIGHT:
        pixels = pixels.transpose(_TO_UPRIGHT[orientation])
    if orientation in _ON_ITS_SIDE:
        size = size[1], size[0]
    # Before compositing on white, which gives the same result at every scale (Pillow weights colours by alpha).
    pixels = pixels.convert("RGBA" if pixels.has_transparency_data else "RGB")
    pixels = pixels.resize(resized(pixels.size), Image.Resampling.BICUBIC)
    if pixels.mode == "RGBA":
        pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    return pixels, size


_SUBFILE_TYPE = 254
"""The TIFF tag whose lowest bit says that a picture is a reduced version of another one in the file."""


def _with_8_bits(image: ImageFile.ImageFile) -> Image.Image:
    """The picture with 8 bits per channel; raises ``BadImageError`` if Pillow has not understood its pixels."""
    bits, is_inverted = 16, False
    if isinstance(image, BmpImageFile) and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # many programs leave the fourth byte unused, whatever the header says
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        is_inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
        if tags.get(_SUBFILE_TYPE, 0) & 1:
            raise BadImageError("the first picture is a preview, as in raw files; save it with another program")
        if 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, ()):
            raise BadImageError("signed pixels have no defined white; save it with 8 or 16 bits per channel")
        if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and image.mode in ("LA", "La", "PA"):
            raise BadImageError("grey and alpha are in separate planes; save it with another program")
        if image.mode == "P" and max(colours := tags[TiffImagePlugin.COLORMAP]) < 256:
            # Some programs write palettes of 8 bits, which would be black in the 16 of the specification.
            image.putpalette(np.array(colours, np.uint8).reshape(3, -1).T.tobytes())
    if image.mode in ("I", "F"):
        raise BadImageError("32-bit pixels have no defined white; save it with 8 or 16 bits per channel")
    if image.mode == "La":  # Pillow converts it to nothing else
        return image.convert("LA")
    if not image.mode.startswith("I;16"):
        return image
    # The upper byte, as Pillow does with 16-bit RGB; its own conversion of 16-bit grey clips at 255.
    grey = np.asarray(image)
    pixels = Image.fromarray((grey >> (bits - 8)).astype(np.uint8) ^ np.uint8(255 * is_inverted))
    if (transparent := image.info.get("transparency")) is not None:
        pixels.putalpha(Image.fromarray((grey != transparent).astype(np.uint8) * np.uint8(255)))
    return pixels
