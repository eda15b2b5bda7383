"""The trained tiny pipeline: a sample depends on its caption, its seed and the settings alone."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from unclip import UnCLIP, UserError
from unclip.clip import encode_captions
from unclip.settings import DecoderSettings, PriorSettings, Sampling
from unclip.store.sealed_json import read_record, write_json, write_record

BAG, DRESS = "an image of a bag", "an image of a dress"
FEW = {"steps": 6, "prior_steps": 4}


def assert_same_images(one: np.ndarray, other: np.ndarray) -> None:
    """Equal to within rounding: at most one grey level apart."""
    assert one.shape == other.shape
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).mean() > 1)


# --- what a sample depends on -----------------------------------------------------------------------------------------


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
        {"prior_num_candidates": 6},
        {"num_candidates": 3},
        {"sampler": "ddim", "eta": 1.0},
    ],
)
def test_every_setting_has_an_effect(settings, tiny):
    base = {"sampler": settings.get("sampler", "dpmpp"), **FEW}
    assert not np.array_equal(tiny(BAG, n=4, **base).images, tiny(BAG, n=4, **{**base, **settings}).images)


def test_batch_size_has_none(tiny):
    assert_same_images(tiny([BAG, DRESS], n=3, **FEW).images, tiny([BAG, DRESS], n=3, batch_size=2, **FEW).images)


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


# --- the parts --------------------------------------------------------------------------------------------------------


def test_text_embeddings_are_unit_and_do_not_depend_on_the_batch(tiny):
    together = tiny.encode_text([BAG, DRESS, BAG, "a photograph of a light narrow pair of trousers"])
    assert together.shape == (4, tiny.clip.config.embed_dim)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(together[:1], tiny.encode_text(BAG), atol=1e-5, rtol=0)
    assert torch.equal(together[0], together[2])
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_image_embeddings_are_unit_for_every_kind_of_input(tiny):
    images = tiny([BAG, DRESS], **FEW).images
    from_array = tiny.encode_image(images)
    assert from_array.shape == (2, tiny.clip.config.embed_dim)
    torch.testing.assert_close(from_array.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(tiny.encode_image(torch.from_numpy(images)), from_array)
    torch.testing.assert_close(tiny.encode_image([Image.fromarray(image[..., 0]) for image in images]), from_array)
    colour = np.repeat(images, 3, axis=-1)
    torch.testing.assert_close(tiny.encode_image(colour), from_array, atol=1e-4, rtol=0)
    assert not torch.allclose(from_array[0], from_array[1], atol=1e-3)


def test_images_are_embedded_without_a_warning_whatever_their_array(tiny, recwarn):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    want, frozen = tiny.encode_image(images), images.copy()
    frozen.setflags(write=False)
    torch.testing.assert_close(tiny.encode_image(frozen), want)
    torch.testing.assert_close(tiny.encode_image(images[::-1]), want.flip(0))
    mirrored = tiny.encode_image(np.ascontiguousarray(images[:, :, ::-1]))
    torch.testing.assert_close(tiny.encode_image(images[:, :, ::-1]), mirrored)
    assert [str(warning.message) for warning in recwarn] == []


def test_captions_are_those_that_clip_reads(tiny):
    ours, theirs = tiny.encode_captions([BAG, "", BAG]), encode_captions(tiny.clip, tiny.tokenizer, [BAG, "", BAG])
    assert torch.equal(ours.embedding, theirs.embedding)
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.embedding, tiny.encode_text([BAG, "", BAG]))
    assert len(tiny.encode_captions(BAG)) == 1


def test_prior_and_decoder_in_turn_are_the_pipeline(tiny):
    out = tiny([BAG, DRESS], seed=5, **FEW)
    for i, caption in enumerate((BAG, DRESS)):
        embedding = tiny.embed(caption, seed=5, **FEW)
        torch.testing.assert_close(embedding, out.embeddings[i : i + 1], atol=1e-5, rtol=0)
        assert_same_images(tiny.decode(embedding, [caption], seed=5, **FEW), out.images[i : i + 1])


def test_decoder_draws_from_embeddings_alone_and_from_captions_alone(tiny):
    embeddings = tiny.embed([BAG, DRESS], seed=2, **FEW)
    both, image_only = (tiny.decode(embeddings, captions, seed=2, **FEW) for captions in ([BAG, DRESS], None))
    text_only = tiny.decode(None, [BAG, DRESS], seed=2, **FEW)
    for one, other in ((both, image_only), (both, text_only), (image_only, text_only)):
        assert one.shape == (2, 28, 28, 1)
        assert not np.array_equal(one, other)
    assert_same_images(image_only, tiny.decode(embeddings, ["", ""], seed=2, **FEW))
    assert_same_images(tiny.decode(embeddings[1:], None, seed=3, **FEW), image_only[1:])  # image i uses seed + i


def test_of_a_class_the_first_candidate_is_kept_that_passes(tiny):
    once, first, last = (
        tiny.embed(BAG, n=8, prior_steps=4, **s)
        for s in (
            {"prior_num_candidates": 1},
            {"prior_num_candidates": 6, "prior_threshold": 0.0},
            {"prior_num_candidates": 6, "prior_threshold": 1.0},
        )
    )
    torch.testing.assert_close(first, once, atol=1e-5, rtol=0)
    assert not torch.allclose(last, once, atol=1e-3)


@pytest.mark.parametrize(("caption", "threshold"), [(BAG, 1.0), ("a dark narrow dress", 0.0)])
def test_more_candidates_are_never_less_likely(tiny, caption, threshold):
    """Where none passes, and of a caption that says more than a class."""
    text, classes, scale = tiny.encode_text(caption), tiny.prior.reranker.class_embeddings, tiny.clip.scale()
    competitors = classes[(classes @ text[0]) < 0.9999]
    assert len(competitors) == (9 if caption == BAG else 10)
    odds = []
    for count in (1, 2, 6):
        drawn = tiny.embed(caption, n=20, prior_num_candidates=count, prior_steps=4, prior_threshold=threshold)
        odds.append(scale * (drawn @ text[0]) - (scale * drawn @ competitors.T).logsumexp(dim=1))
    assert (odds[1] >= odds[0] - 1e-3).all()
    assert (odds[2] >= odds[1] - 1e-3).all()
    assert (odds[2] > odds[0] + 1e-2).any()


# --- odd and bad input ------------------------------------------------------------------------------------------------


def test_long_caption_is_cut_with_a_warning_and_drawn(tiny):
    long = "a dark narrow dress and " * 40 + "a bag"
    with pytest.warns(UserWarning, match=r"caption of \d+ tokens is cut to the \d+ that fit: 'a dark narrow dress"):
        cut = tiny(long, **FEW)
    assert cut.images.shape == (1, 28, 28, 1)
    assert cut.captions == [long]
    with pytest.warns(UserWarning, match="is cut"):
        assert np.array_equal(tiny(long + " and a shoe", **FEW).images, cut.images)


def test_many_long_captions_are_told_in_one_line_with_their_count(tiny):
    long = ["a dark narrow dress and " * n + "a bag" for n in (20, 30, 25)]
    with pytest.warns(UserWarning, match="captions are cut") as caught:
        tiny.encode_text(["a bag", *long])
    assert len(caught) == 1
    words = str(caught[0].message)
    assert words.startswith("3 captions are cut to the ")
    assert "--model.text.context" in words
    assert f"the longest, of {len(tiny.tokenizer.core.encode(long[1]).ids)}:" in words


def test_any_text_is_drawn_without_a_warning(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = tiny(["靴 👟", "ÄÖÜ ß", "\x00\x7f", "<|endoftext|>"], **FEW)
    assert out.images.shape == (4, 28, 28, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"captions": []}, "the list of captions is empty"),
        ({"captions": BAG, "n": 0}, "n must be at least 1, not 0"),
        ({"captions": BAG, "seed": -1}, "seed must not be negative"),
        ({"captions": BAG, "steps": 0}, "steps must be from 1 to 10000, not 0"),
        ({"captions": BAG, "steps": 5000}, "steps must be between 1 and 1000, not 5000"),
        ({"captions": BAG, "prior_steps": 5000}, "prior_steps must be between 1 and 1000, not 5000"),
        ({"captions": BAG, "sampler": "euler"}, "sampler must be one of ddpm, ddim, dpmpp, consistency, not 'euler'"),
        ({"captions": BAG, "guidance": -1.0}, "guidance must be from 0 to 100, not -1"),
        (
            {"captions": BAG, "guidance_interval": (0.6, 0.4)},
            "guidance_interval must be two ascending numbers in 0 .. 1",
        ),
        ({"captions": BAG, "prior_guidance": float("nan")}, "prior_guidance must be from 0 to 100, not nan"),
        ({"captions": BAG, "eta": 1.5}, "eta must be from 0 to 1, not 1.5"),
        ({"captions": BAG, "prior_num_candidates": 0}, "prior_num_candidates must be from 1 to 256, not 0"),
        ({"captions": BAG, "batch_size": 0}, "batch_size must be from 1 to 4096, not 0"),
        ({"captions": ["a bag", "\ud800"]}, "is not valid Unicode text"),
        ({"captions": [3]}, "caption"),
        ({"captions": [None]}, "caption"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, words, tiny):
    with pytest.raises(UserError) as caught:
        tiny(**arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_setting_is_refused_by_name(tiny):
    for call in (tiny, tiny.embed, lambda captions, **settings: tiny.decode(None, captions, **settings)):
        with pytest.raises(UserError, match="there is no setting 'guidence'; choose from steps, guidance"):
            call([BAG], guidence=3.0)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 28, 28), np.uint8),
        np.zeros((2, 28, 28, 1), np.float32),
        np.zeros((2, 28, 28, 2), np.uint8),
        torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
    ],
)
def test_images_of_another_layout_are_refused(images, tiny):
    with pytest.raises(UserError, match="images must be uint8"):
        tiny.encode_image(images)


def test_empty_lists_are_refused_everywhere(tiny):
    nothing = torch.zeros(0, tiny.clip.config.embed_dim)
    for call in (
        lambda: tiny.encode_text([]),
        lambda: tiny.encode_image([]),
        lambda: tiny.embed([]),
        lambda: tiny.decode(None, []),
        lambda: tiny.decode(nothing),
    ):
        with pytest.raises(UserError):
            call()


def test_decode_refuses_what_does_not_fit(tiny):
    embeddings = tiny.embed(BAG, n=2, **FEW)
    with pytest.raises(UserError, match="decode needs embeddings, captions, or both"):
        tiny.decode(None)
    with pytest.raises(UserError, match="2 embeddings cannot go with 3 captions"):
        tiny.decode(embeddings, [BAG] * 3)
    with pytest.raises(UserError, match="seed must not be negative"):
        tiny.decode(embeddings, seed=-3)
    with pytest.raises(UserError, match="embeddings"):
        tiny.decode(embeddings[:, :5])


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


@pytest.mark.parametrize("stage", ["clip", "prior", "decoder"])
def test_pipeline_without_a_stage_is_refused(stage, copied):
    (copied / stage).rename(copied.parent / "away")
    with pytest.raises(UserError, match=f"has no trained {stage}; train it with: python train_{stage}.py"):
        UnCLIP.from_pretrained(copied)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_pipeline_without_its_tokenizer_is_refused(content, copied):
    path = copied / "tokenizer.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json") as caught:
        UnCLIP.from_pretrained(copied)
    assert "\n" not in str(caught.value)


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


# --- settings of its own ----------------------------------------------------------------------------------------------


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


def test_a_pipeline_whose_settings_are_damaged_does_not_open(copied):
    index = read_record(copied / "model_index.json")
    changed = index | {"sampling": {"decoder": {"guidence": 3.0}}}
    write_record(copied / "model_index.json", changed)
    with pytest.raises(UserError, match=r"model_index\.json has the unknown field 'guidence'"):
        UnCLIP.from_pretrained(copied)
    write_json(copied / "model_index.json", changed)  # by hand
    with pytest.raises(UserError, match=r"model_index\.json has changed since it was written"):
        UnCLIP.from_pretrained(copied)
