"""The cache of CLIP's embeddings: computed once, keyed by CLIP and data, and computed again when it is damaged."""

import numpy as np
import pytest
import torch
from conftest import files_under, made_up_data

from data.dataset import ListedCaptions
from stages import embed
from stages.embed import check_embeddings, embed_images
from unclip.clip import CLIP, CLIPConfig, Preprocess, TextConfig, Tokenizer, VisionConfig
from unclip.errors import UserError

CPU = torch.device("cpu")
PREPROCESS = Preprocess(28, 1)


@pytest.fixture(scope="module")
def data():
    return few_captions(made_up_data(30, seed=0))


def few_captions(data):
    """The same images with fifty captions, which take less time to encode than all of the grammar's."""
    rows = torch.arange(len(data))[:, None] % 50
    data.captioner = ListedCaptions(data.captions[:50], rows, torch.ones(len(data), dtype=torch.long))
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
    def call(data, sha256="a" * 64):
        return embed_images(data, clip, sha256, tokenizer, PREPROCESS, CPU, tmp_path / "cache")

    return call


ARRAYS = ("embeddings", "text_embeddings", "tokens", "token_starts")


def assert_equal(one, other):
    for name in ARRAYS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_embeddings_are_clips_own(build, data, clip, tokenizer, monkeypatch):
    monkeypatch.setattr(embed, "BATCH", 7)  # several batches, the last one smaller
    embedded = build(data)
    with torch.inference_mode():
        images = clip.encode_image(PREPROCESS(data.images))
        ids = tokenizer.encode(data.captions, clip.config.text.context)
        text, encodings = clip.encode_text(ids)
    torch.testing.assert_close(embedded.embeddings, images)
    torch.testing.assert_close(embedded.text_embeddings, text)
    captions, mask = embedded.text_features(torch.arange(50)), clip.text.mask(ids)
    assert torch.equal(captions.mask, mask)
    torch.testing.assert_close(captions.tokens[mask], encodings[mask])
    assert not captions.tokens[~mask].any()
    assert not captions.empty.any()


def test_cache_keeps_no_padding_and_is_mapped_into_memory(build, data, clip, tokenizer, tmp_path):
    embedded = build(data)
    tokens = sum(len(tokenizer.encode([caption], 32)[0]) for caption in data.captions)
    assert embedded.tokens.shape == (tokens, 16)
    (folder,) = (tmp_path / "cache").iterdir()
    mapped = np.load(folder / "tokens.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, embedded.tokens)


def test_second_call_reads_the_cache_and_never_runs_clip(build, data, calls, tmp_path):
    first = build(data)
    assert set(calls) == {"encode_image", "encode_text"}
    calls.clear()
    second = build(data)
    assert calls == []
    assert_equal(first, second)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_other_clip_or_other_data_is_another_entry(build, data, calls, tmp_path):
    build(data)
    calls.clear()
    build(data, sha256="b" * 64)
    assert calls
    calls.clear()
    other = few_captions(made_up_data(30, seed=1))
    assert not torch.equal(build(other).embeddings, build(data).embeddings)
    assert calls
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("name", ["embeddings.npy", "tokens.npy", "token_starts.npy", "arrays.json"])
@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: c[:-9] + bytes([c[-9] ^ 1]) + c[-8:]]
)
def test_damaged_cache_is_computed_again(name, damage, build, data, calls, tmp_path, capsys):
    first = build(data)
    kept = {array: getattr(first, array).clone() for array in ARRAYS}
    (folder,) = (tmp_path / "cache").iterdir()
    intact = (folder / name).read_bytes()
    (folder / name).unlink()
    (folder / name).write_bytes(damage(intact))
    calls.clear()
    again = build(data)
    assert calls
    assert "is damaged" in capsys.readouterr().err
    assert all(torch.equal(getattr(again, array), kept[array]) for array in ARRAYS)
    assert (folder / name).read_bytes() == intact


def test_full_disk_leaves_no_cache_behind(build, data, tmp_path, full_disk):
    with pytest.raises(OSError, match="No space left"):
        build(data)
    assert files_under(tmp_path) == []


def test_captions_are_cropped_to_the_longest_of_the_batch(build, data, tokenizer):
    embedded = build(data)
    lengths = [tokenizer.encode([caption], 32).shape[1] for caption in data.captions]
    shortest, longest = lengths.index(min(lengths)), lengths.index(max(lengths))
    assert lengths[shortest] < lengths[longest]
    short = embedded.text_features(torch.tensor([shortest, shortest]))
    assert short.tokens.shape == (2, lengths[shortest], 16)
    assert short.mask.all()
    assert torch.equal(short.embedding[0], embedded.text_embeddings[shortest])
    both = embedded.text_features(torch.tensor([longest, shortest]))
    assert both.tokens.shape == (2, lengths[longest], 16)
    assert both.mask.sum(dim=1).tolist() == [lengths[longest], lengths[shortest]]
    assert torch.equal(both.tokens[1, : lengths[shortest]], short.tokens[0])


def test_captions_at_the_end_of_the_store_are_padded_like_others(build, data):
    embedded = build(data)
    last = len(data.captions) - 1
    longest = int(embedded.token_starts.diff().argmax())
    padded = embedded.text_features(torch.tensor([last, longest]))
    alone = embedded.text_features(torch.tensor([last]))
    assert torch.equal(padded.tokens[0, : alone.tokens.shape[1]], alone.tokens[0])


@pytest.mark.parametrize(
    ("values", "words"), [([[1.0, 0], [0, float("nan")]], "not all finite"), ([[0.6, 0.8]] * 3, "all the same")]
)
def test_embeddings_that_tell_nothing_are_refused(values, words):
    check_embeddings(torch.tensor(values)[:1], "embeddings of one image")
    with pytest.raises(UserError, match=f"^embeddings in X are {words}.*train it anew"):
        check_embeddings(torch.tensor(values), "embeddings in X")


def test_a_cache_is_checked_when_it_is_read(build, data, monkeypatch):
    monkeypatch.setattr(embed, "LEAST_DIFFERENCE", 3.0)
    with pytest.raises(UserError, match=r"the embeddings of made-up in .* are all the same"):
        build(data)
