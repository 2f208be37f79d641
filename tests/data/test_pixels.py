"""Decoded pixels, compared with those that tifffile, OpenCV, Pillow and pillow-heif have written: right, or refused."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageFile, PngImagePlugin, features

from pipeline.data import images
from pipeline.data.images import BadImageError, format_of
from tests.support.damaged_images import encoded, flipped, png, png_chunk, segment_of, tiff

HEIGHT, WIDTH = 33, 45
"""Odd numbers: rows of fewer than 8 bits per pixel end inside of a byte."""

ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
GREY = (COLUMNS * 255 // (WIDTH - 1)).astype(np.uint8)
COLOURS = np.stack([GREY, ROWS * 255 // (HEIGHT - 1), 255 - GREY], axis=-1).astype(np.uint8)
ALPHA = np.where(COLUMNS < WIDTH // 2, 255, 100).astype(np.uint8)
ON_WHITE = COLOURS * (ALPHA / 255)[..., None] + (255 - ALPHA)[..., None]

WRITTEN_TIFFS = [
    {"byteorder": order, "compression": compression, "tile": tile}
    for order in "<>"
    for compression, tile in ((None, None), (None, (16, 16)), ("lzw", None), ("packbits", (16, 16)))
] + [{"byteorder": "<", "compression": "zlib", "predictor": True}]
"""Byte orders, compressions, and strips or tiles."""

GREY_TIFFS = [
    ({**options, "bitspersample": bits} if bits in (2, 4, 10, 12, 14) else options, bits)
    for options in WRITTEN_TIFFS
    for bits in (1, 2, 4, 8, 10, 12, 14, 16)
    # The only pixels that are no whole bytes and that tifffile compresses have 1 bit.
    if bits in (8, 16) or options["compression"] is None or (bits == 1 and "predictor" not in options)
]


def decode(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels of a picture."""
    return images.decode(data, size).pixels


def assert_pixels(data: bytes, expected: npt.NDArray[np.generic], tolerance: float = 1) -> None:
    """The picture has these pixels, (height, width) or (height, width, 3), and this size."""
    expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=-1)
    picture = images.decode(data, (HEIGHT, WIDTH))
    np.testing.assert_allclose(picture.pixels.astype(float), expected, atol=tolerance)
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)


def written(pixels: npt.NDArray[np.generic], **options: object) -> bytes:
    """A TIFF by tifffile."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def by_opencv(suffix: str, pixels: npt.NDArray[np.generic], *options: int) -> bytes:
    """A file by OpenCV, whose colours are blue, green, red."""
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]
    return cv2.imencode(suffix, pixels, options)[1].tobytes()


def in_bits(pixels: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.generic]:
    """The pixels, scaled to so many bits."""
    scaled = pixels.astype(np.uint32) * (2**bits - 1) // 255
    return scaled.astype(np.bool_ if bits == 1 else np.uint8 if bits <= 8 else np.uint16)


def in_8_bits(pixels: npt.NDArray[np.generic], bits: int) -> npt.NDArray[np.floating]:
    """The same, back."""
    return pixels.astype(float) * 255 / (2**bits - 1)


# --- TIFF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "bits"), GREY_TIFFS, ids=str)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_tiffs(options: dict[str, object], bits: int, photometric: str) -> None:
    """Of each number of bits, black or white being 0. What Pillow can't read is an error, and no picture."""
    pixels = in_bits(GREY, bits)
    data = written(pixels, photometric=photometric, **options)
    expected = in_8_bits(pixels, bits)
    try:
        assert_pixels(data, expected if photometric == "minisblack" else 255 - expected)
    except BadImageError as error:
        assert "unknown compression or kind of pixels); save it with another program" in str(error)
        unusual = (options["byteorder"] == ">") + (photometric == "miniswhite")
        assert bits in (10, 14) or (bits == 12 and unusual >= 1) or (bits == 16 and unusual == 2)


@pytest.mark.parametrize("options", WRITTEN_TIFFS, ids=str)
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_tiffs(options: dict[str, object], planes: str, bits: int) -> None:
    """RGB, CMYK, and RGB with a fourth channel of each kind, whose pixels or whose planes follow one another."""

    def file(pixels: npt.NDArray[np.uint8], photometric: str = "rgb", **more: object) -> bytes:
        channels = in_bits(pixels, bits)
        channels = channels if planes == "contig" else np.moveaxis(channels, -1, 0)
        return written(channels, photometric=photometric, planarconfig=planes, **options, **more)

    assert_pixels(file(COLOURS), COLOURS)
    assert_pixels(file(np.dstack([255 - COLOURS, 0 * GREY]), "separated"), COLOURS)
    with_alpha = np.dstack([COLOURS, ALPHA])
    assert_pixels(file(with_alpha, extrasamples=["unspecified"]), COLOURS)
    assert_pixels(file(with_alpha, extrasamples=["unassalpha"]), ON_WHITE, 2)
    premultiplied = np.dstack([np.round(COLOURS * (ALPHA / 255)[..., None]).astype(np.uint8), ALPHA])
    assert_pixels(file(premultiplied, extrasamples=["assocalpha"]), ON_WHITE, 4)


