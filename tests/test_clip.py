"""CLIP's towers, its contrastive loss, and the tokenizer."""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from unclip.clip import CLIP, CLIPConfig, TextConfig, Tokenizer, VisionConfig
from unclip.clip.loss import chance_loss, contrastive_loss
from unclip.errors import UserError

QUICK = settings(deadline=None, max_examples=60, derandomize=True)
END = 1
LONG = 10_000  # a context that cuts nothing


def tiny_clip(**vision) -> CLIP:
    torch.manual_seed(0)
    config = CLIPConfig(
        embed_dim=6,
        vision=VisionConfig(**{"image_size": 8, "patch_size": 4, "width": 8, "layers": 2, "heads": 2} | vision),
        text=TextConfig(vocab_size=20, eos_id=END, context=10, width=8, layers=2, heads=2),
    )
    clip = CLIP(config).eval()
    for parameter in clip.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return clip


# The image tower.


def test_image_embeddings_are_unit_vectors_that_do_not_depend_on_the_batch():
    clip, images = tiny_clip(channels=3), torch.randn(4, 3, 8, 8)
    embeddings = clip.encode_image(images)
    assert embeddings.shape == (4, 6)
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(4))
    for i in range(4):
        torch.testing.assert_close(clip.encode_image(images[i : i + 1])[0], embeddings[i], rtol=1e-4, atol=1e-5)


def test_the_image_tower_equals_its_parts_put_together_by_hand():
    tower, images = tiny_clip().vision, torch.randn(3, 1, 8, 8)
    kernel = tower.patch.weight.flatten(1)
    tokens = [tower.class_token.expand(3, -1)]
    for row in (0, 4):
        for column in (0, 4):
            tokens.append(images[:, :, row : row + 4, column : column + 4].flatten(1) @ kernel.T)
    x = tower.norm_pre(torch.stack(tokens, dim=1) + tower.positions)
    for block in tower.blocks:
        x = block(x)[0]
    want = F.layer_norm(x[:, 0], (8,), tower.norm_post.weight, tower.norm_post.bias) @ tower.projection.weight.T
    torch.testing.assert_close(tower(images), want, rtol=1e-4, atol=1e-5)


def test_an_image_seen_by_some_patches_tells_nothing_of_the_others():
    clip, images = tiny_clip(channels=3), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = torch.tensor([[0, 3], [1, 2]])
    embeddings = clip.encode_image(images, patches)
    changed = images.clone()
    changed[0, :, :4, 4:], changed[1, :, :4, :4] = 0, 0  # patches 1 and 0, which are not among them
    torch.testing.assert_close(clip.encode_image(changed, patches.flip(1)), embeddings)
    changed[0, :, :4, :4], changed[1, :, 4:, :4] = 0, 0  # patches 0 and 2, which are
    assert ((clip.encode_image(changed, patches) - embeddings).norm(dim=1) > 1e-3).all()
    every = torch.tensor([[0, 1, 2, 3], [2, 0, 3, 1]])
    torch.testing.assert_close(clip.encode_image(images, every), clip.encode_image(images))


def test_patches_are_told_apart_by_their_positions_alone():
    clip, images = tiny_clip(), torch.randn(2, 1, 8, 8)
    before = clip.encode_image(images)
    swapped = torch.cat([images[..., 4:, :], images[..., :4, :]], dim=-2)
    assert not torch.allclose(clip.encode_image(swapped), before, atol=1e-3)
    with torch.no_grad():
        clip.vision.positions.copy_(clip.vision.positions[[0, 3, 4, 1, 2]])
    torch.testing.assert_close(clip.encode_image(swapped), before, rtol=1e-4, atol=1e-5)


# The text tower.


