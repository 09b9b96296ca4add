"""Documents in chunks: which words learn, through which joints, and in how much memory."""

import itertools
import tracemalloc

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn

N_IN, N_HIDDEN, N_OUT = 3, 4, 2
CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}

# (length, bptt, max_seq): divided and not, shorter than a chunk, exactly max_seq, chunks longer than max_seq.
SHAPES = [
    (40, 5, 20),
    (43, 5, 20),
    (40, 7, 20),
    (3, 5, 20),
    (20, 5, 20),
    (21, 5, 20),
    (19, 5, 20),
    (25, 30, 20),
]
SHAPES += [(25, 20, 20), (30, 16, 7), (12, 1, 6), (1, 5, 20), (9, 4, 1)]

every_shape = pytest.mark.parametrize(("length", "bptt", "max_seq"), SHAPES)


class Document(nn.Module):
    """An encoder and a head in float64, and a tape with the gradient of one document of `length` distinct words."""

    def __init__(self, length, bptt, max_seq, cell="lstm", n_in=N_IN, n_hidden=N_HIDDEN):
        rng = np.random.default_rng(0)
        self.words = rng.permutation(length)
        embedding = nn.Embedding(length, n_in, dtype=np.float64, rng=rng)
        cell = CELLS[cell](n_in, n_hidden, dtype=np.float64, rng=rng)
        self.encoder = nn.DocumentEncoder(cell, bptt, max_seq, embedding)
        self.head = nn.PoolingLinear(n_hidden, N_OUT, dtype=np.float64, rng=rng)

    def loss_of(self, outputs):
        return tg.softmax_cross_entropy(self.head(outputs), np.array([1]))

    def differentiated(self, tape):
        """The outputs, and the sweep of the document's loss over `tape`."""
        with tape:
            outputs = self.encoder(self.words)
            loss = self.loss_of(outputs)
        return outputs, tape.backward(loss)

    def adjoints_of_the_head(self, outputs):
        """What the head alone hands to each output."""
        leaves, tape = [tg.Variable(out.value) for out in outputs], tg.Tape()
        with tape:
            loss = self.loss_of(leaves)
        adjoints = tape.backward(loss)
        return [adjoints[leaf] for leaf in leaves]

    def words_with_gradient(self, tape=None):
        """The positions in the document of words whose vector has a gradient."""
        self.zero_grad()
        self.differentiated(tape or tg.Tape())
        rows = np.abs(self.encoder.embedding.weight.grad).sum(axis=1)
        return np.flatnonzero(rows[self.words]).tolist()


def states_of(document):
    """The state before each word, from a loop of its own with no tape."""
    encoder = document.encoder
    states = [encoder.cell.initial_state(1)]
    for word in document.words:
        states.append(encoder.cell(encoder.embedding(np.array([word])), states[-1])[1])
    return states


def constants_of(state):
    return tuple(map(tg.stop_gradient, state)) if isinstance(state, tuple) else tg.stop_gradient(state)


def chunks_of(length, bptt, max_seq):
    """Borders of the chunks within the last `max_seq` words, as ranges of positions."""
    first = max(0, length - max_seq)
    borders = [first, *(t for t in range(0, length, bptt) if t > first), length]
    return [range(a, b) for a, b in itertools.pairwise(borders)]


# -- which words learn -----------------------------------------------------------------------------


@every_shape
def test_exactly_the_last_max_seq_words_have_a_gradient(length, bptt, max_seq):
    document = Document(length, bptt, max_seq)
    assert document.words_with_gradient() == list(range(max(0, length - max_seq), length))


@pytest.mark.parametrize("length", [2000, 2050, 1000, 1001, 60])
def test_of_a_long_document_the_last_1000_words_learn_and_no_other(length):
    document = Document(length, bptt=100, max_seq=1000)
    assert document.words_with_gradient() == list(range(max(0, length - 1000), length))


