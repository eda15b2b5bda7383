"""Images whose side information is broken or overlong, and images whose pixels are."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from unclip.errors import UserError
from unclip.image_opening import load_image, open_image
from unclip.pixels import read_pixels

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def png(*chunks: tuple[bytes, bytes], after: bool = False, pixels: np.ndarray = PIXELS, **options) -> bytes:
    """A PNG with these chunks, by name and content, before its pixels or after them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    content = buffer.getvalue()
    place = content.index(b"IEND" if after else b"IDAT") - 4
    return content[:place] + b"".join(chunk(*each) for each in chunks) + content[place:]


def chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + data) if checksum is None else checksum
    return len(data).to_bytes(4) + name + data + checksum.to_bytes(4)


LONG = zlib.compress(b"a" * 2**21)
BROKEN = {
    "long packed text": (b"zTXt", b"Comment\0\0" + LONG),
    "long international text": (b"iTXt", b"Comment\0\1\0en\0\0" + LONG),
    "text packed in an unknown way": (b"zTXt", b"Comment\0\7" + LONG),
    "long profile": (b"iCCP", b"icc\0\0" + LONG),
    "profile packed in an unknown way": (b"iCCP", b"icc\0\7" + LONG),
    "profile that is no profile": (b"iCCP", b"icc\0\0" + zlib.compress(b"junk")),
    "wrong checksum": (b"tEXt", b"Comment\0hello", 7),
    "short resolution": (b"pHYs", b"\0\0"),
    "short rendering intent": (b"sRGB", b""),
    "short gamma": (b"gAMA", b"\0"),
    "short animation": (b"acTL", b"\0"),
    "short transparency": (b"tRNS", b"\0"),
    "transparency with a wrong checksum": (b"tRNS", b"\0" * 6, 7),
    "EXIF that is none": (b"eXIf", b"\0\0\x11\0junkjunk"),
    "EXIF with a wrong checksum": (b"eXIf", b"MM\0*\0\0\0\x08", 7),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", BROKEN)
def test_good_pixels_with_broken_side_information_are_read(kind, after, tmp_path):
    content = png(BROKEN[kind], after=after)
    (tmp_path / "a.png").write_bytes(content)
    for source in (tmp_path / "a.png", io.BytesIO(content)):
        with open_image(source) as image:
            assert np.array_equal(load_image(image), PIXELS)
            assert np.array_equal(read_pixels(image, 12, 3, "crop"), PIXELS[:, 4:16])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0\0\0\x11\0junkjunk", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"])
def test_an_image_with_broken_exif_is_upright(format, exif):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 12), "red").save(buffer, format, exif=exif)
    assert read_pixels(Image.open(buffer), 12, 3, "crop")[6, 6, 0] > 250


def test_orientation_transparency_and_profile_survive_a_broken_text():
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = b"x" * 2**21
    pixels = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 128, np.uint8)])
    broken = [BROKEN["long packed text"], (b"iCCP", b"icc\0\0" + zlib.compress(profile))]
    image = load_image(open_image(io.BytesIO(png(*broken, pixels=pixels, exif=exif))))
    assert image.mode == "RGBA"
    assert image.getexif()[0x0112] == 6
    assert image.info["icc_profile"] == profile


def test_broken_pixels_are_not_read():
    content = png(BROKEN["long packed text"])
    for broken in (content[:-60], content.replace(b"IHDR", b"XHDR"), b"\x89PNG\r\n\x1a\n", b"text"):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            load_image(open_image(io.BytesIO(broken)))
    with pytest.raises(UnidentifiedImageError):
        open_image(io.BytesIO(b"<svg/>"))
    with pytest.raises(FileNotFoundError):
        open_image(Path("nowhere.png"))


def save_16_bits(path: Path, values: np.ndarray) -> Path:
    """A PNG of 16 bits in grey (H, W), or colour (H, W, 3), which Pillow cannot write."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = width.to_bytes(4) + height.to_bytes(4) + bytes([16, 2 if values.ndim == 3 else 0, 0, 0, 0])
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(PngImagePlugin._MAGIC + chunks)
    return path


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_sixteen_bits_are_read_by_their_upper_half_or_refused(shape, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, shape)
    image = open_image(save_16_bits(tmp_path / "a.png", values))
    assert np.array_equal(read_pixels(image, 8, shape[-1] if len(shape) == 3 else 1, "crop").squeeze(), values // 256)
    for bits in (8, 10, 12):
        dark = open_image(save_16_bits(tmp_path / f"{bits}.png", values % 2**bits))
        with pytest.raises(UserError, match="its pixels have 16 bits but reach"):
            read_pixels(dark, 8, 3, "crop")
