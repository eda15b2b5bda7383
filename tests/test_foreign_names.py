"""Arguments by the names of diffusers are answered with the names here, in one line."""

import pytest
import torch
from small_pipeline import build

from unclip import UnCLIP, UserError
from unclip.foreign_names import ANSWERS, NAMES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("names") / "small")


@pytest.mark.parametrize("name", [*NAMES, *ANSWERS])
def test_each_name_is_answered_by_every_call(name, folder):
    pipe = UnCLIP.from_pretrained(folder)
    for call in (pipe, pipe.embed, pipe.decode, pipe.decode_tensor):
        with pytest.raises(UserError) as caught:
            call(**{name: 1})
        assert NAMES.get(name, name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_opening_answers_too(folder):
    with pytest.raises(UserError, match="torch_dtype is called dtype here"):
        UnCLIP.from_pretrained(folder, torch_dtype=torch.bfloat16)
    with pytest.raises(UserError, match="there is no setting 'variant'; choose from path, device"):
        UnCLIP.from_pretrained(folder, variant="fp16")


def test_a_call_without_captions_asks_for_one(folder):
    with pytest.raises(UserError, match="captions"):
        UnCLIP.from_pretrained(folder)()


def test_objects_of_others_are_refused_where_ours_are_wanted(folder):
    pipe = UnCLIP.from_pretrained(folder)
    parts = (pipe.preprocess, pipe.prior, pipe.decoder)
    with pytest.raises(UserError, match=r"unclip\.clip\.load_clip\(\.\.\.\) returns them, not Linear and Tokenizer"):
        UnCLIP(torch.nn.Linear(2, 2), pipe.tokenizer, *parts)
    with pytest.raises(UserError, match="not CLIP and str"):
        UnCLIP(pipe.clip, "a tokenizer", *parts)