@every_shape
def test_each_chunk_gets_the_gradient_of_that_chunk_alone_under_the_adjoint_of_the_head(
    length, bptt, max_seq
):
    document, tape = Document(length, bptt, max_seq), tg.Tape()
    outputs, adjoints = document.differentiated(tape)
    encoder, states, from_head = document.encoder, states_of(document), document.adjoints_of_the_head(outputs)
    total = {p: np.zeros(p.shape) for p in encoder.parameters()}
    first = max(0, length - max_seq)
    for chunk in chunks_of(length, bptt, max_seq):
        alone = tg.Tape()
        with alone:
            state, expected_outputs = constants_of(states[chunk.start]), []
            for word in document.words[chunk.start : chunk.stop]:
                out, state = encoder.cell(encoder.embedding(np.array([word])), state)
                expected_outputs.append(out)
        kept = slice(chunk.start - first, chunk.stop - first)
        expected = alone.backward(expected_outputs, from_head[kept]).gradients
        within = tape.backward(outputs[kept], from_head[kept]).gradients
        for p in encoder.parameters():
            np.testing.assert_allclose(
                within[p], expected[p], rtol=1e-12, atol=1e-15, err_msg=f"{p.name}, words {chunk}"
            )
            total[p] += expected[p]
    for p in encoder.parameters():
        np.testing.assert_allclose(adjoints.gradients[p], total[p], rtol=1e-12, atol=1e-15, err_msg=p.name)


@pytest.mark.parametrize("cell", CELLS)
@every_shape
def test_it_equals_a_window_of_a_loop_that_cuts_the_state_by_hand(length, bptt, max_seq, cell):
    document = Document(length, bptt, max_seq, cell)
    _, adjoints = document.differentiated(tg.Tape())
    encoder, tape = document.encoder, tg.CapacitorTape(max_seq + 1)  # a segment per word, and the head's
    outputs, state = [], encoder.cell.initial_state(1)
    for t, word in enumerate(document.words):
        with tape:
            if t % bptt == 0:
                state = constants_of(state)
            out, state = encoder.cell(encoder.embedding(np.array([word])), state)
            outputs.append(out)
    with tape:
        loss = document.loss_of(outputs[-max_seq:])
    sweep = tape.backward(loss)
    for p in document.parameters():
        np.testing.assert_allclose(
            sweep.gradients[p], adjoints.gradients[p], rtol=1e-12, atol=1e-15, err_msg=p.name
        )


@pytest.mark.parametrize("tape", [tg.Tape, lambda: tg.CapacitorTape(1), lambda: tg.CapacitorTape(tg.Full())])
def test_any_tape_serves(tape):
    document = Document(30, 7, 20)
    _, expected = document.differentiated(tg.Tape())
    tape = tape()
    with tape:
        loss = document.loss_of(document.encoder(document.words))
    sweep = tape.backward(loss) or tape.sweep()
    for p in document.parameters():
        np.testing.assert_array_equal(sweep.gradients[p], expected.gradients[p])


def test_without_bptt_only_what_is_older_than_max_seq_is_cut_off():
    document = Document(30, None, 20)
    outputs, adjoints = document.differentiated(tg.Tape())
    state, tape = states_of(document)[10], tg.Tape()
    with tape:
        expected_outputs, state = [], constants_of(state)
        for word in document.words[10:]:
            out, state = document.encoder.cell(document.encoder.embedding(np.array([word])), state)
            expected_outputs.append(out)
    expected = tape.backward(expected_outputs, document.adjoints_of_the_head(outputs))
    for p in document.encoder.parameters():
        np.testing.assert_allclose(adjoints.gradients[p], expected.gradients[p], rtol=1e-12, atol=1e-15)
    chunked = Document(30, 10, 20)
    of_chunks = chunked.differentiated(tg.Tape())[1].gradients[chunked.encoder.cell.w_h]
    assert not np.allclose(of_chunks, adjoints.gradients[document.encoder.cell.w_h], rtol=1e-3)


def test_words_older_than_max_seq_still_reach_the_outputs_through_the_state():
    document = Document(30, 5, 20)
    before = document.encoder(document.words)[0].value
    document.words[0] = document.words[-1]
    assert not np.array_equal(document.encoder(document.words)[0].value, before)


def test_a_learned_first_state_learns_from_the_first_chunk():
    class Cell(nn.Module):
        def __init__(self):
            self.h0 = tg.Parameter(np.zeros((1, N_IN), np.float32))

        def initial_state(self, batch):
            return self.h0

        def forward(self, x, h):
            return x * h, h

    cell, tape = Cell(), tg.Tape()
    for length, reached in ((3, 3), (5, 5), (6, 5), (8, 5), (9, 0), (20, 0)):
        cell.zero_grad()
        with tape:
            outputs = nn.DocumentEncoder(cell, 5, 8)(tg.Variable(np.ones((length, 1, N_IN), np.float32)))
            loss = tg.sum(tg.stack(outputs))
        tape.backward(loss)
        assert (0 if cell.h0.grad is None else cell.h0.grad[0, 0]) == reached, length


