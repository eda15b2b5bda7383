"""The tables: another kind of prior or decoder, an optional stage, a sampler: each is one more row, nothing else."""

from dataclasses import dataclass, is_dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import contents, edit
from torch import nn

from unclip import UnCLIP, UserError
from unclip.diffusion import Level, ddim
from unclip.registry import PARTS, SAMPLERS, Kind, Part, SamplerRow, default_kind, model_class, resolve
from unclip.store.index import write_index
from unclip.store.manifest import Manifest, read_manifest, read_manifests
from unclip.store.parts import save_part
from unclip.store.publish import publish
from unclip.store.sealed_json import read_json

BAG, DRESS = "an image of a bag", "an image of a dress"


@dataclass(frozen=True)
class EchoConfig:
    spread: float = 0.1


class Echo(nn.Module):
    """A prior that takes the text embedding for that of the image, and adds some noise of the seed."""

    config_class = EchoConfig

    def __init__(self, config: EchoConfig):
        super().__init__()
        self.config = config
        self.sign = nn.Parameter(torch.ones(()))

    def draw_embeddings(self, text, seeds, settings):
        noise = [torch.randn(text.embedding.shape[1], generator=torch.Generator().manual_seed(s)) for s in seeds]
        return F.normalize(self.sign * text.embedding + self.config.spread * torch.stack(noise), dim=-1)


@dataclass(frozen=True)
class FlatConfig:
    size: int = 6


class Flat(nn.Module):
    """A decoder whose images are all of one grey, told by the noise, in a single step."""

    config_class = FlatConfig

    def __init__(self, config: FlatConfig):
        super().__init__()
        self.config = config

    @property
    def image_shape(self):
        return 3, self.config.size, self.config.size

    def draw_noise(self, seeds):
        grey = torch.tensor([s / 100 for s in seeds])
        return grey.view(-1, 1, 1, 1).expand(-1, 3, self.config.size, self.config.size)

    def draw_images(self, embeddings, text, seeds, settings, noise=None, on_step=None):
        if on_step:
            on_step(Level(1.0, 0.0, 1.0), noise, -noise)
        return -noise


class Bigger(nn.Module):
    """A stage after the decoder."""

    config_class = EchoConfig

    def __init__(self, config: EchoConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.arange(4.0))

    def process_images(self, images, embeddings, text, seeds, settings):
        return images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def put(folder, stage: str, model: nn.Module, kind: str = "", parents: dict[str, str] | None = None, **named) -> None:
    """Save a trained stage into a pipeline, in place of what is there."""
    parents = parents or {name: read_manifest(folder / name).sha256 for name in PARTS[stage].parents}
    save_part(folder / stage, model, Manifest(stage, kind, parents=parents, complete=True, **named))


# Kinds.


@pytest.fixture
def echoed(copied, monkeypatch):
    """The trained tiny pipeline with a prior of another kind, known to the table."""
    monkeypatch.setitem(PARTS["prior"].kinds, "echo", Kind(Echo, None, None))
    put(copied, "prior", Echo(EchoConfig(spread=0.02)), "echo", sampling={"num_candidates": 1})
    write_index(copied)
    return copied


def test_a_prior_of_another_kind_draws_through_the_whole_pipeline(echoed, tiny):
    pipe = UnCLIP.from_pretrained(echoed)
    assert type(pipe.prior) is Echo
    assert pipe.prior.config == EchoConfig(spread=0.02)
    out = pipe([BAG, DRESS], n=2, seed=3, steps=3)
    assert out.images.shape == (4, 28, 28, 1)
    assert (out.embeddings * pipe.encode_text([BAG, BAG, DRESS, DRESS])).sum(dim=1).min() > 0.9
    assert np.array_equal(out.images, tiny.decode(out.embeddings, out.captions, out.seeds, steps=3))
    torch.testing.assert_close(pipe.embed(BAG, n=2, seed=3), out.embeddings[:2])


def test_another_kind_is_noted_indexed_and_published_like_the_first(echoed, tmp_path):
    assert read_manifest(echoed / "prior").kind == "echo"
    index = read_json(echoed / "model_index.json")
    assert (index["parts"]["prior"]["kind"], index["parts"]["decoder"]["kind"]) == ("echo", "diffusion")
    assert index["sampling"]["prior"] == {"num_candidates": 1}
    publish(echoed, tmp_path / "published", "echoed")
    assert type(UnCLIP.from_pretrained(tmp_path / "published").prior) is Echo


def test_a_decoder_of_another_kind_draws_sizes_and_channels_of_its_own(copied, monkeypatch):
    monkeypatch.setitem(PARTS["decoder"].kinds, "flat", Kind(Flat, None, None))
    put(copied, "decoder", Flat(FlatConfig()), "flat")
    write_index(copied)
    pipe, moments = UnCLIP.from_pretrained(copied), []
    out = pipe(BAG, n=3, seed=40, prior_steps=2, batch_size=2, on_step=moments.append)
    assert out.images.shape == (3, 6, 6, 3)
    assert out.images[:, 0, 0, 0].tolist() == [round((1 - s / 100) * 127.5) for s in (40, 41, 42)]
    assert [(m.samples, m.step) for m in moments] == [(range(2), 0), (range(2, 3), 0)]


def test_a_kind_that_the_table_does_not_have_is_refused_in_one_line(echoed, monkeypatch):
    monkeypatch.delitem(PARTS["prior"].kinds, "echo")
    with pytest.raises(UserError) as caught:
        UnCLIP.from_pretrained(echoed)
    known = ", ".join(PARTS["prior"].kinds)
    assert str(caught.value) == f"there is no prior of kind 'echo' here; known are: {known}"


