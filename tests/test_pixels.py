"""One picture has one view: in training, for CLIP, for edits, whatever its form, its file and its aspect."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from small_pipeline import build

from data.decoding import decode_image
from data.image_files import records_of_files
from data.problems import Problems
from unclip import UnCLIP, UserError, edit
from unclip.clip import load_clip
from unclip.page.pictures import open_picked
from unclip.pixels import read_colours, read_pictures, read_pixels
from unclip.store.manifest import read_manifest, recorded_fit, write_manifest

FITS = ("crop", "pad", "stretch")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")
"""A colour profile whose red is sRGB's green, and the other way round."""


def bars(width: int, height: int) -> Image.Image:
    """Colours at both ends, black between, and some noise."""
    image = Image.new("RGB", (width, height))
    image.paste((220, 30, 30), (0, 0, width // 5, height))
    image.paste((30, 30, 220), (width - width // 5, 0, width, height))
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.blend(image, Image.fromarray(noise), 0.2)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def save_pictures(folder: Path) -> list[Path]:
    """Pictures of many modes, formats and sizes."""
    wide = bars(90, 30)
    faded = wide.convert("RGBA")
    faded.putalpha(Image.linear_gradient("L").resize(wide.size))
    palette = wide.quantize(16)
    palette.info["transparency"] = 3
    grey = wide.convert("L")
    kinds = {
        "wide.png": (wide, {}), "high.png": (bars(30, 91), {}), "photograph.jpg": (bars(900, 600), {"quality": 95}),
        "turned.jpg": (wide, {"exif": oriented(6)}), "mirrored.png": (wide, {"exif": oriented(5)}),
        "broken.png": (wide, {"exif": b"Exif\0\0\0\0\x11\0junkjunk"}), "turned.tif": (wide, {"exif": oriented(8)}),
        "faded.png": (faded, {}), "faded.webp": (faded, {"lossless": True}), "grey.png": (faded.convert("LA"), {}),
        "palette.png": (palette, {}), "profile.png": (wide, {"icc_profile": SWAPPED}),
        "profile.jpg": (wide, {"icc_profile": SWAPPED, "exif": oriented(3)}),
        "both.png": (faded, {"icc_profile": SWAPPED}), "ink.jpg": (wide.convert("CMYK"), {}),
        "bits.png": (wide.convert("1"), {}),
        "deep.png": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), {}),
        "deep.tif": (Image.fromarray(np.asarray(grey).astype(np.int32) * 257), {}),
    }  # fmt: skip
    for name, (picture, options) in kinds.items():
        picture.save(folder / name, **options)
    return [folder / name for name in kinds]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> UnCLIP:
    return UnCLIP.from_pretrained(build(tmp_path_factory.mktemp("pipeline")))


@pytest.mark.parametrize("fit", FITS)
def test_training_sees_what_clip_edits_and_the_page_see(fit, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipe, "fit", fit)
    channels, size, _ = pipe.decoder.image_shape
    files = save_pictures(tmp_path)
    records = records_of_files({file: ["x"] for file in files}, tmp_path, {}, {}, Problems("x"))
    trained_on = np.stack([decode_image(record, size, channels, fit) for record in records]).transpose(0, 2, 3, 1)
    usual = pipe.encode_image(trained_on)
    loaded = [Image.open(file) for file in files]
    for image in loaded:
        image.load()
    views = {
        "files": edit.prepare_images(pipe, files),
        "opened": edit.prepare_images(pipe, [Image.open(file) for file in files]),
        "loaded": edit.prepare_images(pipe, loaded),
        "the page's": edit.prepare_images(pipe, [open_picked(str(file)) for file in files]),
    }
    for name, pixels in views.items():
        assert np.array_equal(pixels, trained_on), name
    in_colour = np.stack([decode_image(record, 13, 3, fit) for record in records]).transpose(0, 2, 3, 1)
    assert np.array_equal(read_pictures(files, 13, 3, fit), in_colour)
    assert torch.equal(pipe.encode_image([Image.open(file) for file in files]), usual)
    assert torch.equal(pipe.encode_image([str(files[0]), *files[1:]]), usual)
    wide = np.asarray(Image.open(tmp_path / "wide.png"))
    assert torch.equal(pipe.encode_image(wide[None]), pipe.encode_image([Image.fromarray(wide)]))
    torch.testing.assert_close(pipe.encode_image(wide[None]), usual[:1])


def test_arrays_of_the_pipelines_size_are_embedded_as_they_are(pipe):
    channels, size, _ = pipe.decoder.image_shape
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, channels), dtype=np.uint8)
    images = pipe.preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert torch.equal(pipe.encode_image(pixels), pipe.clip.encode_image(images))