def test_embeddings_alone_are_those_beside_the_encodings_with_the_same_gradients():
    clip = tiny_clip().double()
    ids = torch.tensor([[0, 5, 6, END, 0], [0, 7, END, 0, 0], [0, 4, 5, 6, END]])
    outputs = clip.embed_text(ids), clip.encode_text(ids)[0]
    torch.testing.assert_close(*outputs)
    weights = torch.randn(3, 6, dtype=torch.float64)
    gradients = [torch.autograd.grad((output * weights).sum(), list(clip.text.parameters())) for output in outputs]
    torch.testing.assert_close(*gradients)


def test_text_embeddings_ignore_padding_and_whatever_follows_the_end():
    clip = tiny_clip()
    embedding, encodings = clip.encode_text(torch.tensor([[0, 5, 6, END]]))
    for after in ([END], [END, END, END], [7, 8, 9], [END, 3, END]):
        longer, longer_encodings = clip.encode_text(torch.tensor([[0, 5, 6, END, *after]]))
        torch.testing.assert_close(longer, embedding, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(longer_encodings[:, :4], encodings, rtol=1e-4, atol=1e-5)


def test_encodings_of_a_prefix_ignore_later_tokens():
    clip, ids = tiny_clip(), torch.tensor([[0, 5, 6, 7, 8, END]])
    whole = clip.encode_text(ids)[1]
    for n in range(1, 6):
        torch.testing.assert_close(clip.encode_text(ids[:, :n])[1], whole[:, :n], rtol=1e-4, atol=1e-5)
    changed = clip.encode_text(torch.tensor([[0, 5, 9, 7, 8, END]]))[1]
    assert (changed - whole).abs().amax(dim=-1)[0, 2:].min() > 1e-4  # but a change is seen from there on


def test_text_is_read_off_at_the_first_end_token():
    clip, ids = tiny_clip(), torch.tensor([[0, 5, END, END, END], [0, 5, 6, 7, END]])
    embeddings, encodings = clip.encode_text(ids)
    ends = torch.stack([encodings[0, 2], encodings[1, 4]])
    want = ends @ clip.text.projection.weight.T
    torch.testing.assert_close(embeddings, want / want.norm(dim=-1, keepdim=True))
    assert clip.text.mask(ids).tolist() == [[True, True, True, False, False], [True] * 5]


def test_the_order_of_the_tokens_matters():
    clip = tiny_clip()
    one, other = clip.encode_text(torch.tensor([[0, 5, 6, 7, END], [0, 7, 6, 5, END]]))[0]
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_gradient_reaches_every_parameter_of_a_tower(tower):
    clip = tiny_clip()
    ids = torch.tensor([[0, 5, 6, END], [0, 7, END, END]])
    images, texts = clip.encode_image(torch.randn(2, 1, 8, 8)), clip.encode_text(ids)[0]
    contrastive_loss(images, texts, torch.tensor([0, 1]), clip.scale()).backward()
    assert all(p.grad is not None and p.grad.any() for p in clip.get_submodule(tower).parameters())
    assert clip.logit_scale.grad != 0


# The loss.


@pytest.mark.parametrize(("logit", "want"), [(math.log(1 / 0.07), 1 / 0.07), (0.0, 1.0), (4.7, 100.0), (99.0, 100.0)])
def test_the_temperature_is_clamped_at_one_hundred(logit, want):
    clip = tiny_clip()
    with torch.no_grad():
        clip.logit_scale.fill_(logit)
    assert clip.scale().item() == pytest.approx(want, rel=1e-5)


def test_the_logit_scale_is_a_scalar_in_files_and_a_vector_in_the_model():
    clip, other = tiny_clip(), tiny_clip()
    tensors = clip.state_dict()
    assert (clip.logit_scale.shape, tensors["logit_scale"].shape) == ((1,), ())
    other.load_state_dict(tensors | {"logit_scale": torch.tensor(2.0)})
    assert other.logit_scale.tolist() == [2.0]


def test_the_temperature_starts_at_that_of_clip():
    config = CLIPConfig(text=TextConfig(vocab_size=3, width=8, layers=1), vision=VisionConfig(width=8, layers=1))
    assert CLIP(config).scale().item() == pytest.approx(1 / 0.07, rel=1e-5)


def slow_contrastive_loss(images, texts, caption, scale) -> float:
    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in texts] for i in images]

    def log_share(chosen: float, among: list[float]) -> float:
        return chosen - math.log(sum(math.exp(x) for x in among))

    image_to_text = [-log_share(row[c], row) for row, c in zip(logits, caption, strict=True)]
    text_to_image = []
    for u in range(len(texts)):
        column = [row[u] for row in logits]
        losses = [-log_share(x, column) for x, c in zip(column, caption, strict=True) if c == u]
        text_to_image.append(sum(losses) / len(losses))
    return (sum(image_to_text) / len(images) + sum(text_to_image) / len(texts)) / 2


