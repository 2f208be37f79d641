"""Decoding: the pixels of pictures, and the errors of other files."""

import io
import struct
import warnings
import zipfile
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from pipeline.data import images
from pipeline.data.images import BadImageError, is_image
from tests.support.effort import random_inputs

ORIENTATION = 0x0112


def decode(data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels of a picture."""
    return images.decode(data, size).pixels


def encode(image: Image.Image, suffix: str, **options: object) -> bytes:
    """The picture as a file of Pillow's format ``suffix``."""
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def quarters(width: int = 64, height: int = 32) -> Image.Image:
    """A picture that looks different from every side: red, green, blue and white quarters."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 255)
    return Image.fromarray(pixels)


def assert_quarters(pixels: npt.NDArray[np.uint8], tolerance: int = 12) -> None:
    """Check the middle of each quarter."""
    height, width, _ = pixels.shape
    corners = [pixels[y, x] for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]
    np.testing.assert_allclose(
        np.array(corners, int), [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], atol=tolerance
    )


@pytest.mark.parametrize("key", ["a.jpg", "folder/B.JPEG", "c.Png", "d.webp", "e.gif", "f.bmp", "g.tif", "h.TIFF"])
def test_photographs_are_recognized_by_their_suffix(key: str) -> None:
    """The usual suffixes, in upper or lower case."""
    assert is_image(key)


@pytest.mark.parametrize("key", ["a.txt", "jpg", "a.jpg.txt", "a.jpg/", "", "a.svg"])
def test_other_keys_are_ignored(key: str) -> None:
    """Other keys are not, not even with a suffix elsewhere in the key."""
    assert not is_image(key)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [(8, 8), (20, 50), (224, 224), (1, 1)])
def test_the_array_has_the_size_asked_for(suffix: str, size: tuple[int, int]) -> None:
    """Every format gives (height, width, 3) uint8, larger or smaller than the picture, and the picture's own size."""
    pixels, *own_size = images.decode(encode(quarters(), suffix), size)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    assert own_size == [64, 32]


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_picture_is_the_picture(suffix: str) -> None:
    """Colours and sides are right, whatever the format."""
    assert_quarters(decode(encode(quarters(), suffix), (32, 32)))


@pytest.mark.parametrize("width_height", [(1, 1), (1, 4000), (4000, 1), (3, 2)])
@pytest.mark.parametrize("suffix", ["JPEG", "PNG"])
def test_extreme_shapes_are_squeezed(width_height: tuple[int, int], suffix: str) -> None:
    """A single pixel and a line are pictures too."""
    pixels = decode(encode(Image.new("RGB", width_height, (200, 100, 50)), suffix), (16, 16))
    np.testing.assert_allclose(pixels.astype(int), np.broadcast_to((200, 100, 50), (16, 16, 3)), atol=3)


TO_STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
"""How a camera stores an upright picture with each EXIF orientation."""


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_every_orientation_is_turned_upright(suffix: str, orientation: int, size: tuple[int, int]) -> None:
    """However the camera was held, the picture is the same, and so are its own width and height."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = images.decode(encode(TO_STORED[orientation](quarters(640, 320)), suffix, exif=exif), size)
    assert picture.pixels.shape == (*size, 3)
    assert_quarters(picture.pixels)
    assert (picture.width, picture.height) == (640, 320)


def test_an_orientation_that_does_not_exist_is_ignored() -> None:
    """A picture with a nonsensical orientation is decoded as it is."""
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    assert_quarters(decode(encode(quarters(), "JPEG", exif=exif), (32, 32)))


def with_damaged_exif(positions_and_bytes: list[tuple[int, int]]) -> bytes:
    """A JPEG with some bytes of its EXIF data overwritten."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "a description"
    exif[0x011A] = 72.5
    data = bytearray(encode(quarters(), "JPEG", exif=exif))
    start = data.index(b"Exif\0\0")
    length = struct.unpack(">H", data[start - 2 : start])[0] - 8
    for position, value in positions_and_bytes:
        data[start + 6 + position % length] = value
    return bytes(data)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_exif_data_does_not_cost_the_picture(damage: list[tuple[int, int]]) -> None:
    """The pixels of a JPEG are decoded even if its EXIF data are damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(with_damaged_exif(damage), (8, 8)).shape == (8, 8, 3)


@pytest.mark.parametrize("suffix", ["JPEG", "TIFF"])
def test_cmyk_is_converted(suffix: str) -> None:
    """Print colours become the matching screen colours."""
    assert_quarters(decode(encode(quarters().convert("CMYK"), suffix), (32, 32)))


def test_a_large_cmyk_jpeg_is_converted() -> None:
    """Decoding at a smaller scale does not change what the channels mean."""
    assert_quarters(decode(encode(quarters(1600, 1600).convert("CMYK"), "JPEG"), (32, 32)))


def test_lab_is_converted() -> None:
    """A TIFF in CIELAB becomes RGB."""
    lab = ImageCms.profileToProfile(
        quarters(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert_quarters(decode(encode(lab, "TIFF"), (32, 32)), tolerance=25)


def half_transparent() -> Image.Image:
    """Red on the left; on the right black that is fully transparent."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_on_white(suffix: str) -> None:
    """Transparent pixels become white, not the black that is often stored in them."""
    options = {"lossless": True, "exact": True} if suffix == "WEBP" else {}
    pixels = decode(encode(half_transparent(), suffix, **options), (32, 32))
    assert pixels[16, 4].tolist() == [255, 0, 0]
    assert pixels[16, 28].tolist() == [255, 255, 255]


def test_hidden_colours_do_not_bleed() -> None:
    """Scaling mixes colours by their opacity: the edge goes from red to white, never through black."""
    pixels = decode(encode(half_transparent().resize((320, 320), Image.Resampling.NEAREST), "PNG"), (8, 8))
    assert (pixels[:, :, 0] == 255).all()


def test_half_transparency_is_mixed_with_white() -> None:
    """Black of half the opacity is grey."""
    pixels = decode(encode(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), "PNG"), (4, 4))
    np.testing.assert_allclose(pixels.astype(int), 127, atol=1)


