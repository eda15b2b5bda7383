"""The trained tiny pipeline: a sample depends on its caption, its seed and the settings alone."""

import numpy as np
import pytest
import torch
from samples import BAG, DRESS, FEW, assert_same_images, differ

from unclip import UnCLIP, UserError
from unclip.settings import DecoderSettings, PriorSettings, Sampling
from unclip.store.sealed_json import read_record, write_record


def test_output_has_the_promised_shapes(tiny):
    out = tiny([BAG, DRESS], n=3, seed=4, **FEW)
    assert out.images.dtype == np.uint8
    assert out.images.shape == (6, 28, 28, 1)
    assert out.captions == [BAG] * 3 + [DRESS] * 3
    assert out.seeds == [4, 5, 6] * 2
    assert out.embeddings.shape == (6, tiny.clip.config.embed_dim)
    torch.testing.assert_close(out.embeddings.norm(dim=1), torch.ones(6))
    assert out.noise.shape == (6, 1, 28, 28)


@pytest.mark.parametrize("caption", [BAG, ""])
def test_sample_is_the_same_alone_and_in_a_batch_of_64(caption, tiny):
    others = [
        f"a photo of a {tone} {name}" for tone in ("dark", "light", "narrow", "wide") for name in ("coat", "boot")
    ]
    captions = [(*others, "", "a catalogue picture of a dark narrow pullover")[i % 10] for i in range(63)]
    captions.insert(37, caption)
    alone = tiny(caption, seed=0, **FEW)
    together = tiny(captions, seed=0, **FEW)
    assert len(together.images) == 64
    assert_same_images(together.images[37:38], alone.images)
    torch.testing.assert_close(together.embeddings[37:38], alone.embeddings, atol=1e-4, rtol=0)
    assert differ(together.images[36], alone.images[0])


def test_each_image_of_a_caption_uses_the_next_seed(tiny):
    several = tiny(BAG, n=3, seed=7, **FEW).images
    for i in range(3):
        assert_same_images(several[i : i + 1], tiny(BAG, seed=7 + i, **FEW).images)
    assert differ(several[0], several[1])
    assert differ(several[1], several[2])


def test_equal_seeds_repeat_exactly_and_large_ones_work(tiny):
    big = 2**62
    assert np.array_equal(tiny(BAG, seed=big, **FEW).images, tiny(BAG, seed=big, **FEW).images)
    assert differ(tiny(BAG, seed=big, **FEW).images, tiny(BAG, seed=big % 2**32, **FEW).images)


def test_sampling_leaves_the_global_generator_alone(tiny):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    tiny(BAG, sampler="ddpm", **FEW)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("one", "other"), [("An Image of an ANKLE boot", "an image of an ankle boot"), (f"  {BAG}\t", "an image  of a bag")]
)
def test_case_and_white_space_do_not_matter(one, other, tiny):
    out = tiny([one, other], **FEW)
    assert_same_images(out.images[:1], out.images[1:])
    assert out.captions == [one, other]


def test_a_single_string_is_one_caption(tiny):
    assert np.array_equal(tiny(BAG, **FEW).images, tiny([BAG], **FEW).images)


def test_captions_change_the_image(tiny):
    out = tiny([BAG, DRESS, ""], **FEW)
    assert differ(out.images[0], out.images[1])
    assert not torch.allclose(out.embeddings[0], out.embeddings[1], atol=1e-3)
    assert not torch.allclose(out.embeddings[0], out.embeddings[2], atol=1e-3)


def test_unconditional_samples_differ_by_seed_alone(tiny):
    out = tiny("", n=2, **FEW)
    assert differ(out.images[0], out.images[1])
    assert_same_images(tiny("   ", **FEW).images, out.images[:1])
    assert tiny.encode_captions(["", " \t", BAG]).empty.tolist() == [True, True, False]
    strong = tiny.embed("", prior_guidance=5.0, prior_steps=4)  # null against null: guidance has nothing to push on
    torch.testing.assert_close(strong, out.embeddings[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_every_sampler_draws_its_own_finite_images(sampler, tiny):
    drawn = tiny(BAG, n=2, sampler=sampler, **FEW)
    assert drawn.images.std() > 5
    other = {"ddpm": "ddim", "ddim": "dpmpp", "dpmpp": "ddpm"}[sampler]
    assert not np.array_equal(drawn.images, tiny(BAG, n=2, sampler=other, **FEW).images)
    torch.testing.assert_close(drawn.embeddings, tiny.embed(BAG, n=2, prior_steps=4))


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 1.0},
        {"guidance": 6.0},
        {"steps": 12},
        {"prior_guidance": 3.0},
        {"prior_num_candidates": 16},
        {"num_candidates": 3},
        {"sampler": "ddim", "eta": 1.0},
    ],
)
def test_every_setting_has_an_effect(settings, tiny):
    base = {"sampler": settings.get("sampler", "dpmpp"), **FEW}
    shirt = "an image of a dark shirt"  # not a class's plain caption, of which the first candidate may always pass
    assert not np.array_equal(tiny(shirt, n=4, **base).images, tiny(shirt, n=4, **{**base, **settings}).images)


