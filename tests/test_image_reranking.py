"""Several candidates for an image, of which the one is kept that CLIP embeds closest to its embedding."""

import numpy as np
import pytest
import torch
from samples import BAG, DRESS, FEW, assert_same_images, differ

from unclip.settings import SEED_STEP


def test_the_candidate_is_kept_whose_embedding_is_the_closest(tiny):
    out = tiny([BAG, DRESS], n=4, seed=5, num_candidates=3, **FEW)
    starts = [tiny.decoder.draw_noise([seed + i * SEED_STEP for seed in out.seeds]) for i in range(3)]
    drawn = [tiny.decode(out.embeddings, out.captions, out.seeds, noise=start, **FEW) for start in starts]
    cosines = torch.stack([(tiny.encode_image(images) * out.embeddings).sum(dim=1) for images in drawn])
    kept = cosines.argmax(dim=0).tolist()
    assert len(set(kept)) > 1
    reached = (tiny.encode_image(out.images) * out.embeddings).sum(dim=1)
    torch.testing.assert_close(reached, cosines.amax(dim=0), atol=1e-3, rtol=0)
    for i, noise in enumerate(out.noise):
        [candidate] = [k for k, start in enumerate(starts) if torch.equal(start[i], noise)]
        assert_same_images(drawn[candidate][i], out.images[i])


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp"])
def test_candidates_differ_with_every_sampler(sampler, tiny):
    """ddpm's images depend on the noise on the way more than on that at the start."""
    embeddings = tiny.embed(BAG, n=8, **FEW)
    once, thrice = (tiny.decode(embeddings, sampler=sampler, num_candidates=count, **FEW) for count in (1, 3))
    assert differ(once, thrice)
    near, nearer = ((tiny.encode_image(images) * embeddings).sum(dim=1) for images in (once, thrice))
    assert (nearer >= near - 1e-3).all()
    assert (nearer > near + 1e-3).any()


def test_candidates_depend_on_nothing_but_their_own_sample(tiny):
    out = tiny([BAG, DRESS], n=2, seed=1, num_candidates=3, **FEW)
    assert_same_images(tiny([BAG, DRESS], n=2, seed=1, num_candidates=3, batch_size=2, **FEW).images, out.images)
    alone = tiny.decode(out.embeddings[3:], [DRESS], seed=2, num_candidates=3, **FEW)
    assert_same_images(alone, out.images[3:])
    assert tiny(BAG, seed=2**63 - 2, num_candidates=3, **FEW).images.shape == (1, 28, 28, 1)


def test_without_embeddings_or_with_noise_there_is_nothing_to_rerank(tiny):
    assert_same_images(tiny.decode(None, [BAG], num_candidates=3, **FEW), tiny.decode(None, [BAG], **FEW))
    embeddings, noise = tiny.embed(BAG, n=3, **FEW), tiny.decoder.draw_noise([7, 8, 9])
    reranked, plain = (tiny.decode(embeddings, noise=noise, num_candidates=count, **FEW) for count in (3, 1))
    assert_same_images(reranked, plain)


@pytest.mark.parametrize("sampler", ["dpmpp", "ddpm"])
def test_of_several_candidates_the_kept_one_is_watched(sampler, tiny):
    moments = []
    out = tiny([BAG, DRESS], n=2, num_candidates=3, batch_size=6, on_step=moments.append, sampler=sampler, **FEW)
    assert [len(moment.samples) for moment in moments] == [2] * (2 * FEW["steps"])
    last = np.concatenate([moment.x0 for moment in moments if moment.step == FEW["steps"] - 1])
    assert_same_images(last, out.images)
    assert_same_images(out.images, tiny([BAG, DRESS], n=2, num_candidates=3, sampler=sampler, **FEW).images)