@pytest.mark.parametrize("suffix", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(suffix: str) -> None:
    """A palette may name one colour as transparent."""
    image = Image.new("P", (16, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 8, 16))
    pixels = decode(encode(image, suffix, transparency=1), (16, 16))
    assert pixels[8, 2].tolist() == [255, 0, 0]
    assert pixels[8, 13].tolist() == [255, 255, 255]


def test_a_palette_may_have_an_opacity_for_each_colour() -> None:
    """A PNG's palette with several opacities is laid on white."""
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(0, (0, 0, 8, 16))
    pixels = decode(encode(image, "PNG", transparency=bytes([255, 128])), (16, 16))
    assert pixels[8, 2].tolist() == [0, 0, 0]
    np.testing.assert_allclose(pixels[8, 13].astype(int), 127, atol=1)


def test_grey_with_alpha_is_laid_on_white() -> None:
    """The same for pictures without colour."""
    image = Image.new("LA", (16, 16), (100, 0))
    image.paste((100, 255), (0, 0, 8, 16))
    pixels = decode(encode(image, "PNG"), (16, 16))
    assert pixels[8, 2].tolist() == [100, 100, 100]
    assert pixels[8, 13].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_transparent_colour_without_palette_is_white(mode: str) -> None:
    """A PNG without alpha channel may name one colour as transparent."""
    black = (0, 0, 0) if mode == "RGB" else 0
    pixels = decode(encode(Image.new(mode, (8, 8), black), "PNG", transparency=black), (4, 4))
    assert (pixels == 255).all()


@pytest.mark.parametrize("suffix", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(suffix: str) -> None:
    """Line art spans the whole range."""
    pixels = decode(encode(quarters().convert("L").point(lambda v: 255 * (v > 200), "1"), suffix), (32, 32))
    assert pixels[4, 4].tolist() == [0, 0, 0]
    assert pixels[28, 28].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (0x2080, 0x20), (0xC0FF, 0xC0), (65535, 255)])
def test_sixteen_bit_grey_keeps_its_brightness(suffix: str, value: int, expected: int) -> None:
    """16 bits become 8 by a fixed scale: a dark photograph stays dark."""
    image = Image.fromarray(np.full((8, 8), value, np.uint16))
    assert (decode(encode(image, suffix), (4, 4)) == expected).all()


def test_big_endian_sixteen_bit_grey() -> None:
    """The order of the bytes does not matter."""
    image = Image.new("I;16B", (8, 8), 0x4020)
    assert (decode(encode(image, "TIFF"), (4, 4)) == 0x40).all()


def png_of_rgb16(red: int, green: int, blue: int) -> bytes:
    """A PNG of one pixel with 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", red, green, blue)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_agrees_with_grey() -> None:
    """Colour and grey are scaled alike."""
    assert decode(png_of_rgb16(0x2080, 0xC0FF, 0xFFFF), (1, 1)).tolist() == [[[0x20, 0xC0, 0xFF]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bit_grey_is_refused(mode: str) -> None:
    """Without a known white, any scale would be a guess."""
    with pytest.raises(BadImageError, match=r"no defined white; save it with 8 or 16 bits"):
        decode(encode(Image.new(mode, (8, 8), 1000), "TIFF"), (4, 4))


@pytest.mark.parametrize("suffix", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(suffix: str) -> None:
    """Of several pictures in a file the first is taken."""
    others = [Image.new("RGB", (64, 32), colour) for colour in ("black", "gray")]
    assert_quarters(decode(encode(quarters(), suffix, save_all=True, append_images=others), (32, 32)))


def test_a_phones_multi_picture_jpeg_gives_the_first() -> None:
    """Phones add a second picture (MPO) behind the photograph."""
    assert_quarters(
        decode(encode(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 32))]), (32, 32))
    )


def test_a_large_jpeg_is_decoded_at_a_smaller_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JPEG beyond the pixel limit is taken where its smaller scale is within it, with its sides in place."""
    data = encode(quarters(1600, 800), "JPEG")
    monkeypatch.setattr(images, "MAX_PIXELS", 30_000)
    assert_quarters(decode(data, (32, 32)))
    with pytest.raises(BadImageError, match="million pixels; scale it down, or save it as a JPEG"):
        decode(encode(quarters(1600, 800), "PNG"), (32, 32))


