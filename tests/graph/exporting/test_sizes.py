"""Sizes: which other sizes a graph by export takes, and that it refuses all others by name."""

import pytest
import torch
from torch import nn

from fxcompress.errors import CaptureError
from fxcompress.graph import capture, text
from fxcompress.graph.inputs import Arguments
from tests.graph.exporting.exported import X
from tests.graph.same import model_of


def exported(forward, *args, **kwargs):
    """Return the graph of a model with a linear layer and the given forward."""
    return capture(model_of(forward, fc=nn.Linear(4, 4)), Arguments(args, kwargs), way="export")


@pytest.mark.parametrize("example", [X[:1], X])
def test_other_batches(example):
    def forward(self, x, bias):
        return x.view(x.shape[0], 2, -1) + bias.unsqueeze(1)

    gm = exported(forward, example, example[:, :2])
    for size in (1, 2, 5):
        x = torch.randn(size, 4)
        assert torch.equal(gm(x, x[:, :2]), forward(gm, x, x[:, :2]))


def test_sizes_that_happen_to_be_equal_are_not_taken_for_one():
    model = model_of(lambda self, ids: self.table(ids).sum(1), table=nn.Embedding(9, 4))
    gm = capture(model, torch.ones(3, 3).long(), way="export")
    assert "((None, None),)" in text(gm)
    assert gm(torch.ones(2, 5).long()).shape == (2, 4)


def test_sizes_that_depend_on_each_other():
    def forward(self, ids, mask):
        return self.table(ids) * mask[..., None] + self.places[: ids.shape[1]]

    model = model_of(forward, table=nn.Embedding(9, 4), places=torch.randn(6, 4))
    ids = torch.ones(2, 3).long()
    gm = capture(model, (ids, ids.bool()), way="export")
    assert "(('a', 'b'), ('a', 'b')), (('b', 0, 6),)" in text(gm)
    ids = torch.ones(4, 6).long()
    assert torch.equal(gm(ids, ids.bool()), model(ids, ids.bool()))
    with pytest.raises(CaptureError, match=r"^axis 1 of mask has 5 entries .* takes 6; capture"):
        gm(ids, ids[:, :5].bool())
    ids = torch.ones(2, 7).long()
    with pytest.raises(CaptureError, match=r"^axis 1 of ids has 7 entries .* takes at most 6; capture"):
        gm(ids, ids.bool())


def test_sizes_that_must_be_multiples_are_those_of_the_example():
    def forward(self, x):
        return self.fc(x.view(x.shape[0] // 2, 2, 4))

    gm = exported(forward, torch.randn(4, 4))
    assert "((4, 4),)" in text(gm)
    with pytest.raises(CaptureError, match=r"^axis 0 of x has 5 entries .* takes 4; capture"):
        gm(torch.randn(5, 4))


def test_batches_of_query_and_key_may_change_together():
    attention = nn.MultiheadAttention(4, 2, batch_first=True).eval()
    q, k = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    gm = capture(attention, (q, k, k), way="export")
    q, k = torch.randn(3, 4, 4), torch.randn(3, 6, 4)
    torch.testing.assert_close(gm(q, k, k), attention(q, k, k))


def test_a_path_that_depends_on_a_size():
    def forward(self, x):
        return x * 2 if x.shape[0] > 3 else x

    gm = exported(forward, torch.randn(5, 4))
    assert torch.equal(gm(torch.ones(4, 4)), torch.full((4, 4), 2.0))
    with pytest.raises(CaptureError, match=r"^axis 0 of x has 3 entries .* takes 4 or more; capture"):
        gm(torch.randn(3, 4))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_length_that_is_told_from_one_leaves_the_batch_open(batch):
    def forward(self, x):
        return self.a(x) * (2 if x.shape[1] > 1 else 3)

    model = model_of(forward, a=nn.Linear(4, 4))
    gm = capture(model, torch.ones(batch, 5, 4), way="export")
    x = torch.randn(3, 7, 4)
    assert torch.equal(gm(x), model(x))
    with pytest.raises(CaptureError, match="axis 1 of x has 1 entries where the captured graph takes 2 or more"):
        gm(torch.ones(2, 1, 4))


def test_what_code_asserts_of_values_need_not_be_decided():
    code = "def forward(self, x):\n    assert (x > 0).sum().item() <= x.numel()\n    return self.fc(x)"
    defined = {}
    exec(compile(code, "model.py", "exec"), defined)  # pytest writes its own asserts anew
    assert exported(defined["forward"], torch.randn(2, 4))(torch.randn(3, 4)).shape == (3, 4)


def test_the_length_of_a_mask_of_floats_is_open():
    def forward(self, ids, mask):
        return self.fc(self.lstm(self.embed(ids))[0] * mask[..., None])

    parts = {"embed": nn.Embedding(9, 4), "lstm": nn.LSTM(4, 4, batch_first=True), "fc": nn.Linear(4, 2)}
    model = model_of(forward, **parts)
    gm = capture(model, (torch.ones(2, 5).long(), torch.ones(2, 5)), way="export")
    assert gm(torch.ones(3, 7).long(), torch.ones(3, 7)).shape == (3, 7, 2)


def test_a_decoder_by_islands_takes_causal_masks_of_all_lengths():
    def forward(self, x):
        return self.decoder(x, x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))

    layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    model = model_of(forward, decoder=nn.TransformerDecoder(layer, 1)).eval()
    gm, x = capture(model, torch.randn(2, 5, 8), way="islands"), torch.randn(3, 7, 8)
    torch.testing.assert_close(gm(x), model(x))


def test_sizes_of_images_and_features_stay():
    gm = exported(lambda self, x: self.fc(x), torch.randn(2, 3, 8, 4))
    with pytest.raises(CaptureError, match=r"^axis 2 of x has 9 entries .* takes 8; capture"):
        gm(torch.randn(2, 3, 9, 4))
    with pytest.raises(CaptureError, match=r"^x is \[2, 4\]; the model was captured with a tensor of 4 axes$"):
        gm(torch.randn(2, 4))
