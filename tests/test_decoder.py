"""The decoder: the laws that its condition keeps, and how it is drawn from."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from networks import close, differ, randomise

from unclip.clip import TextFeatures
from unclip.decoder import Decoder, DecoderConfig
from unclip.diffusion.samplers import DECODER_STREAM, PRIOR_STREAM, RowNoise, guided
from unclip.errors import UserError
from unclip.settings import DecoderSettings

QUICK = settings(deadline=None, max_examples=20, derandomize=True)
CONFIG = DecoderConfig(
    embed_dim=6,
    text_width=5,
    image_size=8,
    width=8,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    head_dim=8,
    condition_width=12,
    timesteps=50,
)
LENGTHS = [4, 2, 6]  # of the three captions


def random_decoder(**changes) -> Decoder:
    return randomise(Decoder(replace(CONFIG, **changes)))


def inputs(channels: int = 1, height: int = 8, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, height, width, generator=generator), torch.tensor([0, 20, 49])


def embeddings() -> torch.Tensor:
    """Unit image embeddings (3, 6)."""
    return F.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(2)), dim=-1)


def captions() -> TextFeatures:
    """Three captions of unequal length. The decoder does not read their text embeddings."""
    encodings = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(3))
    mask = torch.arange(6) < torch.tensor(LENGTHS)[:, None]
    return TextFeatures(torch.full((3, 6), torch.nan), encodings, mask, torch.zeros(3, dtype=torch.bool))


def other_captions() -> TextFeatures:
    """Three of other words and lengths."""
    return replace(captions(), tokens=-captions().tokens, mask=captions().mask.flip(0))


def alone(row: int) -> TextFeatures:
    """One of the captions, without padding."""
    one, n = captions()[row : row + 1], LENGTHS[row]
    return replace(one, tokens=one.tokens[:, :n], mask=one.mask[:, :n])


NONE, ALL = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)


# The network.


def test_a_decoder_is_its_condition_and_a_unet():
    decoder = random_decoder()
    (x, t), condition = inputs(), decoder.condition(embeddings(), captions(), NONE)
    assert set(dict(decoder.named_children())) == {"image_condition", "text_condition", "time", "unet"}
    tokens = []
    decoder.unet.register_forward_hook(lambda module, given, _: tokens.append(given))
    output = decoder(x, t, condition)
    [(got_x, vector, got_tokens, mask)] = tokens
    assert got_x is x
    assert got_tokens is condition.tokens
    assert mask is condition.mask
    assert torch.equal(decoder.unet(x, vector, got_tokens, mask), output)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_untrained_decoder_puts_out_zero_for_any_size(text, channels):
    decoder = Decoder(replace(CONFIG, channels=channels, text=text))
    condition = decoder.condition(embeddings(), captions(), NONE)
    for size in [(8, 8), (7, 9)]:
        x, t = inputs(channels, *size)
        assert torch.equal(decoder(x, t, condition), torch.zeros_like(x))


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("levels", "text_layers"), [((), 0), ((0, 1), 2)])
def test_gradient_reaches_every_parameter(multipliers, blocks, levels, text_layers):
    levels = tuple(level for level in levels if level < len(multipliers))
    config = {"multipliers": multipliers, "blocks": blocks, "attention_levels": levels, "text_layers": text_layers}
    decoder = random_decoder(**config, channels=3)
    (x, t), drop = inputs(3), torch.tensor([False, True, False])
    condition = decoder.condition(embeddings(), captions().drop(drop.roll(1)), drop)
    decoder(x, t, condition).square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_everything_it_is_told_has_an_effect():
    decoder = random_decoder()
    (x, t), rows = inputs(), embeddings()
    before = decoder(x, t, decoder.condition(rows, captions(), NONE))
    assert differ(decoder(x, 49 - t, decoder.condition(rows, captions(), NONE)), before)
    assert differ(decoder(x, t, decoder.condition(-rows, captions(), NONE)), before)
    assert differ(decoder(x, t, decoder.condition(rows, other_captions(), NONE)), before)


def test_a_batch_equals_its_singles():
    decoder = random_decoder()
    (x, t), drop = inputs(), torch.tensor([False, True, False])
    together = decoder(x, t, decoder.condition(embeddings(), captions().drop(drop.roll(1)), drop))
    for i in range(3):
        one = slice(i, i + 1)
        condition = decoder.condition(embeddings()[one], alone(i).drop(drop.roll(1)[one]), drop[one])
        close(decoder(x[one], t[one], condition)[0], together[i])


def test_nothing_is_kept_between_calls():
    decoder = random_decoder()
    (x, t), condition = inputs(), decoder.condition(embeddings(), captions(), NONE)
    modules = {name: set(vars(module)) for name, module in decoder.named_modules()}
    weights = {name: value.clone() for name, value in decoder.state_dict().items()}
    first = decoder(x, t, condition)
    decoder(*inputs(1, 5, 9), condition)
    assert torch.equal(decoder(x, t, condition), first)
    assert {name: set(vars(module)) for name, module in decoder.named_modules()} == modules
    assert all(torch.equal(value, weights[name]) for name, value in decoder.state_dict().items())


def test_the_process_is_that_of_the_config():
    d = random_decoder(prediction="eps", schedule="sigmoid").diffusion()
    assert (d.prediction, d.timesteps, d.schedule) == ("eps", 50, "sigmoid")


# The condition.


def test_the_image_gives_a_vector_and_four_tokens_before_the_captions():
    decoder = random_decoder()
    condition = decoder.condition(embeddings(), captions(), NONE)
    assert condition.vector.shape == (3, 4 * 8)
    assert condition.tokens.shape == (3, 4 + 6, 12)
    assert condition.mask.sum(dim=1).tolist() == [4 + n for n in LENGTHS]
    scaled = decoder.image_condition.scaler.scale(embeddings())
    projection = decoder.image_condition.to_tokens
    close(condition.tokens[:, :4], (scaled @ projection.weight.T + projection.bias).view(3, 4, 12))


def test_padded_caption_tokens_have_no_influence():
    decoder = random_decoder(text_layers=2)
    (x, t), some = inputs(), captions()
    before = decoder(x, t, decoder.condition(embeddings(), some, NONE))
    filled = replace(some, tokens=torch.where(some.mask[..., None], some.tokens, 50.0))
    close(decoder(x, t, decoder.condition(embeddings(), filled, NONE)), before)
    longer = replace(some, tokens=F.pad(some.tokens, (0, 0, 0, 3), value=9.0), mask=F.pad(some.mask, (0, 3)))
    close(decoder(x, t, decoder.condition(embeddings(), longer, NONE)), before)


def test_a_dropped_image_tells_nothing():
    decoder = random_decoder()
    x, t = inputs()
    before = decoder(x, t, decoder.condition(embeddings(), captions(), ALL))
    close(decoder(x, t, decoder.condition(-embeddings(), captions(), ALL)), before)
    assert differ(decoder(x, t, decoder.condition(embeddings(), captions(), NONE)), before)


def test_an_empty_caption_tells_nothing_not_even_its_length():
    decoder = random_decoder()
    (x, t), null = inputs(), captions().null()
    before = decoder(x, t, decoder.condition(embeddings(), null, NONE))
    close(decoder(x, t, decoder.condition(embeddings(), other_captions().null(), NONE)), before)
    short = replace(null, tokens=null.tokens[:, :1], mask=null.mask[:, :1])
    close(decoder(x, t, decoder.condition(embeddings(), short, NONE)), before)
    assert differ(decoder(x, t, decoder.condition(embeddings(), captions(), NONE)), before)


def test_a_decoder_without_text_ignores_captions():
    decoder = random_decoder(text=False)
    one, other = (decoder.condition(embeddings(), some, NONE) for some in (captions(), other_captions().null()))
    assert torch.equal(one.tokens, other.tokens)
    assert torch.equal(one.mask, other.mask)
    assert one.tokens.shape == (3, 4, 12)


# Drawing images.

SEEDS = [0, 1, 2]
THREE = DecoderSettings(steps=3, guidance=2.0, guidance_interval=(0.0, 1.0), spacing="even")
PLAIN = replace(THREE, guidance=1.0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_batch_of_images_equals_its_singles(sampler, guidance):
    eta = 0.5 if sampler == "ddim" else 0.0
    decoder, settings = random_decoder(channels=3), DecoderSettings(3, guidance, sampler=sampler, eta=eta)
    together = decoder.draw(embeddings(), captions(), [4, 5, 6], settings)
    assert together.shape == (3, 3, 8, 8)
    assert together.abs().max() <= 1
    for i in range(3):
        close(decoder.draw(embeddings()[i : i + 1], alone(i), [4 + i], settings)[0], together[i])


def test_without_guidance_towards_the_condition_nothing_of_it_is_left():
    decoder, towards = random_decoder(), replace(THREE, guidance=0.0)
    one = decoder.draw(embeddings(), captions(), SEEDS, towards)
    close(decoder.draw(-embeddings(), other_captions(), SEEDS, towards), one)
    close(decoder.draw(None, captions().null(), SEEDS, PLAIN), one)


def test_no_embeddings_are_dropped_ones():
    """The caption is still read, and guided by."""
    decoder = random_decoder()
    denoise = decoder.denoiser(None, captions(), THREE)
    pairs = TextFeatures.cat([captions(), captions().null()])
    both = decoder.condition(embeddings().repeat(2, 1), pairs, ALL.repeat(2))
    model = guided(lambda x, t: decoder(x, t, both), 2.0)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    close(denoise(x, 30), decoder.diffusion().denoiser(model, clip_x0=1.0)(x, 30))
    assert differ(denoise(x, 30), decoder.denoiser(None, other_captions(), THREE)(x, 30))


def test_guidance_acts_within_its_interval_alone():
    """The three steps are at times 49, 32 and 16 of 0 .. 49."""
    decoder, x = random_decoder(), inputs()[0]

    def predictions(guidance: float, *interval: float) -> list[torch.Tensor]:
        settings = replace(THREE, guidance=guidance, guidance_interval=interval)
        denoise = decoder.denoiser(embeddings(), captions(), settings)
        return [denoise(x, t) for t in (49, 32, 16)]

    always, never = predictions(2.0, 0.0, 1.0), predictions(1.0, 0.0, 1.0)
    assert all(differ(one, other) for one, other in zip(always, never, strict=True))
    for interval, inside in [((0.0, 0.3), "nnn"), ((0.0, 0.9), "nyy"), ((0.5, 0.9), "nyn"), ((16 / 49, 1.0), "yyy")]:
        want = [(always if inside[i] == "y" else never)[i] for i in range(3)]
        torch.testing.assert_close(predictions(2.0, *interval), want)


def test_every_step_shows_the_state_and_the_clipped_prediction():
    decoder, steps = random_decoder(), []
    rows = (embeddings(), captions(), SEEDS, THREE)
    drawn = decoder.draw(*rows, on_step=lambda *step: steps.append(step))
    assert [t for t, _, _ in steps] == [49, 32, 16]
    assert all(x0.abs().max() <= 1 and x.shape == x0.shape == drawn.shape for _, x, x0 in steps)
    assert torch.equal(steps[0][1], decoder.noise(SEEDS))
    assert torch.equal(steps[-1][2], drawn)
    assert torch.equal(decoder.draw(*rows), drawn)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_noise_that_is_given_takes_the_place_of_that_of_the_seeds(sampler):
    """What a noisy sampler adds on the way stays that of the seeds, so that the seeds' own noise changes nothing."""
    decoder, settings = random_decoder(), replace(THREE, sampler=sampler)
    rows = (embeddings(), captions(), SEEDS, settings)
    assert torch.equal(decoder.draw(*rows, noise=decoder.noise(SEEDS)), decoder.draw(*rows))
    steps = []
    other = decoder.draw(*rows, noise=decoder.noise([7, 8, 9]), on_step=lambda *step: steps.append(step))
    assert torch.equal(steps[0][1], decoder.noise([7, 8, 9]))
    assert differ(other, decoder.draw(*rows))
    assert torch.equal(other, decoder.draw(*rows[:2], [7, 8, 9], settings)) == (sampler == "dpmpp")


