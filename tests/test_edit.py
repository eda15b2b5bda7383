"""Image manipulations on the committed pipeline, on a few images and in few steps, and on pipelines of other shapes."""

import io
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from unclip import UnCLIP, UserError, edit
from unclip.clip import CLIP, Preprocess
from unclip.clip.model import CLIPConfig
from unclip.clip.text import TextConfig
from unclip.clip.vision import VisionConfig
from unclip.decoder import DecoderConfig, DiffusionDecoder, DiffusionDecoderConfig, UNetConfig
from unclip.edit.text_change import LEAN
from unclip.prior import DiffusionPrior, DiffusionPriorConfig, PriorConfig

EXAMPLES = ROOT / "checkpoints" / "fashion-mnist" / "examples"
FEW = {"steps": 4}
FEW_IN_BOTH = {"steps": 4, "prior_steps": 3}


@pytest.fixture(scope="module")
def pipe() -> UnCLIP:
    return UnCLIP.from_pretrained(ROOT / "checkpoints" / "fashion-mnist")


@pytest.fixture(scope="module")
def shoe() -> Image.Image:
    return Image.open(EXAMPLES / "sneaker.png")


@pytest.fixture(scope="module")
def boot() -> Image.Image:
    return Image.open(EXAMPLES / "ankle-boot.png")


