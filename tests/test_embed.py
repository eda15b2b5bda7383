"""The cache of CLIP's embeddings: computed once, keyed by CLIP and data, and computed again when it is damaged."""

import pytest
import torch
from conftest import files_under, made_up_data

from stages import embed
from stages.embed import embed_dataset
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, Tokenizer, VisionConfig

CPU = torch.device("cpu")
PREPROCESS = Preprocess(28, 1)


@pytest.fixture(scope="module")
def data():
    data = made_up_data(30, seed=0)
    data.captions = data.captions[:50]
    return data


@pytest.fixture(scope="module")
def tokenizer(data):
    return Tokenizer.train(data.captions, 300)


@pytest.fixture
def clip(tokenizer):
    torch.manual_seed(0)
    text = TextConfig(tokenizer.vocab_size, tokenizer.end_id, width=16, layers=1, heads=2)
    return CLIP(CLIPConfig(8, VisionConfig(width=16, layers=1, heads=2), text)).eval()


@pytest.fixture
def calls(clip, monkeypatch):
    """Names of CLIP's towers, one for each time that one is run."""
    made = []

    def counted(name, tower):
        return lambda x: (made.append(name), tower(x))[1]

    for name in ("encode_image", "encode_text"):
        monkeypatch.setattr(clip, name, counted(name, getattr(clip, name)))
    return made


@pytest.fixture
def build(clip, tokenizer, tmp_path):
    def call(data, sha256="a" * 64, flipped=False):
        return embed_dataset(data, clip, sha256, tokenizer, PREPROCESS, CPU, flipped, tmp_path / "cache")

    return call


def assert_equal(one, other):
    for name, tensor in vars(one).items():
        both = (tensor, getattr(other, name))
        assert both == (None, None) or torch.equal(*both), name


def test_embeddings_are_clips_own(build, data, clip, tokenizer, monkeypatch):
    monkeypatch.setattr(embed, "BATCH", 7)  # several batches, the last one smaller
    embedded = build(data)
    with torch.inference_mode():
        images = clip.encode_image(PREPROCESS(data.images))
        ids = tokenizer.encode(data.captions, clip.config.text.context)
        text, encodings = clip.encode_text(ids)
    torch.testing.assert_close(embedded.images, images)
    torch.testing.assert_close(embedded.text, text)
    torch.testing.assert_close(embedded.encodings, encodings)
    assert torch.equal(embedded.mask, clip.text.mask(ids))
    assert embedded.flipped is None


def test_second_call_reads_the_cache_and_never_runs_clip(build, data, calls, tmp_path):
    first = build(data)
    assert set(calls) == {"encode_image", "encode_text"}
    calls.clear()
    second = build(data)
    assert calls == []
    assert_equal(first, second)
    assert len(files_under(tmp_path)) == 1


def test_other_clip_other_data_or_flipping_is_another_entry(build, data, calls, tmp_path):
    build(data)
    for arguments in ({"sha256": "b" * 64}, {"flipped": True}):
        calls.clear()
        build(data, **arguments)
        assert calls
    calls.clear()
    other = made_up_data(30, seed=1)
    other.captions = data.captions
    assert not torch.equal(build(other).images, build(data).images)
    assert calls
    assert len(files_under(tmp_path)) == 4


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"\xff" * 100])
def test_damaged_cache_is_computed_again(damage, build, data, calls, tmp_path):
    first = build(data)
    (path,) = (tmp_path / "cache").iterdir()
    intact = path.read_bytes()
    path.write_bytes(damage(intact))
    calls.clear()
    assert_equal(build(data), first)
    assert calls
    assert path.read_bytes() == intact


def test_full_disk_leaves_no_cache_behind(build, data, tmp_path, full_disk):
    with pytest.raises(OSError, match="No space left"):
        build(data)
    assert files_under(tmp_path) == []


def test_flipped_embeddings_are_those_of_flipped_images(build, data, clip):
    embedded = build(data, flipped=True)
    with torch.inference_mode():
        expected = clip.encode_image(PREPROCESS(data.images.flip(-1)))
    torch.testing.assert_close(embedded.flipped, expected)
    assert not torch.allclose(embedded.flipped, embedded.images, atol=1e-4)
    assert embedded.to(CPU).flipped is not None


def test_captions_are_cropped_to_the_longest_of_the_batch(build, data, tokenizer):
    embedded = build(data)
    lengths = [tokenizer.encode([caption], 32).shape[1] for caption in data.captions]
    shortest, longest = lengths.index(min(lengths)), lengths.index(max(lengths))
    assert lengths[shortest] < lengths[longest]
    text, encodings, mask = embedded.captions(torch.tensor([shortest, shortest]))
    assert encodings.shape == (2, lengths[shortest], 16)
    assert mask.all()
    assert torch.equal(text[0], embedded.text[shortest])
    text, encodings, mask = embedded.captions(torch.tensor([longest, shortest]))
    assert encodings.shape == (2, lengths[longest], 16)
    assert mask.sum(dim=1).tolist() == [lengths[longest], lengths[shortest]]
    assert torch.equal(encodings[1, : lengths[shortest]], embedded.encodings[shortest, : lengths[shortest]])