def test_a_phones_two_hundred_megapixels() -> None:
    """What counts is the size at which a JPEG is decoded, even far beyond Pillow's own limit."""
    picture = images.decode(encode(quarters(16_320, 12_240), "JPEG"), (32, 32))
    assert_quarters(picture.pixels)
    assert (picture.width, picture.height) == (16_320, 12_240)


def test_too_many_pixels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture beyond the limit is refused, before its pixels are decoded, with the way out."""
    monkeypatch.setattr(images, "MAX_PIXELS", 1_999_999)
    data = encode(Image.new("L", (2000, 1000)), "PNG")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("the pixels were decoded"))
    with pytest.raises(BadImageError, match="more than 1 million pixels; scale it down, or save it as a JPEG"):
        decode(data, (8, 8))


def test_a_decompression_bomb_is_refused() -> None:
    """A small file that claims a huge picture is refused by its header."""
    bomb = png_of_rgb16(0, 0, 0).replace(struct.pack(">II", 1, 1), struct.pack(">II", 100_000, 100_000))
    body = bomb[12 : 12 + 17]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(body)) + bomb[33:]
    with pytest.raises(BadImageError, match="more than 90 million pixels"):
        decode(bomb, (8, 8))


def zip_file() -> bytes:
    """An archive of one file."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", encode(quarters(), "JPEG"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"\xff", "known format"),
        (b"<!DOCTYPE html><title>404</title>", "known format"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "known format"),
        (zip_file(), "known format"),
        (bytes(1000), "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "known format"),
        (b"P6 1 1 255\n\0\0\0", "known format"),
    ],
    ids=["empty", "one byte", "HTML", "SVG", "zip", "zeros", "EPS", "PPM"],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    """Data of no format that is decoded is refused with the reason."""
    with pytest.raises(BadImageError, match=message):
        decode(data, (8, 8))


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_half_a_picture_is_none(suffix: str, share: float) -> None:
    """A picture that broke off on its way is refused, not filled with grey."""
    data = encode(Image.effect_noise((200, 200), 60).convert("RGB"), suffix)
    with pytest.raises(BadImageError):
        decode(data[: int(len(data) * share)], (8, 8))


def test_a_large_jpeg_that_broke_off_is_refused() -> None:
    """Decoding at a smaller scale does not hide that the end is missing."""
    data = encode(Image.effect_noise((1600, 1600), 60).convert("RGB"), "JPEG")
    with pytest.raises(BadImageError, match="truncated"):
        decode(data[: len(data) // 2], (8, 8))


def decodes_or_refuses(data: bytes) -> None:
    """The promise of ``decode`` for any bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = decode(data, (5, 7))
        except BadImageError as error:
            assert str(error)
        else:
            assert (pixels.shape, pixels.dtype) == ((5, 7, 3), np.uint8)


MAGIC = [
    b"",
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\xff\0\0\0WEBPVP8 ",
]


@given(st.sampled_from(MAGIC), st.binary(max_size=300))
@settings(max_examples=random_inputs(300))
def test_any_bytes_decode_or_are_refused(magic: bytes, data: bytes) -> None:
    """Random bytes, also behind the first bytes of a known format, give an array or BadImageError, nothing else."""
    decodes_or_refuses(magic + data)


SAMPLES = [
    encode(quarters(), "JPEG"),
    encode(quarters(), "JPEG", progressive=True),
    encode(quarters().convert("CMYK"), "JPEG"),
    encode(quarters(), "PNG"),
    encode(quarters().convert("P"), "PNG", transparency=0),
    encode(Image.fromarray(np.full((9, 9), 5000, np.uint16)), "PNG"),
    encode(quarters(), "GIF", save_all=True, append_images=[Image.new("RGB", (64, 32))]),
    encode(quarters(), "WEBP"),
    encode(quarters(), "BMP"),
    encode(quarters(), "TIFF"),
    encode(quarters(), "TIFF", compression="tiff_lzw"),
]


@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(min_value=0), st.integers(0, 255)), max_size=12),
    st.floats(0, 1),
)
@settings(max_examples=random_inputs(500), suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_picture_decodes_or_is_refused(data: bytes, damage: list[tuple[int, int]], share: float) -> None:
    """Overwritten and cut-off pictures give an array or BadImageError, nothing else."""
    damaged = bytearray(data)
    for position, value in damage:
        damaged[position % len(data)] = value
    decodes_or_refuses(bytes(damaged[: round(len(data) * share)]))


def test_any_error_of_pillow_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception without a message is reported by its type."""

    def fail(_: Image.Image) -> None:
        raise KeyError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(BadImageError, match=r"cannot be decoded \(BMP: KeyError\)"):
        decode(encode(quarters(), "BMP"), (8, 8))