def test_noise_depends_on_the_seed_alone():
    decoder = random_decoder(channels=3)
    noise = decoder.noise([5, 6, 5])
    assert noise.shape == (3, 3, 8, 8)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1], RowNoise([6], DECODER_STREAM)(noise[:1])[0])


def test_inversion_finds_noise_that_leads_back():
    """Better with more steps. A small network, whose predictions hardly change along the way: the ODE is then easy."""
    decoder = random_decoder()
    with torch.no_grad():
        decoder.unet.conv_out.weight.mul_(0.05)
    images, errors = 0.5 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(6)).clamp(-1, 1), []
    for steps in (10, 50):
        settings = DecoderSettings(steps, sampler="ddim", guidance=1.0)
        noise = decoder.invert(images, embeddings(), captions(), settings)
        drawn = decoder.draw(embeddings(), captions(), SEEDS, settings, noise)
        errors.append((drawn - images).abs().mean().item())
    assert errors[1] < 0.1
    assert errors[1] < 0.5 * errors[0]


def test_equal_seeds_give_the_prior_and_the_decoder_unrelated_noise():
    assert DECODER_STREAM != PRIOR_STREAM


def test_image_tokens_are_at_least_one():
    with pytest.raises(UserError, match="image_tokens must be from 1 to 256, not 0"):
        Decoder(replace(CONFIG, image_tokens=0))
