"""A prior without the rest of the stack: the example of its README is run as it stands there."""

import torch
import torch.nn.functional as F
from conftest import ROOT
from test_documentation import FENCE


def test_the_example_of_the_readme_trains_and_draws():
    document = (ROOT / "unclip" / "prior" / "README.md").read_text(encoding="utf-8")
    [code] = [body for language, body in FENCE.findall(document) if language == "python"]
    torch.manual_seed(0)
    texts = F.normalize(torch.randn(200, 12), dim=1)
    images = F.normalize(texts @ torch.randn(12, 12) + 0.3 * torch.randn(200, 12), dim=1)
    names = {"texts": texts, "images": images}
    exec(code.replace("range(2000)", "range(8)").replace("256", "64"), names)
    assert names["drawn"].shape == (8, 12)
    assert (names["drawn"] * images[:8]).sum(dim=1).mean() > 0.7
    assert names["prior"].network.out.weight.abs().max() > 0  # it was trained, and began at zero