@pytest.mark.parametrize("options", WRITTEN_TIFFS, ids=str)
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["unspecified", "unassalpha", "assocalpha"])
def test_grey_tiffs_with_another_channel(options: dict[str, object], planes: str, bits: int, kind: str) -> None:
    """Grey with alpha is laid on white, or refused."""
    grey = GREY if kind != "assocalpha" else np.round(GREY * (ALPHA / 255)).astype(np.uint8)
    pixels = in_bits(np.stack([grey, ALPHA], axis=-1 if planes == "contig" else 0), bits)
    data = written(pixels, photometric="minisblack", planarconfig=planes, extrasamples=[kind], **options)
    try:
        assert_pixels(data, GREY if kind == "unspecified" else GREY * (ALPHA / 255) + 255 - ALPHA, 4)
    except BadImageError as error:
        assert (planes, bits) != ("contig", 8)
        assert "save it with another program" in str(error)


@pytest.mark.parametrize("options", WRITTEN_TIFFS, ids=str)
@pytest.mark.parametrize("scale", [257, 1])
def test_palettes_of_tiffs(options: dict[str, object], scale: int) -> None:
    """Of 16 bits, as the specification has it, or of 8, as some programs write them."""
    palette = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 7)]).astype(np.uint16) * scale
    data = written(GREY, photometric="palette", colormap=palette, **options)
    assert_pixels(data, np.stack([GREY, 255 - GREY, 0 * GREY + 7], axis=-1))


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint32", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_numbers_without_a_white_are_refused(kind: str, photometric: str) -> None:
    """Measurements are no photographs."""
    with pytest.raises(BadImageError, match=r"no defined white; save it with 8 or 16|kind of pixels\); save it with"):
        decode(written(GREY.astype(kind), photometric=photometric), (8, 8))


def test_previews_are_refused() -> None:
    """Raw files of cameras are TIFFs that begin with one: it is too small, or has other colours."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff_file:
        tiff_file.write(COLOURS[::4, ::4], photometric="rgb", subfiletype=1, subifds=1)
        tiff_file.write(in_bits(GREY, 16), photometric=32803, subfiletype=0)
    with pytest.raises(BadImageError, match="the first picture is a preview, as in raw files; save it with"):
        decode(file.getvalue(), (8, 8))


STORED = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: np.rot90,
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}
"""How a camera stores an upright picture with each EXIF orientation."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("bits", [8, 16])
def test_orientations_of_tiffs(orientation: int, compression: str | None, bits: int) -> None:
    """Colour and grey, whatever the number of bits."""
    tag = [(274, "H", 1, orientation, True)]
    for pixels, photometric in ((COLOURS, "rgb"), (GREY, "minisblack"), (GREY, "miniswhite")):
        stored = np.ascontiguousarray(STORED[orientation](in_bits(pixels, bits)))
        data = written(stored, photometric=photometric, compression=compression, extratags=tag)
        assert_pixels(data, 255 - pixels if photometric == "miniswhite" else pixels)