@pytest.fixture(scope="module")
def foreign(pipe) -> UnCLIP:
    """Colour, 12x12, CLIP at 16x16 of width 24, a decoder without a text path: random weights."""
    torch.manual_seed(0)
    vocabulary = pipe.clip.config.text.vocab_size
    vision = VisionConfig(image_size=16, channels=3, patch_size=8, width=32, layers=1, heads=2)
    text = TextConfig(vocab_size=vocabulary, eos_id=1, context=16, width=32, layers=1, heads=2)
    clip = CLIP(CLIPConfig(24, vision, text))
    prior_network = PriorConfig(embed_dim=24, text_width=32, context=16, width=32, layers=1, heads=2)
    prior = DiffusionPrior(DiffusionPriorConfig(prior_network))
    unet = UNetConfig(width=16, multipliers=(1,), attention_levels=(0,), head_dim=16)
    shape = {"embed_dim": 24, "text_width": 32, "image_size": 12, "channels": 3}
    decoder = DiffusionDecoder(DiffusionDecoderConfig(DecoderConfig(**shape, text=False, unet=unet)))
    for parameter in prior.parameters():  # a new one draws zeros, which are no embedding
        torch.nn.init.normal_(parameter, std=0.2)
    parts = (part.eval().requires_grad_(False) for part in (clip, prior, decoder))
    clip, prior, decoder = parts
    return UnCLIP(clip, pipe.tokenizer, Preprocess(16, 3), prior, decoder)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(((one.astype(float) - other) ** 2).mean(), 1e-3))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal to within rounding."""
    return one.shape == other.shape and np.abs(one.astype(int) - other.astype(int)).max() <= 1


# --- images and masks -------------------------------------------------------------------------------------------------


def test_an_image_of_the_decoders_size_stays_as_it_is_in_every_form(pipe, shoe):
    pixels = np.asarray(shoe.convert("L"))
    forms = [EXAMPLES / "sneaker.png", str(EXAMPLES / "sneaker.png"), shoe, pixels, pixels[..., None],
             pixels[None, ..., None], [pixels], torch.from_numpy(pixels.copy()), shoe.convert("RGB")]  # fmt: skip
    for form in forms:
        assert np.array_equal(edit.prepare_images(pipe, form), pixels[None, ..., None])
    assert edit.prepare_images(pipe, [shoe, pixels, EXAMPLES / "bag.png"]).shape == (3, 28, 28, 1)


def test_a_large_image_is_cut_to_its_middle_and_its_transparent_parts_are_white(pipe):
    picture = np.zeros((60, 100, 4), np.uint8)
    picture[:, 20:80] = (0, 0, 0, 255)  # outside of the middle square: transparent black
    picture[:30, 20:80, :3] = 200
    prepared = edit.prepare_images(pipe, picture)
    assert prepared.shape == (1, 28, 28, 1)
    assert (prepared[0, :13] > 190).all()
    assert (prepared[0, 16:, 2:-2] < 10).all()
    assert edit.prepare_images(pipe, np.zeros((9, 9, 4), np.uint8)).min() == 255


def test_a_mask_keeps_its_single_pixel_however_large_the_image(pipe):
    picture, mask = np.zeros((400, 600, 3), np.uint8), np.zeros((400, 600), bool)
    mask[200, 300] = True
    fitted = edit.prepare_mask(pipe, picture, mask)
    assert fitted.shape == (1, 1, 28, 28)
    assert fitted.sum() == 1
    assert fitted[0, 0, 14, 14]
    erased = Image.new("RGBA", (600, 400), "white")
    erased.putpixel((300, 200), (255, 255, 255, 0))
    with pytest.warns(UserWarning, match="the mask is transparent in 0% of its pixels: that part is painted"):
        assert torch.equal(edit.prepare_mask(pipe, picture, erased), fitted)
    assert torch.equal(edit.prepare_mask(pipe, picture, mask.astype(np.uint8)), fitted)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(37, 90), (90, 37), (29, 28), (300, 1)])
def test_a_mask_goes_where_its_pixels_go(fit, shape, pipe, monkeypatch):
    """Painted are the pixels of the decoder that a white patch on black touches, and hardly any beside it."""
    monkeypatch.setattr(pipe, "fit", fit)
    drawn = np.zeros(shape, np.uint8)
    drawn[: shape[0] // 2, -(-shape[1] // 3) :] = 255
    mask = edit.prepare_mask(pipe, drawn, drawn)[0, 0].numpy()
    picture = edit.prepare_images(pipe, drawn)[0, ..., 0]
    margins = edit.prepare_images(pipe, np.zeros(shape, np.uint8))[0, ..., 0] == 255
    assert not mask[margins].any()
    assert mask[(picture > 128) & ~margins].all()
    assert not mask[picture == 0].all() or not mask.any()
    assert (mask & (picture < 64)).mean() < 0.1


MASKS = {"L": 255, "1": 1, "P": 255, "I": 1, "I;16": 9, "F": 0.5, "RGB": (250, 0, 0)}


@pytest.mark.parametrize("mode", MASKS)
def test_masks_of_any_mode_are_painted_where_they_are_bright(mode, pipe):
    mask = Image.new("L", (28, 28)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        mask = Image.fromarray(np.zeros((28, 28), np.uint16))
    mask.paste(MASKS[mode], (0, 0, 28, 10))
    assert edit.prepare_mask(pipe, BLACK, mask)[0, 0].any(dim=1).sum() == 10


def test_masks_with_soft_edges_are_painted_where_they_are_bright(pipe):
    mask = Image.new("LA", (28, 28), (0, 255))
    mask.paste((255, 200), (0, 0, 28, 10))
    for picture in (mask, mask.convert("La")):
        assert edit.prepare_mask(pipe, BLACK, picture)[0, 0].any(dim=1).sum() == 10


def broken_mask() -> Image.Image:
    """A PNG, opened but not yet read, that ends within its pixels."""
    buffer = io.BytesIO()
    Image.effect_noise((28, 28), 50).save(buffer, "PNG")
    return Image.open(io.BytesIO(buffer.getvalue()[:-40]))


def test_the_erased_part_of_a_picture_is_painted_and_said(pipe, tmp_path):
    erased = Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).convert("RGBA")
    erased.paste((200, 200, 200, 0), (0, 0, 40, 60))
    erased.save(tmp_path / "erased.png")
    with pytest.warns(UserWarning, match="transparent in 50% of its pixels"):
        mask = edit.prepare_mask(pipe, erased, tmp_path / "erased.png")[0, 0]
    assert mask[:, :14].all()
    assert not mask[:, 14:].any()


BLACK = np.zeros((28, 28), np.uint8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: edit.prepare_images(p, []), "empty"),
        (lambda p: edit.prepare_images(p, np.zeros((0, 28, 28, 1), np.uint8)), "empty"),
        (lambda p: edit.prepare_images(p, np.zeros((28, 28))), "uint8"),
        (lambda p: edit.prepare_images(p, np.zeros((28, 28, 2), np.uint8)), "1, 3 or 4 channels"),
        (lambda p: edit.prepare_images(p, "nowhere.png"), "no image nowhere.png"),
        (lambda p: edit.prepare_images(p, ROOT / "README.md"), "cannot be read as an image (it is in no format"),
        (lambda p: edit.inpaint(p, BLACK, np.zeros((27, 28), bool)), "28x28 as its image"),
        (lambda p: edit.inpaint(p, BLACK, np.zeros((28, 28))), "bool or uint8"),
        (lambda p: edit.inpaint(p, BLACK, [BLACK, BLACK]), "2 masks cannot go with 1 image"),
        (lambda p: edit.inpaint(p, BLACK, BLACK[..., None]), "one mask is (H, W), and several are (N, H, W)"),
        (lambda p: edit.inpaint(p, BLACK, broken_mask()), "the mask cannot be read as an image"),
        (lambda p: edit.inpaint(p, BLACK, BLACK > 0, ["a", "b"]), "2 captions cannot go with 1 image"),
        (lambda p: edit.inpaint(p, BLACK, BLACK == 0, sampler="ddim"), "leave sampler out"),
        (lambda p: edit.inpaint(p, BLACK, BLACK == 0, num_candidates=2), "leave num_candidates out"),
        (lambda p: edit.mix(p, {}), "weights"),
        (lambda p: edit.mix(p, {"a bag": 0, "a boot": 0.0}), "weights must be at least 0"),
        (lambda p: edit.mix(p, {"a bag": 2, "a boot": -1}), "weights must be at least 0"),
        (lambda p: edit.mix(p, {"a bag": math.nan}), "weights"),
        (lambda p: edit.mix(p, {"a bag": 1}, n=0), "n must be at least 1"),
        (lambda p: edit.vary(p, BLACK, keep=1.5), "keep must lie between 0 and 1"),
        (lambda p: edit.vary(p, BLACK, keep=0.5, sampler="dpmpp"), "leave sampler and eta out"),
        (lambda p: edit.vary(p, BLACK, keep=0.5, spacing="even"), "leave spacing out"),
        (lambda p: edit.change(p, BLACK, "a bag", "a boot", style="faithful"), "leave style out"),
        (lambda p: edit.vary(p, BLACK, seed=-1), "seed"),
        (lambda p: edit.blend(p, BLACK, BLACK, frames=1), "at least 2 frames"),
        (lambda p: edit.blend(p, BLACK, BLACK, spacing="karras"), "leave spacing out"),
        (lambda p: edit.blend(p, BLACK, BLACK, num_candidates=2), "leave num_candidates out"),
        (lambda p: edit.blend(p, [BLACK] * 2, BLACK), "2 images cannot be blended with 1"),
        (lambda p: edit.change(p, BLACK, "a bag", "a bag"), "nothing to change"),
        (lambda p: edit.change(p, BLACK, "a bag", "a boot", amounts=(0, 2)), "amounts must lie between 0 and 1"),
        (lambda p: edit.probe(p, BLACK, components=(-1,)), "components"),
        (lambda p: edit.corrupt(p, BLACK, times=0), "times must be at least 1"),
        (lambda p: edit.invert(p, BLACK, steps=1), "at least 2 steps"),
        (lambda p: edit.blend(p, BLACK, BLACK, prior_steps=3), "the prior, which blend does not draw with"),
        (lambda p: edit.vary(p, BLACK, prior_steps=3), "the prior, which vary does not draw with"),
        (lambda p: edit.vary(p, BLACK, keep=0.5, fast_steps=3), "which vary with keep does not draw with"),
        (lambda p: edit.blend(p, BLACK, BLACK, upscale="none"), "the upsampler, which this pipeline lacks"),
        (lambda p: edit.change(p, BLACK, "a", "b", fast_steps=1), "the fast_decoder, which change does not draw with"),
        (lambda p: edit.inpaint(p, BLACK, BLACK == 0, prior_guidance=2), "the prior, which inpaint does not draw with"),
        (lambda p: edit.inpaint(p, BLACK, BLACK == 0, "a", fast_steps=1), "inpaint with a caption does not draw with"),
        (lambda p: edit.probe(p, BLACK, prior_steps=3), "the prior, which probe does not draw with"),
        (lambda p: edit.mix(p, {"a bag": 1}, upscale_steps=3), "the upsampler, which this pipeline lacks"),
        (lambda p: p("a bag", upscale_steps=3), "the upsampler, which this pipeline lacks"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line(call, words, pipe):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        call(pipe)
    assert "\n" not in str(caught.value)


# --- what the functions promise ---------------------------------------------------------------------------------------


def test_slerp_turns_evenly_along_the_great_circle():
    """On a circle it is the point at the angle between; lengths of vectors at right angles follow cos and sin."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.cos(2.0), math.sin(2.0)]])
    amounts = torch.tensor([0, 0.25, 1])
    angles = 2.0 * amounts
    torch.testing.assert_close(edit.slerp(a, b, amounts)[0], torch.stack([angles.cos(), angles.sin()], dim=1))
    c = torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(edit.slerp(a, c, torch.tensor([0.5]))[0, 0], torch.tensor([0.5**0.5, 3 * 0.5**0.5]))
    torch.testing.assert_close(edit.slerp(a, a, amounts), a.expand(1, 3, 2).contiguous())
    noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    between = edit.slerp(noise[0], noise[1], torch.tensor([0.3, 0.5]))
    assert between.shape == (3, 2, 4, 5, 5)
    assert between.std().item() == pytest.approx(1, abs=0.1)  # where a straight line would shrink it to 0.71


