"""The decoder: the laws that its condition keeps, and how it is drawn from."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import settings
from networks import close, differ, randomise

from unclip.clip import TextFeatures
from unclip.decoder import DecoderConfig, DecoderNetwork, DiffusionDecoder, DiffusionDecoderConfig, UNetConfig
from unclip.decoder.condition import Condition
from unclip.diffusion import ProcessConfig, RowNoise, at_level, guided, make_denoiser
from unclip.diffusion.noise import DECODER_STREAM, PRIOR_STREAM
from unclip.diffusion.prediction import x0_from_output
from unclip.errors import UserError
from unclip.settings import DecoderSettings

QUICK = settings(deadline=None, max_examples=20, derandomize=True)
SMALL = UNetConfig(width=8, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_dim=8, condition_width=12)
CONFIG = DecoderConfig(SMALL, embed_dim=6, text_width=5, image_size=8)
LENGTHS = [4, 2, 6]  # of the three captions


def random_network(**changes) -> DecoderNetwork:
    return randomise(DecoderNetwork(replace(CONFIG, **changes)))


def random_decoder(**changes) -> DiffusionDecoder:
    """One whose process has 50 steps."""
    network = replace(CONFIG, **changes)
    return randomise(DiffusionDecoder(DiffusionDecoderConfig(network, ProcessConfig(timesteps=50))))


def read(network: DecoderNetwork, embeddings: torch.Tensor, text: TextFeatures, drop: torch.Tensor) -> Condition:
    return network.condition(embeddings, drop, text.tokens, text.mask, text.empty)


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


def test_the_network_is_its_condition_and_a_unet():
    network = random_network()
    (x, t), condition = inputs(), read(network, embeddings(), captions(), NONE)
    seen = []
    network.unet.register_forward_hook(lambda module, arguments, _: seen.append(arguments))
    output = network(x, t, condition)
    [(images, vector, tokens, mask)] = seen
    assert images is x
    assert tokens is condition.tokens
    assert mask is condition.mask
    assert torch.equal(network.unet(x, vector, tokens, mask), output)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_untrained_decoder_puts_out_zero_for_any_size(text, channels):
    network = DecoderNetwork(replace(CONFIG, channels=channels, text=text))
    condition = read(network, embeddings(), captions(), NONE)
    for size in [(8, 8), (7, 9)]:
        x, t = inputs(channels, *size)
        assert torch.equal(network(x, t, condition), torch.zeros_like(x))


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3)])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("levels", "text_layers"), [((), 0), ((0, 1), 2)])
def test_gradient_reaches_every_parameter(multipliers, blocks, levels, text_layers):
    levels = tuple(level for level in levels if level < len(multipliers))
    unet = replace(SMALL, multipliers=multipliers, blocks=blocks, attention_levels=levels)
    network = random_network(unet=unet, text_layers=text_layers, channels=3)
    (x, t), drop = inputs(3), torch.tensor([False, True, False])
    condition = read(network, embeddings(), captions().drop(drop.roll(1)), drop)
    network(x, t, condition).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_everything_it_is_told_has_an_effect():
    network = random_network()
    (x, t), rows = inputs(), embeddings()
    before = network(x, t, read(network, rows, captions(), NONE))
    assert differ(network(x, 49 - t, read(network, rows, captions(), NONE)), before)
    assert differ(network(x, t, read(network, -rows, captions(), NONE)), before)
    assert differ(network(x, t, read(network, rows, other_captions(), NONE)), before)


def test_a_batch_equals_its_singles():
    network = random_network()
    (x, t), drop = inputs(), torch.tensor([False, True, False])
    together = network(x, t, read(network, embeddings(), captions().drop(drop.roll(1)), drop))
    for i in range(3):
        one = slice(i, i + 1)
        condition = read(network, embeddings()[one], alone(i).drop(drop.roll(1)[one]), drop[one])
        close(network(x[one], t[one], condition)[0], together[i])


def test_nothing_is_kept_between_calls():
    network = random_network()
    (x, t), condition = inputs(), read(network, embeddings(), captions(), NONE)
    modules = {name: set(vars(module)) for name, module in network.named_modules()}
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    first = network(x, t, condition)
    network(*inputs(1, 5, 9), condition)
    assert torch.equal(network(x, t, condition), first)
    assert {name: set(vars(module)) for name, module in network.named_modules()} == modules
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


# The condition.


def test_the_image_gives_a_vector_and_four_tokens_before_the_captions():
    network = random_network()
    condition = read(network, embeddings(), captions(), NONE)
    assert condition.vector.shape == (3, 4 * 8)
    assert condition.tokens.shape == (3, 4 + 6, 12)
    assert condition.mask.sum(dim=1).tolist() == [4 + n for n in LENGTHS]
    scaled = network.image_condition.scaler.scale(embeddings())
    projection = network.image_condition.to_tokens
    close(condition.tokens[:, :4], (scaled @ projection.weight.T + projection.bias).view(3, 4, 12))


def test_padded_caption_tokens_have_no_influence():
    network = random_network(text_layers=2)
    (x, t), some = inputs(), captions()
    before = network(x, t, read(network, embeddings(), some, NONE))
    filled = replace(some, tokens=torch.where(some.mask[..., None], some.tokens, 50.0))
    close(network(x, t, read(network, embeddings(), filled, NONE)), before)
    longer = replace(some, tokens=F.pad(some.tokens, (0, 0, 0, 3), value=9.0), mask=F.pad(some.mask, (0, 3)))
    close(network(x, t, read(network, embeddings(), longer, NONE)), before)


def test_a_dropped_image_tells_nothing():
    network = random_network()
    x, t = inputs()
    before = network(x, t, read(network, embeddings(), captions(), ALL))
    close(network(x, t, read(network, -embeddings(), captions(), ALL)), before)
    assert differ(network(x, t, read(network, embeddings(), captions(), NONE)), before)


def test_an_empty_caption_tells_nothing_not_even_its_length():
    network = random_network()
    (x, t), null = inputs(), captions().null()
    before = network(x, t, read(network, embeddings(), null, NONE))
    close(network(x, t, read(network, embeddings(), other_captions().null(), NONE)), before)
    short = replace(null, tokens=null.tokens[:, :1], mask=null.mask[:, :1])
    close(network(x, t, read(network, embeddings(), short, NONE)), before)
    assert differ(network(x, t, read(network, embeddings(), captions(), NONE)), before)


def test_a_decoder_without_text_ignores_captions():
    network = random_network(text=False)
    one, other = (read(network, embeddings(), some, NONE) for some in (captions(), other_captions().null()))
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
    together = decoder.draw_images(embeddings(), captions(), [4, 5, 6], settings)
    assert together.shape == (3, 3, 8, 8)
    assert together.abs().max() <= 1
    for i in range(3):
        close(decoder.draw_images(embeddings()[i : i + 1], alone(i), [4 + i], settings)[0], together[i])


def test_without_guidance_towards_the_condition_nothing_of_it_is_left():
    decoder, towards = random_decoder(), replace(THREE, guidance=0.0)
    one = decoder.draw_images(embeddings(), captions(), SEEDS, towards)
    close(decoder.draw_images(-embeddings(), other_captions(), SEEDS, towards), one)
    close(decoder.draw_images(None, captions().null(), SEEDS, PLAIN), one)


def test_no_embeddings_are_dropped_ones():
    """The caption is still read, and guided by."""
    decoder = random_decoder()
    denoise = decoder.denoiser(None, captions(), THREE)
    pairs = TextFeatures.cat([captions(), captions().null()])
    both = decoder.condition(embeddings().repeat(2, 1), ALL.repeat(2), pairs)
    model = guided(at_level(lambda x, time: decoder.network(x, time, both), decoder.process), 2.0)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    level = decoder.process.level(0.62)
    close(denoise(x, level).x0, make_denoiser(model, "v", clip_x0=1.0)(x, level).x0)
    assert differ(denoise(x, level).x0, decoder.denoiser(None, other_captions(), THREE)(x, level).x0)


def test_guidance_acts_within_its_interval_alone():
    """The three steps are at times 49, 32 and 16 of 0 .. 49."""
    decoder, x = random_decoder(), inputs()[0]

    def predictions(guidance: float, *interval: float) -> list[torch.Tensor]:
        settings = replace(THREE, guidance=guidance, guidance_interval=interval)
        denoise = decoder.denoiser(embeddings(), captions(), settings)
        return [denoise(x, level).x0 for level in decoder.levels(settings)[:-1]]

    always, never = predictions(2.0, 0.0, 1.0), predictions(1.0, 0.0, 1.0)
    assert all(differ(one, other) for one, other in zip(always, never, strict=True))
    for interval, inside in [((0.0, 0.3), "nnn"), ((0.0, 0.9), "nyy"), ((0.5, 0.9), "nyn"), ((16 / 49, 1.0), "yyy")]:
        want = [(always if inside[i] == "y" else never)[i] for i in range(3)]
        torch.testing.assert_close(predictions(2.0, *interval), want)


def test_every_step_shows_the_state_and_the_clipped_prediction():
    decoder, steps = random_decoder(), []
    rows = (embeddings(), captions(), SEEDS, THREE)
    drawn = decoder.draw_images(*rows, on_step=lambda *step: steps.append(step))
    assert [level for level, _, _ in steps] == decoder.levels(THREE)[:-1]
    assert [level.t for level, _, _ in steps] == [50 / 50, 33 / 50, 17 / 50]
    assert all(x0.abs().max() <= 1 and x.shape == x0.shape == drawn.shape for _, x, x0 in steps)
    assert torch.equal(steps[0][1], decoder.draw_noise(SEEDS))
    assert torch.equal(steps[-1][2], drawn)
    assert torch.equal(decoder.draw_images(*rows), drawn)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_noise_that_is_given_takes_the_place_of_that_of_the_seeds(sampler):
    """The noise that a sampler adds on the way stays that of the seeds, so the noise to start from changes nothing."""
    decoder, settings = random_decoder(), replace(THREE, sampler=sampler)
    rows = (embeddings(), captions(), SEEDS, settings)
    assert torch.equal(decoder.draw_images(*rows, noise=decoder.draw_noise(SEEDS)), decoder.draw_images(*rows))
    steps = []
    other = decoder.draw_images(*rows, noise=decoder.draw_noise([7, 8, 9]), on_step=lambda *step: steps.append(step))
    assert torch.equal(steps[0][1], decoder.draw_noise([7, 8, 9]))
    assert differ(other, decoder.draw_images(*rows))
    assert torch.equal(other, decoder.draw_images(*rows[:2], [7, 8, 9], settings)) == (sampler == "dpmpp")


def test_noise_depends_on_the_seed_alone():
    decoder = random_decoder(channels=3)
    noise = decoder.draw_noise([5, 6, 5])
    assert noise.shape == (3, 3, 8, 8)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1], RowNoise([6], DECODER_STREAM)(noise[:1])[0])


def test_inversion_finds_noise_that_leads_back():
    """Better with more steps. A small network, whose predictions hardly change along the way: the ODE is then easy."""
    decoder = random_decoder()
    with torch.no_grad():
        decoder.network.unet.conv_out.weight.mul_(0.05)
    images, errors = 0.5 * torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(6)).clamp(-1, 1), []
    for steps in (10, 50):
        settings = DecoderSettings(steps, sampler="ddim", guidance=1.0)
        noise = decoder.invert_images(images, embeddings(), captions(), settings)
        drawn = decoder.draw_images(embeddings(), captions(), SEEDS, settings, noise)
        errors.append((drawn - images).abs().mean().item())
    assert errors[1] < 0.1
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    "diffusion", [ProcessConfig(prediction="eps", schedule="sigmoid"), ProcessConfig("straight", prediction="velocity")]
)
def test_other_processes_and_predictions_are_sampled_like_the_first(diffusion):
    """In one step, which lands on the predicted clean image."""
    decoder = randomise(DiffusionDecoder(DiffusionDecoderConfig(CONFIG, diffusion)))
    drawn = decoder.draw_images(embeddings(), captions(), SEEDS, replace(PLAIN, steps=1))
    noise, level = decoder.draw_noise(SEEDS), decoder.process.level(1.0)
    condition = decoder.condition(embeddings(), NONE, captions())
    output = decoder.network(noise, torch.full((3,), decoder.process.network_time(1.0)), condition)
    close(drawn, x0_from_output(diffusion.prediction, output, noise, level.alpha, level.sigma).clamp(-1, 1))
    assert decoder.draw_images(embeddings(), captions(), SEEDS, THREE).isfinite().all()


def test_equal_seeds_give_the_prior_and_the_decoder_unrelated_noise():
    assert DECODER_STREAM != PRIOR_STREAM


def test_image_tokens_are_at_least_one():
    with pytest.raises(UserError, match="image_tokens must be from 1 to 256, not 0"):
        DecoderNetwork(replace(CONFIG, image_tokens=0))