@pytest.mark.parametrize("kind", [3, None, ["diffusion"], {}])
def test_a_kind_that_is_no_name_is_refused(kind, copied):
    edit(copied / "prior", kind=kind)
    with pytest.raises(UserError, match="kind must be of type str, not"):
        UnCLIP.from_pretrained(copied)


def test_a_stage_in_the_folder_of_another_is_refused(copied):
    """Both were trained on the same CLIP, so that their lineage tells nothing."""
    put(copied, "prior", UnCLIP.from_pretrained(copied).decoder)
    edit(copied / "prior", part="decoder")
    with pytest.raises(
        UserError, match=r"prior/config\.json is the manifest of a decoder, not of a prior; train that part again"
    ):
        UnCLIP.from_pretrained(copied)


def test_a_stage_that_the_table_does_not_have_is_refused():
    with pytest.raises(UserError, match="there is no sharpener of kind 'diffusion' here; known are: none"):
        model_class("sharpener", "diffusion")


def test_every_row_names_code_that_is_there_and_parents_that_come_before():
    names = list(PARTS)
    for i, (name, stage) in enumerate(PARTS.items()):
        assert set(stage.parents) <= set(names[:i])
        for kind in stage.kinds:
            assert is_dataclass(model_class(name, kind).config_class)
    assert [default_kind(name) for name in ("clip", "prior", "decoder")] == ["transformer", "diffusion", "diffusion"]
    assert all(callable(resolve(row.function)) for row in SAMPLERS.values())
    assert all(
        hasattr(model_class(part, "diffusion"), name)
        for part, name in (("prior", "draw_embeddings"), ("decoder", "draw_images"))
    )


# An optional stage.


@pytest.fixture
def upsampler(monkeypatch) -> None:
    """One more row: a stage after the decoder that a pipeline may do without."""
    monkeypatch.setitem(
        PARTS, "upsampler", Part({"toy": Kind(Bigger, None, None)}, parents=("decoder",), optional=True)
    )


@pytest.fixture
def enlarged(copied, upsampler):
    put(copied, "upsampler", Bigger(EchoConfig(spread=0.3)), sampling={}, step=5)
    write_index(copied)
    return copied


def test_an_optional_stage_is_not_missed(copied, upsampler):
    before = contents(copied)
    assert UnCLIP.from_pretrained(copied).parts.keys() == {"clip", "prior", "decoder"}
    write_index(copied)
    assert contents(copied) == before


def test_an_optional_stage_is_loaded_indexed_and_moved_with_the_others(enlarged):
    pipe = UnCLIP.from_pretrained(enlarged)
    assert pipe.parts["upsampler"].config == EchoConfig(spread=0.3)
    assert not pipe.parts["upsampler"].weight.requires_grad
    assert pipe.to("meta").parts["upsampler"].weight.device.type == "meta"
    listed = read_json(enlarged / "model_index.json")["parts"]["upsampler"]
    assert (listed["kind"], listed["step"]) == ("toy", 5)
    assert "| upsampler | 5 |" in (enlarged / "README.md").read_text()


def test_an_optional_part_processes_what_the_decoder_draws(enlarged, tiny):
    few = {"n": 2, "steps": 2, "prior_steps": 2}
    images, plain = (pipe(BAG, **few).images for pipe in (UnCLIP.from_pretrained(enlarged), tiny))
    assert np.array_equal(images, plain.repeat(2, axis=1).repeat(2, axis=2))


def test_an_optional_stage_of_another_decoder_is_refused(enlarged):
    edit(enlarged / "upsampler", parents={"decoder": "f" * 64})
    with pytest.raises(UserError, match=r"the upsampler was trained on the decoder ffffffffffff\.\., but"):
        UnCLIP.from_pretrained(enlarged)


def test_an_optional_stage_is_published_with_the_hash_of_its_new_parent(enlarged, tmp_path):
    publish(enlarged, tmp_path / "out", "enlarged")
    manifests = read_manifests(tmp_path / "out")
    assert manifests["upsampler"].parents == {"decoder": manifests["decoder"].sha256}
    assert torch.equal(UnCLIP.from_pretrained(tmp_path / "out").parts["upsampler"].weight, torch.arange(4.0))


def test_a_stage_whose_optional_parent_is_away_is_refused(copied, upsampler, monkeypatch):
    monkeypatch.setitem(
        PARTS, "sharpener", Part({"toy": Kind(Bigger, None, None)}, parents=("upsampler",), optional=True)
    )
    put(copied, "sharpener", Bigger(EchoConfig()), parents={"upsampler": "a" * 64})
    with pytest.raises(UserError, match=r"on the upsampler a{12}\.\., but this pipeline holds none; retrain"):
        UnCLIP.from_pretrained(copied)


# A sampler.


def test_a_sampler_that_is_one_more_row_is_chosen_by_its_name(tiny, monkeypatch):
    """A toy that stops after the first step, and tells what it was given."""
    given = []

    def first_guess(denoise, x, levels, noise, eta):
        given.append((len(levels) - 1, eta))
        return denoise(x, levels[0]).x0

    with pytest.raises(UserError, match="sampler must be one of ddpm, ddim, dpmpp, consistency, not 'toy'"):
        tiny(BAG, sampler="toy")
    monkeypatch.setitem(SAMPLERS, "toy", SamplerRow(first_guess, reads=("eta",)))
    drawn = tiny(BAG, n=2, sampler="toy", steps=7, eta=0.25, prior_steps=2)
    assert given == [(7, 0.25)]
    assert np.array_equal(drawn.images, tiny(BAG, n=2, steps=1, prior_steps=2).images)


def test_a_row_may_name_code_or_be_it():
    assert resolve("unclip.diffusion.samplers:ddim") is ddim
    assert resolve(ddim) is ddim