def test_an_inverted_image_is_reconstructed(pipe, shoe, boot):
    latent = edit.invert(pipe, [shoe, boot], steps=20)
    assert latent.embeddings.shape == (2, 128)
    assert latent.noise.shape == (2, 1, 28, 28)
    assert 0.7 < latent.noise.std() < 1.3
    again = edit.reconstruct(pipe, latent)
    for one, other in zip(again, edit.prepare_images(pipe, [shoe, boot]), strict=True):
        assert psnr(one, other) > 30
    torch.testing.assert_close(edit.invert(pipe, boot, steps=20).noise, latent.noise[1:], atol=1e-3, rtol=0)


def test_inversion_reads_captions_and_guidance_too(pipe, boot):
    latent = edit.invert(pipe, boot, "an ankle boot", steps=20, guidance=2.0)
    assert psnr(edit.reconstruct(pipe, latent), edit.prepare_images(pipe, boot)) > 30


@pytest.mark.parametrize(
    "draw",
    [
        lambda p, images, **settings: edit.blend(p, images, images, frames=2, **settings),
        lambda p, images, **settings: edit.change(p, images, "a bag", "a boot", **settings),
        lambda p, images, **settings: edit.vary(p, images, n=1, keep=0.5, **settings),
    ],
)
def test_no_more_images_are_inverted_or_drawn_at_once_than_asked_for(draw, pipe, shoe, boot, monkeypatch):
    counts = []
    for name in ("invert_images", "draw_images"):
        method = getattr(pipe.decoder, name)
        monkeypatch.setattr(pipe.decoder, name, lambda x, *a, method=method: counts.append(len(x)) or method(x, *a))
    draw(pipe, [shoe, boot], steps=2, batch_size=1)
    assert set(counts) == {1}