@pytest.mark.parametrize("caption", [[0, 1, 2, 3], [0, 1, 0, 2, 2, 2, 1], [2, 0, 1, 0], [0, 0, 0], [0]])
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_the_contrastive_loss_equals_a_slow_loop(caption, scale):
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(len(caption), 5, generator=generator), dim=-1)
    texts = F.normalize(torch.randn(max(caption) + 1, 5, generator=generator), dim=-1)
    got = contrastive_loss(images, texts, torch.tensor(caption), scale).item()
    assert got == pytest.approx(slow_contrastive_loss(images.tolist(), texts.tolist(), caption, scale), rel=1e-4)


def test_without_repeated_captions_the_loss_is_clips():
    generator = torch.Generator().manual_seed(0)
    images, texts = F.normalize(torch.randn(2, 6, 5, generator=generator), dim=-1)
    order = torch.randperm(6, generator=generator)
    logits = 10 * images @ texts[order].T
    want = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, order, 10.0), want)


@pytest.mark.parametrize("caption", [[0, 1, 2], [0, 1, 0, 2, 2, 2, 1], [0, 0, 0]])
def test_chance_loss_is_that_of_embeddings_that_are_all_the_same(caption):
    same = F.normalize(torch.ones(len(caption), 4), dim=-1)
    loss = contrastive_loss(same, same[: max(caption) + 1], torch.tensor(caption), 14.3)
    assert chance_loss(len(caption), max(caption) + 1) == pytest.approx(loss.item(), rel=1e-5)


# The tokenizer.

CAPTIONS = ["an image of a sneaker", "an image of an ankle boot", "a photo of a bag", "Ein Stück grüner Stoff"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS * 3, vocab_size=320)


@QUICK
@given(st.text())
def test_any_text_is_encoded_and_read_back(tokenizer, caption):
    ids = tokenizer.encode([caption], LONG)[0].tolist()
    assert ids[0] == tokenizer.start_id
    assert ids[-1] == tokenizer.end_id
    assert not {tokenizer.start_id, tokenizer.end_id} & set(ids[1:-1])
    normal = tokenizer.core.normalizer.normalize_str(caption)
    assert tokenizer.decode(ids) == normal.strip()


@QUICK
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzäöüéñçдж 0123456789-.,'\"()"))
def test_case_does_not_matter(tokenizer, caption):
    assert torch.equal(tokenizer.encode([caption.upper()], LONG), tokenizer.encode([caption], LONG))


@QUICK
@given(st.lists(st.text(alphabet="abcäö", min_size=1), min_size=1), st.sampled_from([" ", "  ", "\t", "\n ", "\u3000"]))
def test_runs_of_white_space_count_as_one_space(tokenizer, words, gap):
    plain = " ".join(words)
    assert torch.equal(tokenizer.encode([gap + gap.join(words) + gap], LONG), tokenizer.encode([plain], LONG))
    assert tokenizer.decode(tokenizer.encode([plain], LONG)[0].tolist()) == plain


def test_composed_and_decomposed_letters_are_the_same(tokenizer):
    assert torch.equal(tokenizer.encode(["Stu\u0308ck"], LONG), tokenizer.encode(["st\u00fcck"], LONG))


def test_captions_that_were_trained_on_become_few_tokens(tokenizer):
    assert tokenizer.encode(["an image of a sneaker"], LONG).shape[1] < 2 + len("an image of a sneaker") / 2


