"""Damaged and odd pictures, such as arrive in a bucket that anyone may fill, made here byte by byte.

A kind is a file's name, its bytes, and the outcome that decoding must have: the colour that the picture shows, or words
that its error must hold.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pillow_heif
from PIL import Image, ImageDraw

pillow_heif.register_heif_opener()

GREEN = (40, 180, 40)
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

UNKNOWN = "not a picture in a known format"
DAMAGED = "cannot be decoded"

ADVICE = r"; (scale it down|convert it to one of them|upload it again|save it again|save it with)|the file is empty"
"""Every error matches it: each ends in what to do."""


@dataclass(frozen=True)
class Kind:
    """A file and its outcome: a colour, words of an error, or either where libraries differ (``None``)."""

    name: str
    data: bytes
    expected: tuple[int, int, int] | str | None


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def plain(mode: str = "RGB", size: tuple[int, int] = (64, 48), colour: object = GREEN) -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def scene() -> Image.Image:
    """An image with edges and noise, whose encoded data are long enough to be damaged in many places."""
    noise = np.random.default_rng(0).integers(0, 80, (96, 128, 3)).astype(np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse((20, 10, 100, 80), fill=GREEN)
    return image


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, depth: int = 8, colour_type: int = 2, data: bytes | None = None) -> bytes:
    """A PNG whose header may claim anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(data if data is not None else (b"\0" + bytes(GREEN) * width) * height)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def tiff(entries: list[tuple[int, int, int, int]], *, following: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: (tag, type, count, value) each."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", following) + data


def with_orientation(orientation: int) -> bytes:
    """A JPEG whose EXIF data say how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(plain(), "JPEG", exif=exif)


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG that refines one large picture over and over: small, and it takes minutes to decode."""
    size = 12_000
    frame = struct.pack(">BHHB", 8, size, size, 1) + bytes([1, 0x11, 0])
    table = bytes([0]) + bytes([1] + [0] * 15) + bytes([0])
    quantisation = bytes([0]) + bytes([1] * 64)

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    scan = segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0x00])) + bytes(2)
    head = b"\xff\xd8" + segment(0xDB, quantisation) + segment(0xC2, frame) + segment(0xC4, table)
    return head + scan * scans + b"\xff\xd9"