def test_variations_depend_on_their_own_image_and_seed(pipe, shoe, boot):
    both = edit.vary(pipe, [shoe, boot], n=2, seed=5, **FEW)
    assert both.images.shape == (4, 28, 28, 1)
    assert both.seeds == [5, 6, 5, 6]
    assert same(edit.vary(pipe, boot, n=1, seed=6, **FEW).images, both.images[3:])
    assert psnr(both.images[2], both.images[3]) < 30
    torch.testing.assert_close(both.embeddings[2:3], pipe.encode_image([boot]), atol=1e-5, rtol=0)


def test_of_several_tries_at_a_variation_the_closest_to_the_image_is_kept(pipe, shoe, boot):
    once, thrice = (edit.vary(pipe, [shoe, boot], n=4, num_candidates=tries, **FEW) for tries in (1, 3))
    near, nearer = ((pipe.encode_image(out.images) * out.embeddings).sum(dim=1) for out in (once, thrice))
    assert (nearer >= near - 1e-3).all()
    assert (nearer > near + 1e-3).any()
    again = pipe.decode(thrice.embeddings, seed=thrice.seeds, noise=thrice.noise, **FEW)
    assert np.abs(again - thrice.images.astype(int)).max() <= 1


def test_keep_leads_from_new_noise_to_the_image_itself(pipe, boot):
    images = {keep: edit.vary(pipe, boot, n=2, keep=keep, steps=20).images for keep in (0.01, 0.9, 1.0)}
    given = edit.prepare_images(pipe, boot)[0]
    assert psnr(images[1.0][0], given) > 30
    assert psnr(images[0.01][0], given) < psnr(images[0.9][0], given) < psnr(images[1.0][0], given)