def test_batch_size_has_none(tiny):
    assert_same_images(tiny([BAG, DRESS], n=3, **FEW).images, tiny([BAG, DRESS], n=3, batch_size=2, **FEW).images)


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_decoder_takes_a_seed_for_each_image(tiny):
    embeddings = tiny.embed(BAG, n=3)
    images = tiny.decode(embeddings, [BAG] * 3, seed=4, steps=2)
    assert (tiny.decode(embeddings, [BAG] * 3, seed=[4, 5, 6], steps=2) == images).all()
    again = tiny.decode(embeddings[[1, 1]], [BAG] * 2, seed=[5, 5], steps=2)
    assert (again == images[1]).all()
    with pytest.raises(UserError, match="2 seeds cannot go with 3 images"):
        tiny.decode(embeddings, [BAG] * 3, seed=[1, 2])


@pytest.mark.parametrize("seed", [np.int64(7), np.array(7), torch.tensor(7)])
def test_one_seed_may_be_numpy_s_or_torch_s(seed, tiny):
    out, want = tiny([BAG, DRESS], n=2, seed=seed, steps=2), tiny([BAG, DRESS], n=2, seed=7, steps=2)
    assert out.seeds == want.seeds == [7, 8, 7, 8]
    assert np.array_equal(out.images, want.images)


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple, list])
def test_a_seed_per_image_may_be_of_any_kind(kind, tiny):
    out = tiny([BAG, DRESS], n=2, seed=kind([5, 6, 9, 5]), steps=2, prior_steps=2)
    assert out.seeds == [5, 6, 9, 5]
    assert_same_images(out.images[:2], tiny(BAG, n=2, seed=5, steps=2, prior_steps=2).images)
    assert_same_images(out.images[3:], tiny(DRESS, seed=5, steps=2, prior_steps=2).images)
    with pytest.raises(UserError, match="3 seeds cannot go with 4 images"):
        tiny([BAG, DRESS], n=2, seed=kind([5, 6, 9]))


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "num_candidates"), [("dpmpp", 1), ("ddpm", 1), ("dpmpp", 3)])
def test_noise_of_a_sample_given_back_draws_it_again(sampler, num_candidates, tiny):
    """To the bit where it is drawn in as large a batch."""
    out = tiny([BAG, DRESS], n=2, seed=3, sampler=sampler, num_candidates=num_candidates, **FEW)
    again = tiny.decode(out.embeddings, out.captions, out.seeds, noise=out.noise, sampler=sampler, **FEW)
    assert (
        np.array_equal(again, out.images) if num_candidates == 1 else np.abs(again - out.images.astype(int)).max() <= 1
    )
    assert torch.equal(out.noise, tiny.decoder.draw_noise([3, 4, 3, 4])) == (num_candidates == 1)


def test_noise_takes_the_place_of_the_seeds(tiny):
    out = tiny(BAG, n=2, seed=3, **FEW)
    swapped = tiny.decode(out.embeddings.flip(0), out.captions, seed=99, noise=out.noise.flip(0), **FEW)
    assert_same_images(swapped[::-1], out.images)
    assert differ(tiny.decode(out.embeddings, out.captions, seed=3, noise=-out.noise, **FEW), out.images)


def test_noise_is_shared_among_batches_row_by_row(tiny):
    out = tiny([BAG, DRESS], n=2, **FEW)
    parts = tiny.decode(out.embeddings, out.captions, out.seeds, noise=out.noise, batch_size=3, **FEW)
    assert_same_images(parts, out.images)


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (2, 28, 28), (2, 3, 28, 28)])
def test_noise_of_another_shape_is_refused_with_both(shape, tiny):
    with pytest.raises(UserError, match=r"noise must be \(2, 1, 28, 28\), not \("):
        tiny.decode(None, [BAG, DRESS], noise=torch.zeros(shape))


# --- opening ----------------------------------------------------------------------------------------------------------


def test_pipeline_opens_frozen_on_the_device_asked_for(trained, tiny):
    assert tiny.device == torch.device("cpu")
    for model in (tiny.clip, tiny.prior, tiny.decoder):
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    elsewhere = UnCLIP.from_pretrained(str(trained.folder), device="meta")
    assert elsewhere.device.type == "meta"
    for model in (elsewhere.clip, elsewhere.prior, elsewhere.decoder):
        assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


def test_what_is_given_beats_the_pipeline_s_own_which_beats_the_library_s(copied):
    index = read_record(copied / "model_index.json")
    index["sampling"] = {"prior": {"num_candidates": 1}, "decoder": {"steps": 3, "guidance": 1.0}}
    write_record(copied / "model_index.json", index)
    pipe = UnCLIP.from_pretrained(copied)
    assert pipe.sampling == Sampling(PriorSettings(num_candidates=1), DecoderSettings(steps=3, guidance=1.0))
    steps = []
    drawn = [pipe(BAG, on_step=lambda moment: steps.append(moment.steps), **given) for given in ({}, {"steps": 2})]
    assert steps == [3] * 3 + [2] * 2
    plain = UnCLIP(pipe.clip, pipe.tokenizer, pipe.preprocess, pipe.prior, pipe.decoder)
    assert plain.sampling == Sampling()
    for out, count in zip(drawn, (3, 2), strict=True):
        assert np.array_equal(plain(BAG, prior_num_candidates=1, steps=count, guidance=1.0).images, out.images)
    assert not np.array_equal(plain(BAG, steps=3).images, drawn[0].images)


def test_a_trained_pipeline_carries_the_settings_that_it_was_trained_to_be_drawn_with(trained, tiny):
    own = read_record(trained.folder / "model_index.json")["sampling"]
    assert own.keys() == {"prior", "decoder"}
    assert own["decoder"]["steps"] == tiny.sampling.decoder.steps
    assert own["prior"]["num_candidates"] == tiny.sampling.prior.num_candidates