# -- against PyTorch -------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "bptt", "max_seq"), [(26, 4, 12), (25, 4, 10), (12, 4, 12), (3, 4, 10)])
def test_pytorch_with_the_state_detached_at_every_border_agrees(length, bptt, max_seq):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    document = Document(length, bptt, max_seq)
    encoder, linear = document.encoder, document.head.linear
    _, adjoints = document.differentiated(tg.Tape())

    cell = torch.nn.LSTMCell(N_IN, N_HIDDEN, dtype=torch.float64)
    table = torch.nn.Embedding(length, N_IN, dtype=torch.float64)
    decoder = torch.nn.Linear(3 * N_HIDDEN, N_OUT, dtype=torch.float64)
    pairs = [
        (encoder.embedding.weight, table.weight, False),
        (encoder.cell.w_x, cell.weight_ih, True),
        (encoder.cell.w_h, cell.weight_hh, True),
        (encoder.cell.b, cell.bias_ih, False),
        (linear.weight, decoder.weight, True),
        (linear.bias, decoder.bias, False),
    ]
    with torch.no_grad():
        cell.bias_hh.zero_()
        for ours, theirs, turned in pairs:
            theirs.copy_(torch.tensor(np.array(ours.value.T if turned else ours.value)))
    h, c, outputs = torch.zeros(1, N_HIDDEN).double(), torch.zeros(1, N_HIDDEN).double(), []
    for t, word in enumerate(document.words):
        if t % bptt == 0 or t == length - max_seq:
            h, c = h.detach(), c.detach()
        with torch.set_grad_enabled(t >= length - max_seq):
            h, c = cell(table(torch.tensor([word])), (h, c))
        outputs.append(h)
    stacked = torch.stack(outputs[-max_seq:])
    pooled = torch.cat([stacked[-1], stacked.max(dim=0).values, stacked.mean(dim=0)], dim=-1)
    torch.nn.functional.cross_entropy(decoder(pooled), torch.tensor([1])).backward()
    for ours, theirs, turned in pairs:
        expected = theirs.grad.numpy().T if turned else theirs.grad.numpy()
        np.testing.assert_allclose(
            adjoints.gradients[ours], expected, rtol=1e-11, atol=1e-14, err_msg=ours.name
        )


# -- memory, and words that come one at a time -----------------------------------------------------


def test_a_tape_keeps_as_much_of_10000_words_as_of_2000():
    def kept(length):
        rng = np.random.default_rng(0)
        embedding, cell = nn.Embedding(50, N_IN, rng=rng), nn.LSTMCell(N_IN, N_HIDDEN, rng=rng)
        encoder, head = nn.DocumentEncoder(cell, 100, 1000, embedding), nn.PoolingLinear(N_HIDDEN, N_OUT)
        tape = tg.Tape()
        with tape:
            head(encoder(int(word) for word in rng.integers(0, 50, length)))
        return tape.nbytes, len(tape)

    assert kept(2000) == kept(10_000)


def test_a_stream_of_words_is_held_in_no_more_memory_when_it_is_ten_times_as_long():
    encoder = nn.DocumentEncoder(nn.RNNCell(64, 8, rng=0), 10, 50)

    def peak(length):
        tape = tg.Tape()
        tracemalloc.start()
        with tape:
            encoder(np.zeros((1, 64), np.float32) for _ in range(length))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    for length in (2000, 200):
        peak(length)  # what is made once, for code that runs often
    assert peak(2000) < 1.05 * peak(200)


@pytest.mark.parametrize("feed", ["iterator", "integers", "one buffer"])
def test_words_may_come_in_any_form(feed):
    document = Document(30, 7, 20)
    _, expected = document.differentiated(tg.Tape())
    words, buffer = document.words, np.zeros(1, int)

    def one_buffer():
        for word in words:
            buffer[0] = word
            yield buffer
        buffer[0] = 0

    document.words = {
        "iterator": iter(words),
        "integers": [int(word) for word in words],
        "one buffer": one_buffer(),
    }[feed]
    _, adjoints = document.differentiated(tg.Tape())
    for p in document.parameters():
        np.testing.assert_array_equal(adjoints.gradients[p], expected.gradients[p])


def test_documents_of_a_batch_run_side_by_side():
    document, rng = Document(30, 7, 20), np.random.default_rng(1)
    words = rng.integers(0, 30, (30, 3))
    together = document.encoder(words)
    assert len(together) == 20
    for i in range(3):
        for both, one in zip(together, document.encoder(words[:, i]), strict=True):
            np.testing.assert_allclose(both.value[i : i + 1], one.value, rtol=1e-12)