def test_the_vocabulary_is_bounded_and_holds_every_byte(tokenizer):
    assert 258 < tokenizer.vocab_size <= 320
    alone = Tokenizer.train([], vocab_size=300)
    assert alone.vocab_size == 258
    assert alone.decode(alone.encode(["sneaker 👟 \x00"], LONG)[0].tolist()) == "sneaker 👟 \x00"


def test_a_batch_is_padded_with_end_tokens_to_its_longest_caption(tokenizer):
    captions = ["a", "an image of a bag", ""]
    batch = tokenizer.encode(captions, LONG)
    for row, caption in zip(batch.tolist(), captions, strict=True):
        alone = tokenizer.encode([caption], LONG)[0].tolist()
        assert row == alone + [tokenizer.end_id] * (len(row) - len(alone))
    assert batch.shape[1] == max(tokenizer.encode([c], LONG).shape[1] for c in captions)
    assert tokenizer.encode([""], LONG).tolist() == [[tokenizer.start_id, tokenizer.end_id]]


def test_a_long_caption_is_cut_with_a_warning_that_shows_what_is_kept(tokenizer):
    whole = tokenizer.encode(["a bag by zqxj"], LONG)[0].tolist()
    with pytest.warns(UserWarning, match="cut") as caught:
        cut = tokenizer.encode(["a bag by zqxj"], 5)[0].tolist()
    assert cut == [*whole[:4], tokenizer.end_id]
    assert repr(tokenizer.decode(whole[1:4])) in str(caught[0].message)


def test_a_caption_that_just_fits_is_not_cut(tokenizer):
    whole = tokenizer.encode(["sneaker bag boot"], LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(tokenizer.encode(["sneaker bag boot"], whole.shape[1]), whole)


@pytest.mark.parametrize("cleaning", ["", "whitespace", "lower"])
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda tokenizer: pickle.loads(pickle.dumps(tokenizer))])
def test_copied_tokenizer_gives_the_same_ids(copied, cleaning, tokenizer):
    original = Tokenizer(copy.deepcopy(tokenizer.core), cleaning)
    original.pad_with(tokenizer.core.id_to_token(300))
    again = copied(original)
    captions = ["a BAG", "a <|startoftext|> bag <|endoftext|>", " wide\tboot", ""]
    assert torch.equal(again.encode(captions, LONG), original.encode(captions, LONG))
    assert again.to_json() == original.to_json()


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|startoftext|>"])
def test_a_special_token_inside_a_caption_is_plain_text(tokenizer, special):
    caption = f"a {special} bag"
    ids = tokenizer.encode([caption], LONG)[0].tolist()
    assert not {tokenizer.start_id, tokenizer.end_id} & set(ids[1:-1])
    assert tokenizer.decode(ids) == caption


def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json(), encoding="utf-8")
    loaded = Tokenizer.load(path)
    captions = [*CAPTIONS, "a <|endoftext|> b", "", "👟 unseen ẞ", "SNEAKER"]
    assert torch.equal(loaded.encode(captions, LONG), tokenizer.encode(captions, LONG))
    assert (loaded.vocab_size, loaded.start_id, loaded.end_id) == (tokenizer.vocab_size, 0, 1)
    assert loaded.to_json() == tokenizer.to_json()


def test_training_twice_gives_the_same_tokenizer(tokenizer):
    assert Tokenizer.train(CAPTIONS * 3, vocab_size=320).to_json() == tokenizer.to_json()


@pytest.mark.parametrize("content", [None, "", "{}", "not json"])
def test_a_missing_or_damaged_tokenizer_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json is not a readable tokenizer"):
        Tokenizer.load(path)


@pytest.mark.parametrize("caption", ["\ud800", "a \udfff bag"])
def test_invalid_surrogates_are_refused(tokenizer, caption):
    with pytest.raises(UserError, match="not valid Unicode"):
        tokenizer.encode(["a bag", caption], LONG)
