"""The parts of the trained tiny pipeline: text and image embeddings, the prior, the decoder."""

import numpy as np
import pytest
import torch
from PIL import Image
from samples import BAG, DRESS, FEW, assert_same_images

from unclip.clip import encode_captions


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
