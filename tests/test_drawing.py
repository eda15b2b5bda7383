"""Drawing: negative captions, stopping, gradients."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_devices import build_random

from unclip import StopDrawing, UnCLIP, UserError

BAG, COAT = "bag", "coat"
GUIDED = {"guidance": 4.0, "guidance_interval": (0.0, 1.0)}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> UnCLIP:
    """A small pipeline whose weights are random."""
    return UnCLIP.from_pretrained(build_random(tmp_path_factory.mktemp("drawing")))


@pytest.fixture(scope="module")
def fashion() -> UnCLIP:
    return UnCLIP.from_pretrained(ROOT / "checkpoints" / "fashion-mnist")


@pytest.mark.parametrize("settings", [GUIDED, {"prior_guidance": 4.0}])
def test_a_negative_caption_takes_the_place_of_the_null(settings, pipe):
    plain, led_away = pipe(BAG, n=2, **settings), pipe(BAG, n=2, negative=COAT, **settings)
    assert not np.array_equal(plain.images, led_away.images)
    assert torch.allclose(plain.embeddings, led_away.embeddings, atol=1e-4) == ("guidance" in settings)
    for empty in ("", [" "]):  # the null itself
        assert np.abs(pipe(BAG, n=2, negative=empty, **settings).images - plain.images.astype(int)).max() <= 1


def test_guidance_towards_a_caption_and_away_from_it_is_none(pipe):
    """Where both conditions are the same, guidance has nothing to push on."""
    alone = pipe.embed([BAG, COAT], prior_guidance=1.0)
    torch.testing.assert_close(pipe.embed([BAG, COAT], negative=[BAG, COAT], prior_guidance=7.0), alone)


def test_each_caption_may_have_its_own_negative_one(pipe):
    both = pipe([BAG, COAT], n=2, negative=[COAT, BAG], batch_size=3, **GUIDED)
    alone = pipe(COAT, n=2, negative=BAG, **GUIDED)
    assert np.abs(both.images[2:] - alone.images.astype(int)).max() <= 1
    with pytest.raises(UserError, match="3 captions cannot go with 2 images"):
        pipe([BAG, COAT], negative=[BAG] * 3, **GUIDED)


def test_a_negative_caption_without_guidance_is_refused(pipe):
    unguided = {"guidance": 1.0, "prior_guidance": 1.0}
    for call in (pipe, pipe.embed):
        with pytest.raises(UserError, match="negative is what guidance leads away from, and there is none"):
            call(BAG, negative=COAT, **unguided)
    with pytest.raises(UserError, match="there is none; add guidance=3"):
        pipe.decode(None, BAG, negative=COAT, guidance=1.0)


def test_a_negative_caption_leads_away_from_it_in_the_committed_pipeline(fashion):
    settings = {"prior_guidance": 4.0, "prior_num_candidates": 1}
    dark = fashion.encode_text("a dark bag")[0]
    plain = fashion.embed("a bag", n=16, **settings) @ dark
    assert (fashion.embed("a bag", n=16, negative="a dark bag", **settings) @ dark).mean() < plain.mean() - 0.02


def test_a_callback_may_stop_and_the_images_so_far_are_returned(pipe):
    seen = []

    def stop_in_the_second_batch(moment):
        seen.append(moment)
        if moment.samples.start and moment.step == 1:
            raise StopDrawing

    out = pipe([BAG] * 5, seed=3, steps=4, batch_size=2, on_step=stop_in_the_second_batch)
    whole = pipe([BAG] * 5, seed=3, steps=4, batch_size=2)
    assert len(seen) == 4 + 2
    assert len(out.images) == len(out.captions) == len(out.seeds) == len(out.embeddings) == len(out.noise) == 4
    assert np.array_equal(out.images[:2], whole.images[:2])
    assert np.array_equal(out.images[2:], seen[-1].x0)


def test_gradients_reach_embeddings_and_noise_and_values_are_those_of_decode(pipe):
    embeddings = pipe.embed([BAG, COAT]).requires_grad_(True)
    noise = pipe.decoder.draw_noise([0, 1]).requires_grad_(True)
    drawn = pipe.decode_tensor(embeddings, steps=2, noise=noise, batch_size=1)
    drawn.square().mean().backward()
    for given in (embeddings, noise):
        assert given.grad.isfinite().all()
        assert (given.grad.flatten(1).norm(dim=1) > 0).all()
    levels = ((drawn + 1) * 127.5).round().permute(0, 2, 3, 1)
    decoded = pipe.decode(embeddings, steps=2, noise=noise)
    assert np.abs(levels.detach().numpy() - decoded).max() <= 1
    assert not pipe.decode_with_noise(embeddings, noise=noise, steps=2)[1].requires_grad


def test_results_are_constants_for_others_to_train_on(pipe):
    head = torch.nn.Linear(8, 1)
    for features in (pipe.encode_text(BAG), pipe.encode_image(np.zeros((1, 8, 8, 1), np.uint8)), pipe.embed(BAG)):
        head(features).sum().backward()
        features.add_(1).requires_grad_(True)  # a leaf like any other
        assert head(features).requires_grad
    assert all(parameter.grad is None for part in pipe.parts.values() for parameter in part.parameters())


def test_textual_inversion_finds_an_embedding_that_draws_an_image(fashion):
    image = Image.open(ROOT / "checkpoints" / "fashion-mnist" / "examples" / "sneaker.png")
    target = torch.from_numpy(fashion.read_images(image)).permute(0, 3, 1, 2) / 127.5 - 1
    embedding = fashion.embed("a bag").requires_grad_(True)
    optimiser = torch.optim.Adam([embedding], lr=0.02)
    losses = []
    for _ in range(8):
        loss = (fashion.decode_tensor(embedding, steps=2) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0], losses
