"""Recurrent nets: padded batches equal single sequences, and bad lengths are errors."""

import pytest
import torch
from torch import nn

from dlblocks.fields import Padded
from dlblocks.nets import RNN

LENGTHS = [3, 1, 7, 5]


def sequences(features=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, features, generator=generator) for n in LENGTHS]


def gradients(net):
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("readout", ["last", "mean", "steps"])
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_a_padded_batch_equals_its_sequences_one_by_one(kind, readout):
    rows = sequences()
    net = RNN(4, 3, kind=kind, hidden=6, layers=2, bidirectional=True, readout=readout).double()
    rows = [row.double() for row in rows]
    weights = torch.randn(3).double()
    padded = Padded.of(rows)
    together = net(padded)
    ((together @ weights).tanh() ** 2).sum().backward()
    batch = gradients(net)
    net.zero_grad()
    alone = [net(row[None])[0] for row in rows]
    sum(((one @ weights).tanh() ** 2).sum() for one in alone).backward()
    for one, many, length in zip(alone, together, LENGTHS, strict=True):
        torch.testing.assert_close(many[:length] if readout == "steps" else many, one)
    if readout == "steps":
        assert together.shape == (4, 7, 3)
        assert not together[0, 3:].any() and not together[1, 1:].any()
    for one, many in zip(gradients(net), batch, strict=True):
        torch.testing.assert_close(many, one)


def test_both_directions_are_read_at_their_ends():
    """The backward half is not that of the last step, which has seen one step alone."""
    net = RNN(4, 3, kind="lstm", hidden=5, bidirectional=True)
    row = sequences()[2]
    weights = net.rnn.state_dict()
    found = []
    for names, x in (("", row), ("_reverse", row.flip(0))):
        cell = nn.LSTMCell(4, 5)
        cell.load_state_dict(
            {n: weights[f"{n}_l0{names}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        )
        state = None
        for step in x:
            state = cell(step[None], state)
        found.append(state[0])
    expected = net.head(torch.cat(found, 1))
    torch.testing.assert_close(net(row[None]), expected)
    torch.testing.assert_close(net(Padded.of(sequences()))[2:3], expected)
    wrong = net.head(net.rnn(row[None])[0][:, -1])
    assert not torch.allclose(wrong, expected, atol=1e-3)


def test_padding_of_all_sequences_stays_and_changes_nothing():
    rows = sequences()
    padded = Padded.of(rows)
    longer = Padded(torch.cat([padded.values, torch.full((4, 2, 4), 9.0)], 1), padded.lengths)
    for readout in ("last", "mean", "steps"):
        net = RNN(4, 3, hidden=5, readout=readout)
        found = net(longer)
        expected = net(padded)
        if readout == "steps":
            assert found.shape == (4, 9, 3)
            found = found[:, :7]
        torch.testing.assert_close(found, expected)


def test_training_and_evaluation_agree_at_every_step_but_for_dropout():
    padded = Padded.of(sequences())
    net = RNN(4, 3, hidden=5, readout="steps")
    torch.testing.assert_close(net.train()(padded), net.eval()(padded))
    net = RNN(4, 3, hidden=5, layers=2, dropout=0.5)
    assert not torch.equal(net.train()(padded), net(padded))
    torch.testing.assert_close(net.eval()(padded), net(padded))


def test_images_are_read_row_by_row():
    images = torch.randn(2, 3, 5, 4)
    net = RNN(12, 2, hidden=5)
    rows = torch.stack([torch.cat([image[:, i].flatten() for i in range(5)]) for image in images])
    torch.testing.assert_close(net(images), net(rows.reshape(2, 5, 12)))


def test_tokens_are_looked_up():
    net = RNN(4, 2, hidden=5, num_tokens=6)
    tokens = [torch.tensor([1, 5, 0]), torch.tensor([2])]
    padded = Padded.of(tokens)
    found = net(padded)
    for one, row in zip(found, tokens, strict=True):
        torch.testing.assert_close(net(row[None])[0], one)
    with pytest.raises(ValueError, match=r"token 6 in row 1, step 0, .* tokens are 0 … 5"):
        net(Padded.of([tokens[0], torch.tensor([6])]))
    with pytest.raises(ValueError, match=r"num_tokens=6 is for tokens \(N, T\)"):
        net(torch.zeros(1, 3, 4))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3, 0, 2, 1], "length 0 in row 1; .* remove this row"),
        ([3, 8, 2, 1], "length 8 in row 1, but its values have 7 steps"),
        ([3, -1, 2, 1], "length -1 in row 1"),
        ([3, 1], r"lengths of shape \(2,\)"),
        ([3.0, 1.0, 2.0, 1.0], "torch.float32; expected"),
    ],
)
def test_bad_lengths_are_errors(lengths, message):
    net = RNN(4, 2, hidden=3)
    with pytest.raises(ValueError, match=message):
        net(Padded(torch.zeros(4, 7, 4), torch.tensor(lengths)))


def test_bad_arguments_are_errors():
    with pytest.raises(ValueError, match="did you mean 'lstm'"):
        RNN(4, 2, kind="lsmt")
    with pytest.raises(ValueError, match=r"dropout=1.0 is outside \[0, 1\)"):
        RNN(4, 2, dropout=1.0)
    with pytest.raises(ValueError, match=r"in_features=4, but a step .* set in_features=5"):
        RNN(4, 2)(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="in_features=4, but a row of an image"):
        RNN(4, 2)(torch.zeros(2, 1, 3, 5))
    with pytest.raises(ValueError, match=r"sequences are \(T, F\)"):
        RNN(4, 2).check_input((7,))


def test_plain_sequences_compile_without_graph_breaks():
    net = RNN(4, 3, kind="gru", hidden=5, bidirectional=True).eval()
    inputs = torch.randn(2, 6, 4)
    expected = net(inputs)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), expected)