def test_a_blend_begins_and_ends_at_the_reconstructions(pipe, shoe, boot):
    frames = edit.blend(pipe, shoe, boot, frames=3, steps=20)
    assert frames.shape == (3, 28, 28, 1)
    latent = edit.invert(pipe, [shoe, boot], steps=20)
    assert same(frames[[0, 2]], edit.reconstruct(pipe, latent))
    pairs = edit.blend(pipe, [shoe, boot], [boot, shoe], frames=3, steps=20)
    assert same(pairs[0], frames)
    assert same(pairs[1], frames[::-1])


def test_change_turns_the_embedding_towards_the_difference_of_the_texts(pipe, boot, monkeypatch):
    given = []
    decode = pipe.decode
    monkeypatch.setattr(pipe, "decode", lambda z, *a, **k: given.append(z) or decode(z, *a, **k))
    images = edit.change(pipe, boot, "a dark boot", "a light boot", amounts=(0, 0.5), space="text", steps=10)
    assert images.shape == (1, 2, 28, 28, 1)
    text = pipe.encode_text(["a dark boot", "a light boot"]).double()
    direction = (text[1] - text[0]) / (text[1] - text[0]).norm()
    z = pipe.encode_image([boot])[0].double()
    middle = (z + direction) / (z + direction).norm()  # half of the way between two unit vectors
    torch.testing.assert_close(given[0].double(), torch.stack([z, middle]), atol=1e-5, rtol=0)


def test_among_images_the_direction_of_a_change_leans_towards_what_it_leads_to(pipe):
    before, after = pipe.prior.map_text(pipe.encode_text(["a narrow shoe", "a wide shoe"]))
    one, other = (after - before) / (after - before).norm(), after / after.norm()
    leaning = edit.text_difference(pipe, "a narrow shoe", "a wide shoe")[0]
    torch.testing.assert_close(leaning, (one + LEAN * other) / (one + LEAN * other).norm())
    assert 0.8 < leaning @ one < 1
    assert leaning @ other > one @ other


def test_a_dark_coat_becomes_light(pipe):
    images = edit.change(pipe, EXAMPLES / "coat.png", "a dark coat", "a light coat", amounts=(0, 0.5), steps=20)
    assert psnr(images[0, 0], edit.prepare_images(pipe, EXAMPLES / "coat.png")[0]) > 30
    assert images[0, 1].mean() > 1.3 * images[0, 0].mean()


def test_a_mix_of_one_prompt_is_that_prompt_and_weights_count_by_their_shares(pipe):
    typical = partial(pipe.embed, prior_steps=3, prior_threshold=1.0)
    alone = edit.mix(pipe, {"a bag": 3.0, "a boot": 0.0}, n=2, seed=1, **FEW_IN_BOTH)
    torch.testing.assert_close(alone.embeddings, typical("a bag", n=2, seed=1), atol=1e-4, rtol=0)
    one, other = (edit.mix(pipe, {"a bag": w, "a boot": w}, n=2, seed=1, **FEW_IN_BOTH) for w in (0.5, 7.0))
    assert same(one.images, other.images)
    a, b = typical(["a bag", "a boot"], n=1, seed=2)
    torch.testing.assert_close(one.embeddings[1], (a + b) / (a + b).norm(), atol=1e-4, rtol=0)


def test_inpainting_leaves_the_rest_alone_bit_for_bit(pipe, shoe, boot):
    mask = np.zeros((28, 28), bool)
    mask[14:, :20] = True
    both = edit.inpaint(pipe, [shoe, boot], mask, ["a sneaker", "an ankle boot"], n=2, seed=3, **FEW_IN_BOTH)
    given = edit.prepare_images(pipe, [shoe, boot]).repeat(2, axis=0)
    assert np.array_equal(both.images[:, ~mask], given[:, ~mask])
    assert not np.array_equal(both.images[:, mask], given[:, mask])
    alone = edit.inpaint(pipe, boot, mask, "an ankle boot", n=1, seed=4, **FEW_IN_BOTH)
    assert same(alone.images, both.images[3:])