def archive() -> bytes:
    """A zip with a picture in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("photo.jpg", encoded(plain(), "JPEG"))
    return buffer.getvalue()


def flipped(data: bytes, *places: int) -> bytes:
    """The bytes with all bits of some of them changed."""
    damaged = bytearray(data)
    for place in places:
        damaged[place] ^= 0xFF
    return bytes(damaged)


def segment_of(jpeg: bytes, marker: int) -> int:
    """Where a segment of a JPEG begins."""
    return jpeg.index(bytes([0xFF, marker]))


def animation(form: str) -> bytes:
    """Green, then black."""
    return encoded(plain(), form, save_all=True, append_images=[plain(colour=BLACK)], duration=50)


def kinds() -> Iterator[Kind]:
    """All kinds but those that take long or much memory, which are in ``bombs``."""
    jpeg, whole = encoded(plain(), "JPEG", quality=95), encoded(scene(), "JPEG", quality=95)
    noise_png = encoded(scene(), "PNG")
    yield Kind("empty.jpg", b"", "the file is empty")
    yield Kind("one-byte.jpg", b"\xff", UNKNOWN)
    yield Kind("zeros.jpg", bytes(5000), UNKNOWN)
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"):
        data = encoded(scene(), form)
        for eighth in range(1, 8):
            yield Kind(f"truncated-{eighth}.{form.lower()}", data[: len(data) * eighth // 8], f"{DAMAGED}|{UNKNOWN}")
    yield Kind("progressive-truncated.jpg", encoded(scene(), "JPEG", progressive=True)[:1500], DAMAGED)
    yield from _named_otherwise(jpeg)
    yield from _modes()
    for orientation in range(10):
        yield Kind(f"orientation-{orientation}.jpg", with_orientation(orientation), GREEN)
    yield from _shapes()
    yield Kind("animated.gif", animation("GIF"), GREEN)
    yield Kind("animated.webp", animation("WEBP"), GREEN)
    yield Kind("animated.avif", animation("AVIF"), GREEN)
    yield Kind("several.heic", animation("HEIF"), GREEN)
    yield Kind("animated.png", animation("PNG"), GREEN)
    yield Kind("several-pages.tiff", animation("TIFF"), GREEN)
    yield Kind("phone.jpg", encoded(plain(), "MPO", save_all=True, append_images=[plain(colour=BLACK)]), GREEN)
    yield Kind("interlaced.png", encoded(plain(), "PNG", interlace=1), GREEN)
    yield from _damaged_jpegs(jpeg, whole)
    yield from _damaged_others(noise_png)
    yield Kind("large-canvas.webp", FOUND, None)
    yield Kind("polyglot-jpeg-zip.jpg", jpeg + archive(), GREEN)
    yield Kind("polyglot-html.gif", encoded(plain(), "GIF") + b"<script>alert(1)</script>", GREEN)
    yield Kind("polyglot-png-pdf.png", encoded(plain(), "PNG") + b"%PDF-1.7\n%%EOF", GREEN)


def _named_otherwise(jpeg: bytes) -> Iterator[Kind]:
    """A file's name says nothing about its format."""
    yield Kind("jpeg-called.png", jpeg, GREEN)
    yield Kind("png-called.jpg", encoded(plain(), "PNG"), GREEN)
    yield Kind("webp-called.gif", encoded(plain(), "WEBP", lossless=True), GREEN)
    yield Kind("text.jpg", b"keine Fotografie, sondern Text\n" * 40, UNKNOWN)
    yield Kind("page.jpg", b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>", UNKNOWN)
    yield Kind("error.jpg", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', UNKNOWN)
    yield Kind("drawing.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', UNKNOWN)
    yield Kind("heic.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), f"{DAMAGED} .HEIF: ")
    yield Kind("avif.jpg", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(200), f"{DAMAGED} .AVIF: ")
    yield Kind("zip.jpg", archive(), UNKNOWN)
    yield Kind("pdf.jpg", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n", UNKNOWN)
    yield Kind("postscript.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", UNKNOWN)
    yield Kind("jpeg2000.jpg", encoded(plain(), "JPEG2000"), UNKNOWN)
    yield Kind("icon.jpg", encoded(plain(), "ICO", sizes=[(32, 32)]), UNKNOWN)
    yield Kind("video.jpg", b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2mp41" + bytes(300), UNKNOWN)
    yield Kind("gzip.jpg", b"\x1f\x8b\x08\0" + bytes(40), UNKNOWN)
    yield Kind("program.jpg", b"\x7fELF\x02\x01\x01" + bytes(100), UNKNOWN)


def _modes() -> Iterator[Kind]:
    """Pixels of every kind."""
    yield Kind("cmyk.jpg", encoded(plain().convert("CMYK"), "JPEG", quality=95), GREEN)
    yield Kind("cmyk.tiff", encoded(plain().convert("CMYK"), "TIFF"), GREEN)
    yield Kind("lab.tiff", encoded(plain("LAB", colour=(255, 128, 128)), "TIFF"), WHITE)
    yield Kind("grey.jpg", encoded(plain("L", colour=255), "JPEG"), WHITE)
    yield Kind("one-bit.png", encoded(plain("1", colour=1), "PNG"), WHITE)
    yield Kind("one-bit.tiff", encoded(plain("1", colour=1), "TIFF", compression="group4"), WHITE)
    yield Kind("sixteen-bit.png", encoded(Image.fromarray(np.full((48, 64), 65535, np.uint16)), "PNG"), WHITE)
    yield Kind("sixteen-bit.tiff", encoded(Image.fromarray(np.full((48, 64), 65535, np.uint16)), "TIFF"), WHITE)
    sixteen = b"".join(b"\0" + b"".join(struct.pack(">H", 257 * value) for value in GREEN) * 64 for _ in range(48))
    yield Kind("sixteen-bit-colour.png", png(64, 48, depth=16, data=sixteen), GREEN)
    yield Kind("float.tiff", encoded(plain("F", colour=0.5), "TIFF"), "32-bit pixels")
    yield Kind("integers.tiff", encoded(plain("I", colour=70000), "TIFF"), "signed pixels")
    palette = plain("P", colour=0)
    palette.putpalette([0, 0, 0, *GREEN])
    yield Kind("palette-transparent.png", encoded(palette, "PNG", transparency=0), WHITE)
    yield Kind("palette-transparent.gif", encoded(palette, "GIF", transparency=0), WHITE)
    yield Kind("palette-out-of-range.png", encoded(plain("P", colour=200), "PNG"), None)
    yield Kind("grey-alpha.png", encoded(plain("LA", colour=(0, 0)), "PNG"), WHITE)
    yield Kind("transparent.png", encoded(plain("RGBA", colour=(*GREEN, 0)), "PNG"), WHITE)
    yield Kind("opaque.webp", encoded(plain("RGBA", colour=(*GREEN, 255)), "WEBP", lossless=True), GREEN)
    yield Kind("run-lengths.tiff", encoded(plain(), "TIFF", compression="packbits"), GREEN)
    yield Kind("lzw.tiff", encoded(plain(), "TIFF", compression="tiff_lzw"), GREEN)
    yield Kind("deflate.tiff", encoded(plain(), "TIFF", compression="tiff_adobe_deflate"), GREEN)
    yield Kind("jpeg-in.tiff", encoded(plain(), "TIFF", compression="jpeg", quality=95), GREEN)


def _shapes() -> Iterator[Kind]:
    """Pictures of odd sizes, and headers that claim absurd ones."""
    too_many = "million pixels; scale it down"
    yield Kind("one-pixel.png", encoded(plain(size=(1, 1)), "PNG"), GREEN)
    yield Kind("one-pixel.jpg", encoded(plain(size=(1, 1)), "JPEG", quality=95), GREEN)
    yield Kind("thread.png", encoded(plain(size=(1, 10_000)), "PNG"), GREEN)
    yield Kind("ribbon.jpg", encoded(plain(size=(10_000, 1)), "JPEG", quality=95), GREEN)
    yield Kind("nothing-wide.png", png(0, 10), f"{DAMAGED}|{UNKNOWN}")
    yield Kind("endless.png", png(2**31 - 1, 2**31 - 1, data=b""), too_many)
    yield Kind("bomb.png", png(30_000, 30_000, data=b""), too_many)
    yield Kind(
        "bomb.gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b";", f"{too_many}|{DAMAGED}|{UNKNOWN}"
    )
    bmp = encoded(plain(), "BMP")
    yield Kind("bomb.bmp", bmp[:18] + struct.pack("<ii", 100_000, 100_000) + bmp[26:], too_many)
    yield Kind("upside-down.bmp", bmp[:22] + struct.pack("<i", -48) + bmp[26:], GREEN)
    yield Kind("negative-width.bmp", bmp[:18] + struct.pack("<i", -64) + bmp[22:], f"{DAMAGED}|{UNKNOWN}|{too_many}")
    frame = segment_of(encoded(plain(), "JPEG"), 0xC0)
    data = encoded(plain(), "JPEG")
    yield Kind("bomb.jpg", data[: frame + 5] + b"\xff\xff\xff\xff" + data[frame + 9 :], None)


def _damaged_jpegs(jpeg: bytes, whole: bytes) -> Iterator[Kind]:
    """JPEGs broken in their parts."""
    tables, frame, scan = (segment_of(whole, marker) for marker in (0xC4, 0xC0, 0xDA))
    yield Kind("huffman-counts.jpg", whole[: tables + 5] + b"\xff" * 16 + whole[tables + 21 :], DAMAGED)
    yield Kind("huffman-missing.jpg", whole[:tables] + whole[scan:], None)
    yield Kind("quantisation-missing.jpg", whole[: segment_of(whole, 0xDB)] + whole[frame:], DAMAGED)
    yield Kind("no-frame.jpg", whole[:frame] + whole[tables:], f"{DAMAGED}|{UNKNOWN}")
    yield Kind("components.jpg", whole[: frame + 9] + b"\x07" + whole[frame + 10 :], f"{DAMAGED}|{UNKNOWN}")
    yield Kind("twelve-bit.jpg", whole[: frame + 4] + b"\x0c" + whole[frame + 5 :], f"{DAMAGED}|{UNKNOWN}")
    yield Kind("arithmetic.jpg", whole[: frame + 1] + b"\xc9" + whole[frame + 2 :], None)
    yield Kind("lossless.jpg", whole[: frame + 1] + b"\xc3" + whole[frame + 2 :], f"{DAMAGED}|{UNKNOWN}")
    yield Kind("noise-in-the-scan.jpg", flipped(whole, *range(scan + 40, len(whole) - 200, 37)), None)
    yield Kind("end-missing.jpg", whole[:-2], None)
    yield Kind("rubbish-after-the-end.jpg", jpeg + bytes(1000), GREEN)
    yield Kind("two-beginnings.jpg", b"\xff\xd8" + jpeg, None)
    yield Kind("exif-that-breaks-off.jpg", jpeg[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff" + jpeg[2:], None)
    yield Kind("exif-in-a-circle.jpg", _with_exif(jpeg, tiff([(0x8769, 4, 1, 8)])), GREEN)
    yield Kind("exif-orientation-text.jpg", _with_exif(jpeg, tiff([(0x0112, 2, 4, 0x41414141)])), GREEN)
    yield Kind("profile-of-rubbish.jpg", encoded(plain(), "JPEG", quality=95, icc_profile=b"rubbish" * 30), GREEN)
    yield Kind("no-scan.jpg", whole[:scan] + b"\xff\xd9", DAMAGED)


def _with_exif(jpeg: bytes, data: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 8) + b"Exif\0\0" + data + jpeg[2:]


def _damaged_others(noise_png: bytes) -> Iterator[Kind]:
    """The other formats broken in their parts."""
    data = noise_png.index(b"IDAT")
    yield Kind("checksum.png", flipped(noise_png, noise_png.index(b"IHDR") + 17), f"{DAMAGED}|{UNKNOWN}")
    yield Kind("data-checksum.png", flipped(noise_png, data + 400), DAMAGED)
    yield Kind("stream.png", png(64, 48, data=b"")[:-12] + png_chunk(b"IEND", b""), DAMAGED)
    yield Kind("too-few-rows.png", png(64, 48, data=(b"\0" + bytes(GREEN) * 64) * 10), None)
    yield Kind("filter.png", png(64, 48, data=(b"\x09" + bytes(GREEN) * 64) * 48), None)
    yield Kind("colour-type.png", png(64, 48, colour_type=5), f"{DAMAGED}|{UNKNOWN}")
    yield Kind("depth.png", png(64, 48, depth=3), f"{DAMAGED}|{UNKNOWN}")
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))
    whole = encoded(plain(), "PNG")
    yield Kind("text-bomb.png", whole[:33] + text + whole[33:], None)
    yield Kind("no-palette.png", png(64, 48, colour_type=3, data=(b"\0" + bytes(64)) * 48), None)
    webp = encoded(scene(), "WEBP")
    yield Kind("length.webp", webp[:4] + struct.pack("<I", 2**31) + webp[8:], None)
    yield Kind("rubbish.webp", webp[:40] + bytes(len(webp) - 40), None)
    gif = encoded(scene(), "GIF")
    yield Kind("code-size.gif", gif[: gif.index(b",") + 10] + b"\xff" + gif[gif.index(b",") + 11 :], None)
    yield Kind("only-a-header.gif", b"GIF89a", f"{DAMAGED}|{UNKNOWN}")
    frame = [
        (256, 3, 1, 64),
        (257, 3, 1, 48),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
    ]
    yield Kind("no-strips.tiff", tiff(frame), DAMAGED)
    yield Kind(
        "in-a-circle.tiff", tiff([*frame, (278, 3, 1, 48), (279, 4, 1, 3072)], following=8, data=bytes(3100)), None
    )
    yield Kind("compression.tiff", tiff([*frame[:3], (259, 3, 1, 9999), *frame[4:]]), f"{DAMAGED}|{UNKNOWN}")
    yield Kind("many-entries.tiff", b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(200), f"{DAMAGED}|{UNKNOWN}")
    yield Kind("directory-outside.tiff", b"II*\0" + struct.pack("<I", 2**31), f"{DAMAGED}|{UNKNOWN}")
    bmp = encoded(scene(), "BMP")
    yield Kind("compression.bmp", bmp[:30] + struct.pack("<I", 1) + bmp[34:], f"{DAMAGED}|{UNKNOWN}")
    yield Kind("offset.bmp", bmp[:10] + struct.pack("<I", 2**31 - 1) + bmp[14:], DAMAGED)
    yield Kind("too-large.jpg", encoded(plain(), "JPEG") + bytes(64_000_000), "larger than 64 MB")


FOUND = bytes.fromhex(
    """
    52494646da00000057454250565038580a000000020000003f00002f0010414e494d06000000000000000000414e4d465e00
    00000000000000003f20002f00003200000256503820460000003004009d012a400030003e6d369849242322a122a800800d
    8967007600fc0004544d690dcd108789400000fecbb7ffff295782c6ee67fffe7e6776e2feab56b2458283800000414e4d46
    480000000000000000003f00002f00003200000056503820300000001403009d012a400030002e4d369b4d800004c4b48314
    00013fdf576b655555534000fefd372ded6e5f7a357c9be00000
    """
)
"""Found by fuzzing: 226 bytes of WebP that fill a canvas of eighty megapixels, for three seconds."""


def bombs() -> Iterator[tuple[str, Callable[[], bytes], str]]:
    """Names, makers and errors of files that would take minutes or gigabytes, were they let."""
    yield "scans.jpg", lambda: scan_bomb(20_000), "takes longer than"
