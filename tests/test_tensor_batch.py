"""Tensors that belong together row by row, and captions as CLIP reads them."""

from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import Tensor

from unclip.clip import CLIP, CLIPConfig, TextConfig, TextFeatures, Tokenizer, VisionConfig, encode_captions
from unclip.tensor_batch import TensorBatch


@dataclass(frozen=True)
class Pair(TensorBatch):
    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Nested(TensorBatch):
    pair: Pair
    c: Tensor


def nested(n: int) -> Nested:
    """Row i is made of i alone."""
    i = torch.arange(n)
    return Nested(Pair(i * 10, torch.stack([i, -i], dim=1)), i.bool())


def captions(n: int = 4, length: int = 5) -> TextFeatures:
    """Captions of 3 numbers a text embedding and 2 a token, and of growing length."""
    generator = torch.Generator().manual_seed(n)
    text, encodings = torch.randn(n, 3, generator=generator), torch.randn(n, length, 2, generator=generator)
    mask = torch.arange(length) <= torch.arange(n)[:, None]
    return TextFeatures(text, encodings, mask, torch.zeros(n, dtype=torch.bool))


def equal(one: TextFeatures, other: TextFeatures) -> bool:
    names = [f.name for f in fields(one) if getattr(one, f.name) is not None or getattr(other, f.name) is not None]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


# Rows.


@pytest.mark.parametrize("rows", [slice(1, 3), slice(0, 0), torch.tensor([4, 0, 0]), torch.tensor([1, 0, 1, 0, 0]) > 0])
def test_rows_are_selected_in_every_field_however_deep(rows):
    got, want = nested(5)[rows], torch.arange(5)[rows]
    assert type(got) is Nested
    assert len(got) == len(want)
    assert torch.equal(got.pair.a, want * 10)
    assert torch.equal(got.pair.b, torch.stack([want, -want], dim=1))
    assert torch.equal(got.c, want.bool())


def test_rows_move_as_one():
    moved = nested(3).to("meta")
    assert {moved.pair.a.device.type, moved.pair.b.device.type, moved.c.device.type} == {"meta"}
    assert moved.pair.b.shape == (3, 2)


def test_parts_are_joined_in_order_however_deep():
    whole = nested(5)
    joined = Nested.cat([whole[:2], whole[2:2], whole[2:]])
    assert torch.equal(joined.pair.b, whole.pair.b)
    assert torch.equal(joined.c, whole.c)


def test_rows_stay_what_they_were():
    rows = nested(3)
    rows[torch.tensor([0])], rows.to("meta")
    assert torch.equal(rows.pair.a, torch.tensor([0, 10, 20]))
    with pytest.raises(AttributeError):
        rows.c = torch.zeros(3)


# Captions.


def test_captions_are_selected_joined_and_moved():
    some = captions()
    chosen = some[torch.tensor([3, 0, 0])]
    assert torch.equal(chosen.embedding, some.embedding[[3, 0, 0]])
    assert torch.equal(chosen.tokens, some.tokens[[3, 0, 0]])
    assert torch.equal(chosen.mask, some.mask[[3, 0, 0]])
    assert equal(TextFeatures.cat([some[:1], some[1:]]), some)
    assert some.to("meta").mask.device.type == "meta"


def test_dropped_captions_are_empty_beside_those_that_were():
    some = captions().drop(torch.tensor([True, False, False, False]))
    assert some.drop(torch.tensor([False, False, True, False])).empty.tolist() == [True, False, True, False]
    assert some.empty.tolist() == [True, False, False, False]  # it stays as it is
    assert some.null().empty.all()
    assert torch.equal(some.null().embedding, some.embedding)


def test_negative_captions_take_the_place_of_the_null_and_follow_their_rows():
    some = replace(captions(), negative=captions().drop(torch.ones(4, dtype=torch.bool)))
    chosen = some[torch.tensor([3, 0])]
    assert torch.equal(chosen.null().embedding, some.negative.embedding[[3, 0]])
    assert TextFeatures.cat([some, some.null()]).negative is None
    assert some.to("meta").negative.mask.device.type == "meta"


def test_embeddings_alone_are_captions_of_one_token():
    text = TextFeatures.of_embeddings(torch.eye(3))
    assert torch.equal(text.tokens, torch.eye(3)[:, None])
    assert text.mask.all()
    assert not text.empty.any()


# Captions through a CLIP.

WORDS = ["an image of a bag", "", "a boot", "an image of a bag", " \t"]


@pytest.fixture(scope="module")
def reader() -> tuple[CLIP, Tokenizer]:
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(WORDS, vocab_size=300)
    text = TextConfig(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.end_id, context=20, width=8, layers=1, heads=2)
    return CLIP(CLIPConfig(embed_dim=6, vision=VisionConfig(width=8, layers=1, heads=1), text=text)).eval(), tokenizer


def test_captions_without_a_word_are_empty(reader):
    assert encode_captions(*reader, WORDS).empty.tolist() == [False, True, False, False, True]


def test_each_caption_is_read_once_and_stands_where_it_stood(reader, monkeypatch):
    read, encode_text = [], CLIP.encode_text
    monkeypatch.setattr(CLIP, "encode_text", lambda self, ids: read.append(len(ids)) or encode_text(self, ids))
    encoded = encode_captions(*reader, WORDS)
    assert read == [4]
    assert equal(encoded[3:4], encoded[:1])
    for i in (0, 1, 2):
        alone = encode_captions(*reader, WORDS[i : i + 1])
        length = alone.mask.shape[1]
        torch.testing.assert_close(encoded.embedding[i], alone.embedding[0])
        torch.testing.assert_close(encoded.tokens[i, :length], alone.tokens[0])
        assert encoded.mask[i].sum() == alone.mask.sum() == length