def test_masks_of_all_of_one_and_of_no_pixel(pipe, boot):
    given = edit.prepare_images(pipe, boot)
    whole = edit.inpaint(pipe, boot, np.ones((28, 28), bool), "a bag", **FEW_IN_BOTH)
    assert psnr(whole.images, given) < 20
    one = np.zeros((28, 28), bool)
    one[20, 10] = True
    assert np.array_equal(edit.inpaint(pipe, boot, one, **FEW).images[:, ~one], given[:, ~one])
    with pytest.warns(UserWarning, match="selects no pixel"):
        assert np.array_equal(edit.inpaint(pipe, boot, ~np.ones((28, 28), bool), **FEW).images, given)


def test_principal_axes_are_found_again():
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
    points = torch.randn(5000, 3, generator=generator) * torch.tensor([3.0, 1.0, 0.1]) @ rotation.T + 5
    mean, axes = edit.principal_axes(points)
    torch.testing.assert_close(mean, points.mean(dim=0))
    torch.testing.assert_close((axes @ rotation).abs(), torch.eye(3), atol=0.05, rtol=0)


def test_all_components_give_the_embedding_and_none_its_mean(pipe, boot, monkeypatch):
    given = []
    decode = pipe.decode
    monkeypatch.setattr(pipe, "decode", lambda z, *a, **k: given.append(z) or decode(z, *a, **k))
    reference = torch.nn.functional.normalize(torch.randn(300, 128, generator=torch.Generator().manual_seed(0)) + 1)
    images = edit.probe(pipe, boot, components=(0, 5, 128, 1000), reference=reference, **FEW)
    assert images.shape == (1, 4, 28, 28, 1)
    z, mean = pipe.encode_image([boot])[0], reference.mean(dim=0)
    torch.testing.assert_close(given[0][0], mean / mean.norm(), atol=1e-5, rtol=0)
    torch.testing.assert_close(given[0][2:], z.expand(2, -1), atol=1e-5, rtol=0)
    assert same(images[:, 2], images[:, 3])
    assert same(images[:, 2], pipe.decode(z[None], seed=0, **FEW))


def test_corruption_follows_the_forward_process(pipe, boot):
    shown = edit.corrupt(pipe, [boot, boot], times=4, seed=2)
    assert shown.times == pytest.approx([0.001, 0.334, 0.667, 1.0])
    assert shown.noised.shape == shown.predicted.shape == (2, 4, 28, 28, 1)
    given = edit.prepare_images(pipe, boot)[0]
    for x in (shown.noised, shown.predicted):
        quality = [psnr(one, given) for one in x[0]]
        assert quality == sorted(quality, reverse=True)
    assert np.array_equal(shown.noised[0], shown.noised[1])
    assert psnr(shown.predicted[0, 1], given) > psnr(shown.noised[0, 1], given)


def test_everything_works_in_colour_without_a_text_path_and_with_another_clip(foreign):
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (20, 33, 3), dtype=np.uint8)
    one = (12, 12, 3)
    assert edit.reconstruct(foreign, edit.invert(foreign, picture, steps=3)).shape == (1, *one)
    assert edit.vary(foreign, picture, n=2, **FEW).images.shape == (2, *one)
    assert edit.blend(foreign, picture, picture, frames=3, steps=3).shape == (3, *one)
    assert edit.change(foreign, picture, "a bag", "a boot", space="text", steps=3).shape == (1, 3, *one)
    assert edit.mix(foreign, {"a bag": 1, "a boot": 2}, n=2, **FEW_IN_BOTH).images.shape == (2, *one)
    assert edit.inpaint(foreign, picture, np.ones((20, 33), bool), "a bag", **FEW_IN_BOTH).images.shape == (1, *one)
    reference = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))
    assert edit.probe(foreign, picture, reference=reference, **FEW).shape == (1, 4, *one)
    assert edit.corrupt(foreign, picture, times=2).predicted.shape == (1, 2, *one)