@pytest.mark.parametrize("fit", [*FITS, None, "squeeze", ["pad"]])
def test_a_pipeline_knows_how_its_images_were_made_square(fit, tmp_path):
    build(tmp_path)
    for part in ("clip", "decoder"):
        manifest = read_manifest(tmp_path / part)
        manifest.provenance = {} if fit is None else {"source": "x", "fit": fit}
        if fit in (None, *FITS):
            assert recorded_fit(manifest) == (fit or "crop")
        else:
            with pytest.raises(UserError, match=r"names the fit .*, not crop, pad, stretch"):
                recorded_fit(manifest)
        write_manifest(tmp_path / part, manifest)
    (tmp_path / "model_index.json").unlink(missing_ok=True)
    if fit in (None, *FITS):
        pipe = UnCLIP.from_pretrained(tmp_path)
        assert pipe.fit == (fit or "crop")
        preprocess = load_clip(tmp_path)[2]
        channels, size, _ = pipe.decoder.image_shape
        pixels = torch.from_numpy(read_pixels(bars(90, 30), size, channels, pipe.fit)).permute(2, 0, 1)[None]
        assert torch.equal(preprocess([bars(90, 30)]), preprocess(pixels))


def test_colours_are_converted_to_srgb():
    red = Image.new("RGB", (4, 4), (220, 40, 40))
    red.info["icc_profile"] = SWAPPED
    assert np.abs(np.asarray(read_colours(red, 3), int)[0, 0] - (40, 220, 40)).max() <= 2
    faded = red.convert("RGBA")
    faded.putalpha(0)
    assert (np.asarray(read_colours(faded, 3)) == 255).all()
    one_colour = red.quantize(2)
    one_colour.info["icc_profile"] = SWAPPED
    assert np.abs(np.asarray(read_colours(one_colour, 3), int)[0, 0] - (40, 220, 40)).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("profile", [SRGB, b"junk", b"", SWAPPED[:200]])
def test_a_profile_of_srgb_or_none_that_can_be_used_changes_nothing(mode, profile):
    picture = bars(20, 20).convert(mode)
    marked = picture.copy()
    marked.info["icc_profile"] = profile
    if mode != "CMYK" or profile != SRGB:
        assert read_colours(marked, 3).tobytes() == read_colours(picture, 3).tobytes()


@pytest.mark.parametrize("mode", ["LAB", "La", "RGBa"])
def test_modes_that_pillow_converts_to_few_others_are_read(mode):
    plain = bars(20, 20).convert("L" if mode == "La" else "RGB")
    if mode == "LAB":
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        picture = ImageCms.profileToProfile(plain, *profiles, outputMode="LAB")
    else:
        picture = plain.convert(mode.upper()).convert(mode)
    for channels in (1, 3):
        difference = np.asarray(read_colours(picture, channels), int) - np.asarray(read_colours(plain, channels), int)
        assert np.abs(difference).mean() < 2


def test_a_transparent_level_of_sixteen_bits_becomes_white():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[1000, 40000]], np.uint16)).save(buffer, "PNG", transparency=1000)
    assert read_pixels(Image.open(buffer), 2, 1, "stretch")[0, :, 0].tolist() == [255, 156]


@pytest.mark.parametrize("values", [[0, 9], [0, 255], [-5, 60000], [0, 70000]])
def test_a_range_that_cannot_be_known_is_refused_everywhere(values, pipe, tmp_path):
    Image.fromarray(np.array([values] * 2, np.int32)).save(tmp_path / "a.tif")
    [record] = records_of_files({tmp_path / "a.tif": ["x"]}, tmp_path, {}, {}, Problems("x"))
    for read in (
        partial(decode_image, record, 8, 3, "crop"),
        partial(edit.prepare_images, pipe, tmp_path / "a.tif"),
        partial(pipe.encode_image, [Image.open(tmp_path / "a.tif")]),
    ):
        with pytest.raises(UserError, match=r"its pixels have .* bits .*; scale them to 0 \.\. 65535"):
            read()


@pytest.mark.parametrize(
    "pictures",
    [
        None,
        3,
        [None],
        [3],
        {},
        object(),
        [[1]],
        np.zeros(3),
        b"x",
        [b"x"],
        "",
        ["a\0b"],
        [[[1], [1, 2]]],
        torch.zeros(1, 8, 8, 3, dtype=torch.bfloat16),
    ],
)
def test_anything_else_is_refused_in_one_line(pictures):
    with pytest.raises(UserError) as caught:
        read_pictures(pictures, 8, 3, "crop")
    assert "\n" not in str(caught.value)