def test_an_orientation_in_the_xmp_of_a_tiff() -> None:
    """It turns the picture as the tag does."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = written(np.ascontiguousarray(STORED[6](COLOURS)), photometric="rgb", extratags=[(700, "B", len(xmp), xmp)])
    assert_pixels(data, COLOURS)


# --- the formats that OpenCV writes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("bits", [8, 16])
def test_lossless_files_of_opencv(suffix: str, bits: int) -> None:
    """Grey, colour, and colour with alpha."""
    assert_pixels(by_opencv(suffix, in_bits(GREY, bits)), GREY)
    assert_pixels(by_opencv(suffix, in_bits(COLOURS, bits)), COLOURS)
    assert_pixels(by_opencv(suffix, in_bits(np.dstack([COLOURS, ALPHA]), bits)), ON_WHITE, 2)


def test_other_files_of_opencv() -> None:
    """Those of 8 bits; JPEG, WebP and AVIF are lossy."""
    assert_pixels(by_opencv(".bmp", GREY), GREY)
    assert_pixels(by_opencv(".bmp", COLOURS), COLOURS)
    assert_pixels(by_opencv(".bmp", np.dstack([COLOURS, ALPHA])), ON_WHITE, 2)
    assert_pixels(by_opencv(".webp", COLOURS, cv2.IMWRITE_WEBP_QUALITY, 101), COLOURS)
    assert_pixels(by_opencv(".webp", np.dstack([COLOURS, ALPHA]), cv2.IMWRITE_WEBP_QUALITY, 101), ON_WHITE, 2)
    assert_pixels(by_opencv(".jpg", GREY, cv2.IMWRITE_JPEG_QUALITY, 100), GREY, 2)
    assert_pixels(by_opencv(".jpg", COLOURS, cv2.IMWRITE_JPEG_QUALITY, 100), COLOURS, 16)


def bitmap(alpha: int, *, header: int = 124, masks: bool = True) -> bytes:
    """A BMP of 32 bits per pixel, whose fourth byte is ``alpha``, or is said to be so by none of the ``masks``."""
    pixels = np.dstack([COLOURS[::-1, :, ::-1], np.full((HEIGHT, WIDTH), alpha, np.uint8)]).tobytes()
    start = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, 32, 3 * masks, len(pixels), 2835, 2835, 0, 0)
    if header > 40 or masks:
        start += struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)[: max(header - 40, 12)]
    start = start.ljust(header, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(start) + len(pixels), 0, 0, 14 + len(start)) + start + pixels


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("masks", [False, True])
def test_the_fourth_byte_of_a_bmp(header: int, masks: bool) -> None:
    """Many programs leave it unused, even if they say that it is alpha: if it is 0 everywhere, it is none."""
    data = bitmap(0, header=header, masks=masks)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), COLOURS)
    assert_pixels(data, COLOURS)
    is_alpha = masks and header >= 56
    assert_pixels(bitmap(100, header=header, masks=masks), COLOURS * (100 / 255) + 155 if is_alpha else COLOURS)


# --- PNG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_grey(bits: int) -> None:
    """The pixels of exactly this grey are white, whatever the number of bits."""
    shades = [0, 2**bits - 1] if bits == 1 else [0, 1, 2**bits - 2, 2**bits - 1]
    row = sum(shade << bits * (len(shades) - 1 - place) for place, shade in enumerate(shades))
    length = -(-bits * len(shades) // 8)
    row <<= 8 * length - bits * len(shades)
    data = png(len(shades), 1, depth=bits, colour_type=0, data=b"\0" + row.to_bytes(length))
    for transparent in shades:
        whole = data[:33] + png_chunk(b"tRNS", struct.pack(">H", transparent)) + data[33:]
        expected = [255 if shade == transparent else shade * 255 // (2**bits - 1) for shade in shades]
        np.testing.assert_allclose(decode(whole, (1, len(shades)))[0, :, 0].astype(int), expected, atol=1)


def test_a_transparent_colour() -> None:
    """Of 8 bits it is white. Pillow has 8 of 16 bits when it looks for one, so that others would be white, too."""
    eight = png(2, 1, data=b"\0\1\2\3\1\2\4")
    sixteen = png(2, 1, depth=16, data=b"\0" + bytes(12))
    colour = png_chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert decode(eight[:33] + colour + eight[33:], (1, 2)).tolist() == [[[255, 255, 255], [1, 2, 4]]]
    with pytest.raises(BadImageError, match="a transparent colour; save it with an alpha channel"):
        decode(sixteen[:33] + colour + sixteen[33:], (1, 2))


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_and_alpha_of_a_png(bits: int) -> None:
    """Which OpenCV does not write."""
    pixels = in_bits(np.stack([GREY, ALPHA], axis=-1), bits)
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    data = png(WIDTH, HEIGHT, depth=bits, colour_type=4, data=rows)
    assert_pixels(data, GREY * (ALPHA / 255) + 255 - ALPHA, 2)


# --- AVIF and HEIF ---------------------------------------------------------------------------------------------------

BARS = np.repeat([[[220, 30, 30], [30, 200, 60], [40, 40, 220], [250, 250, 250]]], 40, axis=0).repeat(16, axis=1)
BARS[20:] //= 2
"""Large areas, on which lossy formats are right: (40, 64, 3)."""


def assert_bars(data: bytes) -> None:
    """The middle of each area is right, and so is the size."""
    picture = images.decode(data, (40, 64))
    np.testing.assert_allclose(picture.pixels[10::20, 8::16].astype(int), BARS[10::20, 8::16], atol=6)
    assert (picture.width, picture.height) == (64, 40)


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientations_of_the_newer_formats(form: str, orientation: int) -> None:
    """They turn the picture by a property of their own."""
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](BARS.astype(np.uint8))))
    assert_bars(encoded(stored, form, exif=exif.tobytes(), quality=90))


@pytest.mark.parametrize("form", ["AVIF", "HEIF"])
def test_alpha_of_the_newer_formats(form: str) -> None:
    """Transparency is laid on white, in colour and in grey."""
    alpha = np.where(np.arange(64) < 32, 255, 0).astype(np.uint8) + np.zeros((40, 1), np.uint8)
    image = Image.fromarray(np.dstack([BARS.astype(np.uint8), alpha]))
    for each in (image, image.convert("LA")):
        found = decode(encoded(each, form, quality=90), (40, 64)).astype(int)
        np.testing.assert_allclose(found[10, 8], np.array(each.convert("RGB"))[10, 8], atol=6)
        np.testing.assert_allclose(found[10, 40], 255, atol=2)


def test_ten_bits_of_heif() -> None:
    """HDR pictures of phones become 8 bits."""
    file = io.BytesIO()
    image = pillow_heif.from_bytes("RGB;16", (64, 40), (BARS.astype(np.uint16) * 257).tobytes())
    image.save(file, quality=90)
    assert_bars(file.getvalue())


def test_a_sequence_gives_its_first_picture() -> None:
    """Of AVIF as of GIF."""
    others = [Image.new("RGB", (64, 40))] * 2
    assert_bars(encoded(Image.fromarray(BARS.astype(np.uint8)), "AVIF", save_all=True, append_images=others))


# --- intact pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_damaged_exif_data_cost_no_picture(form: str) -> None:
    """Rubbish instead of EXIF data leaves the picture as it is."""
    exif = Image.Exif()
    exif[270] = "a description of the picture"
    exif = exif.tobytes()
    data = encoded(Image.fromarray(BARS.astype(np.uint8)), form, exif=exif, quality=95)
    start = data.index(exif[6:])
    data = data[:start] + b"rubbish!" * (len(exif[6:]) // 8) + data[start + len(exif[6:]) // 8 * 8 :]
    if form == "PNG":  # with a checksum that is right
        start = data.index(b"eXIf") - 4
        length = int.from_bytes(data[start : start + 4])
        body = data[start + 8 : start + 8 + length]
        assert_bars(data)
        data = data[:start] + png_chunk(b"eXIf", body) + data[start + 12 + length :]
    assert_bars(data)


@pytest.mark.parametrize("is_behind", [False, True])
def test_texts_in_a_png_cost_no_picture(is_behind: bool) -> None:
    """Megabytes of them, unreadable ones, and wrong checksums, in front of the pixels or behind them."""
    data = encoded(Image.fromarray(BARS.astype(np.uint8)), "PNG")
    long = zlib.compress(bytes(3_000_000))
    chunks = [
        png_chunk(b"zTXt", b"Comment\0\0" + long),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + long),
        png_chunk(b"iCCP", b"profile\0\0" + long),
        png_chunk(b"iCCP", b"profile\0\7"),
        png_chunk(b"pHYs", b""),
        png_chunk(b"iTXt", b"\xff\xff\xff"),
        flipped(png_chunk(b"tEXt", b"Comment\0text"), -1),
        flipped(png_chunk(b"gAMA", b"\0\0\0\1"), -1),
        flipped(png_chunk(b"eXIf", b"MM\0*"), -1),
    ]
    place = len(data) - 12 if is_behind else 33
    for chunk in chunks:
        assert_bars(data[:place] + chunk + data[place:])


@pytest.mark.parametrize("form", ["eXIf", "XMP", "tEXt", "zTXt"])
def test_every_orientation_in_a_png_counts(form: str) -> None:
    """In EXIF data, in XMP, and in the text in which older programs write EXIF data."""
    exif = Image.Exif()
    exif[274] = 3
    text = PngImagePlugin.PngInfo()
    options = {"exif": exif} if form == "eXIf" else {"pnginfo": text}
    if form == "XMP":
        text.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>')
    elif form != "eXIf":
        text.add_text(
            "Raw profile type exif", f"\nexif\n {len(exif.tobytes())}\n{exif.tobytes().hex()}", form == "zTXt"
        )
    assert_bars(encoded(Image.fromarray(BARS.astype(np.uint8)[::-1, ::-1]), "PNG", **options))


def noise(mode: str = "RGB") -> Image.Image:
    """A picture whose end is as important as its beginning: (200, 150)."""
    pixels = np.random.default_rng(0).normal(128, 60, (200, 150)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


KINDS_OF_JPEG = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"restart_marker_rows": 1},
    {"quality": 100, "optimize": True},
]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", KINDS_OF_JPEG, ids=str)
def test_only_the_end_marker_of_a_jpeg_is_missing(options: dict[str, object], mode: str) -> None:
    """All pixels are there: they are the same with its end and without."""
    whole = encoded(noise(mode), "JPEG", **options)
    expected = decode(whole, (50, 50))
    for lost in (1, 2):
        np.testing.assert_array_equal(decode(whole[:-lost], (50, 50)), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", KINDS_OF_JPEG, ids=str)
@pytest.mark.parametrize("lost", [20, 100, 1000])
def test_more_than_the_end_marker_is_missing(options: dict[str, object], mode: str, lost: int) -> None:
    """Then it has broken off, however little is missing."""
    with pytest.raises(BadImageError, match=r"cannot be decoded \(JPEG: image file is truncated\); upload"):
        decode(encoded(noise(mode), "JPEG", **options)[:-lost], (50, 50))


def test_a_damaged_index_of_pictures_costs_no_picture() -> None:
    """Phones write one (MPF) for the pictures behind the first."""
    data = encoded(Image.fromarray(BARS.astype(np.uint8)), "MPO", save_all=True, append_images=[noise()], quality=95)
    place = data.index(b"MPF\0")
    assert_bars(data[: place + 4] + b"\xff" * 40 + data[place + 44 :])


# --- formats and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", images.FORMATS)
def test_a_format_is_known_by_its_beginning(form: str) -> None:
    """All that are decoded."""
    data = encoded(noise(), form)
    assert format_of(data[: images.START_BYTES]) == form
    assert images.is_image(f"folder/A{images.FORMATS[form][0].upper()}")
    assert images.suffix_of(data) == images.FORMATS[form][0]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"", None),
        (b"BMW, Audi and other cars", None),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41", None),
        (b"\0\0\0\x18ftypqt  \0\0\0\0qt  ", None),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", None),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miafheic", "HEIF"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc", "HEIF"),
        (b"MM\0+\0\x08\0\0", "TIFF"),
    ],
)
def test_beginnings_of_files(start: bytes, expected: str | None) -> None:
    """A few bytes that occur elsewhere, too, do not make a picture."""
    assert format_of(start) == expected


def test_the_codecs_of_all_formats_are_checked() -> None:
    """Without one, each process says so when it starts: see ``test_decoders.py``."""
    from pipeline.data.decoders import LIBRARIES

    assert all(features.check(name) for name in LIBRARIES)
    assert pillow_heif.libheif_info()["decoders"]


HEAD = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            tiff([*HEAD, (259, 3, 1, 9999), (262, 3, 1, 1)]),
            r"cannot be decoded \(TIFF: unknown compression or kind",
        ),
        (
            tiff([*HEAD, (259, 3, 1, 1), (262, 3, 1, 32803)]),
            r"cannot be decoded \(TIFF: unknown compression or kind",
        ),
        (encoded(Image.fromarray(COLOURS), "PNG")[:37], r"cannot be decoded \(PNG: it breaks off\); upload it again"),
        (written(COLOURS)[:-400], r"cannot be decoded \(TIFF: decoding error\); upload it again"),
        (
            b"BM" + struct.pack("<IIIIiiHHI", 0, 0, 54, 40, 8, 8, 1, 7, 0) + bytes(24),
            r"\(BMP: Unsupported BMP pixel depth \(7\)\)",
        ),
    ],
    ids=["compression", "photometric", "cut off early", "cut off", "depth"],
)
def test_an_error_names_the_format_and_the_reason(data: bytes, message: str) -> None:
    """A file of a known format is not said to be of none, and numbers that are the reason are shown."""
    with pytest.raises(BadImageError, match=message):
        decode(data, (8, 8))


def test_twelve_bits_of_jpeg() -> None:
    """Nor are they hidden here."""
    data = encoded(noise(), "JPEG")
    frame = segment_of(data, 0xC0)
    with pytest.raises(BadImageError, match="12-bit"):
        decode(data[: frame + 4] + b"\x0c" + data[frame + 5 :], (8, 8))


def test_a_codec_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the picture that is damaged: it is tried again in another process."""

    def fail(_: Image.Image) -> None:
        raise OSError("decoder error -9")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError):
        decode(encoded(noise(), "BMP"), (8, 8))


def test_no_warning_is_left() -> None:
    """Pillow's limit of pixels is not that of this module."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(encoded(noise(), "JPEG"), (8, 8))