def test_words_that_are_variables_have_gradients_of_their_own():
    words = [tg.Variable(np.ones((1, N_IN), np.float32)) for _ in range(12)]
    tape, encoder = tg.Tape(), nn.DocumentEncoder(nn.GRUCell(N_IN, N_HIDDEN, rng=0), 3, 5)
    with tape:
        loss = tg.sum(tg.stack(encoder(words)))
    tape.backward(loss)
    assert [word.grad is not None for word in words] == [False] * 7 + [True] * 5


# -- the head --------------------------------------------------------------------------------------


def test_pooling_joins_the_last_the_largest_and_the_mean():
    outputs = np.random.default_rng(0).standard_normal((6, 2, N_HIDDEN))
    expected = np.concatenate([outputs[-1], outputs.max(axis=0), outputs.mean(axis=0)], axis=-1)
    pooling = nn.ConcatPooling()
    np.testing.assert_array_equal(pooling(outputs), expected)
    np.testing.assert_array_equal(pooling(tg.Variable(outputs)).value, expected)
    np.testing.assert_array_equal(pooling([tg.Variable(out) for out in outputs]).value, expected)
    head = nn.PoolingLinear(N_HIDDEN, N_OUT, dtype=np.float64, rng=0)
    weight, bias = head.linear.weight.value, head.linear.bias.value
    np.testing.assert_allclose(head(outputs).value, expected @ weight + bias, rtol=1e-14)


def test_a_clue_early_in_the_document_is_learned():
    """Documents of 60 words, cut every 10: one of the first 10 says which class it is."""
    rng = np.random.default_rng(0)
    encoder = nn.DocumentEncoder(
        nn.LSTMCell(8, 16, rng=rng), bptt=10, max_seq=60, embedding=nn.Embedding(20, 8, rng=rng)
    )
    head, tape = nn.PoolingLinear(16, 2, rng=rng), tg.Tape()
    optimizer = tg.optim.Adam([*encoder.parameters(), *head.parameters()], lr=0.01)

    def documents(batch):
        words, labels = rng.integers(2, 20, (60, batch)), rng.integers(0, 2, batch)
        words[rng.integers(0, 10, batch), np.arange(batch)] = labels
        return words, labels

    for _ in range(100):
        words, labels = documents(16)
        with tape:
            loss = tg.softmax_cross_entropy(head(encoder(words)), labels)
        tape.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    words, labels = documents(200)
    right = (head(encoder(words)).value.argmax(axis=-1) == labels).mean()
    assert right > 0.95, right


# -- what does not fit -----------------------------------------------------------------------------


def encode(words, embedding=None, bptt=2, max_seq=3):
    return nn.DocumentEncoder(nn.RNNCell(N_IN, N_HIDDEN, rng=0), bptt, max_seq, embedding)(words)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: encode([], bptt=0),
            "DocumentEncoder: `bptt` must be a whole number of at least 1, and 0 came",
        ),
        (lambda: encode([], max_seq=1.5), "DocumentEncoder: `max_seq` must be a whole number of at least 1"),
        (lambda: encode([]), "DocumentEncoder: the document has no words. Leave it out"),
        (
            lambda: encode([3]),
            "a word must be \\(batch, n_in\\), and int64 \\(\\) came.\n.*give an embedding",
        ),
        (
            lambda: encode([np.ones((1, N_IN)), np.ones((2, N_IN))]),
            "every word must have the same shape.\n  this word: float64 \\(2, 3\\)      the one before: float64 \\(1, 3\\)",
        ),
        (lambda: nn.ConcatPooling()([]), "ConcatPooling: there are no outputs to pool"),
        (
            lambda: nn.PoolingLinear(0, 2),
            "PoolingLinear: `n_in` must be a whole number of at least 1, and 0 came",
        ),
    ],
)
def test_what_is_no_document_is_named(call, message):
    with pytest.raises(tg.ArgumentError, match=message):
        call()


def test_a_word_that_fails_leaves_the_tape_recording():
    document, tape = Document(30, 5, 20), tg.Tape()
    document.words[5] = 999
    with tape:
        with pytest.raises(tg.ArgumentError, match="999 came"):
            document.encoder(document.words)
        document.encoder.embedding(np.array([1]))
    assert len(tape) == 1
