"""Transformers as generators: one distribution in log_prob, in cached and in uncached sampling; answers to prompts."""

import itertools

import pyro
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from banel_pyro.negative import check_generator
from banel_pyro.negative.training import Training
from models import transformer
from models.decoder import Cache, Decoder, TokenDecoder, drawn
from models.transformer import PixelTransformer, TokenTransformer

TOKENS, LENGTH = 3, 4
ENDS = pytest.mark.parametrize("end", [None, 0, 2])


def tiny(end: int | None = None, **sizes: int) -> TokenTransformer:
    """A transformer far from uniform, whose every sequence has some probability."""
    generator = TokenTransformer(**{"tokens": TOKENS, "length": LENGTH, "width": 8, "heads": 2} | sizes, end=end)
    for value in generator.parameters():
        nn.init.normal_(value, std=0.5)
    return generator


def sequences(end: int | None = None, tokens: int = TOKENS, length: int = LENGTH) -> Tensor:
    """All sequences: with an end, those in which nothing but the end follows it."""
    every = torch.tensor(list(itertools.product(range(tokens), repeat=length)))
    if end is None:
        return every
    after = (every == end).cumsum(1) - (every == end).long() > 0
    return every[((every == end) | ~after).all(1)]


def stepwise(generator: TokenTransformer, x: Tensor) -> Tensor:
    """Log-probabilities of sequences from the logits that cached sampling would see, one position at a time."""
    cache = Cache(generator.net.decoder, len(x), generator.length)
    read, total, going = torch.full((len(x), 1), generator.tokens), torch.zeros(len(x)), torch.ones(len(x)).bool()
    for t in range(generator.length):
        log_p = generator.net(read, cache)[:, 0].log_softmax(-1)
        total = total + torch.where(going, log_p.gather(1, x[:, t : t + 1])[:, 0], 0.0)
        going = going & (x[:, t] != generator.end)
        read = x[:, t : t + 1]
    return total


# ---- one distribution ----------------------------------------------------------------------------


@ENDS
def test_probabilities_sum_to_one(end: int | None, float64: torch.dtype) -> None:
    total = tiny(end).log_prob(sequences(end)).exp().sum()
    assert float(total.detach()) == pytest.approx(1.0, abs=1e-12)


@ENDS
@pytest.mark.parametrize("length", [4, 32])
def test_cached_sampling_is_uncached_sampling(end: int | None, length: int, float64: torch.dtype) -> None:
    generator = tiny(end, tokens=5, length=length)
    uniforms = torch.rand(200, length)
    x = generator.sample(200, uniforms=uniforms)
    assert len(x.unique(dim=0)) > 10
    assert torch.equal(x, generator.sample(200, uniforms=uniforms, cached=False))


@ENDS
@pytest.mark.parametrize("length", [4, 32])
def test_teacher_forcing_agrees_with_sampling_step_by_step(end: int | None, length: int, float64: torch.dtype) -> None:
    generator = tiny(end, tokens=5, length=length)
    with torch.no_grad():
        x = generator.sample(100)
        torch.testing.assert_close(generator.log_prob(x), stepwise(generator, x), rtol=0, atol=1e-10)


@ENDS
def test_frequencies_are_the_probabilities(end: int | None, float64: torch.dtype) -> None:
    generator, every, n = tiny(end), sequences(end), 20_000
    with torch.no_grad():
        expected = n * generator.log_prob(every).exp()
    x = generator.sample(n)
    found = (x[:, None] == every).all(-1).sum(0)
    assert int(found.sum()) == n
    many = expected > 5
    pooled = [torch.cat([counts[many], counts[~many].sum()[None]]).numpy() for counts in (found, expected)]
    keep = pooled[1] > 0
    assert stats.chisquare(pooled[0][keep], pooled[1][keep]).pvalue > 1e-3


def test_rows_that_have_ended_change_no_other(float64: torch.dtype) -> None:
    """Sampled in one batch, from which rows are dropped as they end, and one by one."""
    for _ in range(3):
        generator = tiny(2, tokens=8, length=24, width=16)
        uniforms = torch.rand(100, 24)
        x = generator.sample(100, uniforms=uniforms)
        alone = [generator.sample(1, uniforms=row[None]) for row in uniforms]
        assert torch.equal(x, torch.cat(alone))


def test_rows_that_have_ended_cost_nothing() -> None:
    generator, positions = tiny(2, length=16), []
    generator.net.decoder.register_forward_hook(lambda module, args, out: positions.append(len(out)))
    x = generator.sample(512)
    needed = int((x != 2).sum() + (x == 2).any(1).sum())
    assert sum(positions) < 1.35 * needed + 16


def test_sequences_that_begin_alike_are_read_once() -> None:
    generator, positions = tiny(length=16), []
    generator.net.decoder.register_forward_hook(lambda module, args, out: positions.append(len(out)))
    x = generator.sample(100)
    assert positions[:4] == [1] + [len(x[:, :t].unique(dim=0)) for t in (1, 2, 3)]
    assert positions[6:] == [100] * 10


def test_what_follows_the_end_does_not_count(float64: torch.dtype) -> None:
    x = torch.tensor([[0, 2, 2, 2], [0, 2, 1, 0]])
    a, b = tiny(2).log_prob(x).tolist()
    assert a == b


def test_positions_are_seen_from_the_left_only(float64: torch.dtype) -> None:
    decoder = Decoder(width=8, layers=2, heads=2)
    h = torch.randn(3, 6, 8)
    other = h.clone()
    other[:, 4:] = torch.randn(3, 2, 8)  # not a shift, which the norm takes out
    a, b = decoder(h), decoder(other)
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert not torch.allclose(a[:, 4:], b[:, 4:])


def test_gradients_do_not_depend_on_the_batch_and_parts_agree(
    float64: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = tiny(2)
    x = sequences(2)
    with_graph = generator.log_prob(x)
    assert with_graph.requires_grad
    monkeypatch.setattr(transformer, "CACHED", 3 * LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(generator.log_prob(x), with_graph.detach())


@ENDS
def test_a_graph_of_it_holds_for_other_sequences(end: int | None, float64: torch.dtype) -> None:
    """As captured steps need: nothing in it depends on values."""
    generator, x = tiny(end), sequences(end)
    graph = make_fx(lambda x: generator.log_prob(x))(x[:8])
    torch.testing.assert_close(graph(x[-8:]), generator.log_prob(x[-8:]))


# ---- drawing by the inverse distribution function ------------------------------------------------


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    edges = torch.tensor([0.0, 0.49, 0.51, 1 - 2**-53, 1.0], dtype=torch.float64)
    assert drawn(logits, torch.zeros(4, dtype=torch.long), edges[:4]).tolist() == [1, 1, 2, 2]
    many = torch.full((1, 1000), -12.0).expand(4, 1000).clone()
    many[:, :900] = 0.3  # float32 sums of these end away from 1
    assert int(drawn(many, torch.arange(4), edges[1:]).max()) < 1000


def test_a_rare_token_is_drawn_where_float32_would_be_full() -> None:
    logits = torch.tensor([[0.0, -20.0]])  # 2e-9, below what float32 adds to 1
    assert drawn(logits, torch.tensor([0, 0]), torch.tensor([1 - 1e-9, 0.99], dtype=torch.float64)).tolist() == [1, 0]


def test_sampling_uses_one_number_a_token_and_leaves_the_rest_of_the_stream() -> None:
    generator = tiny(2)
    torch.manual_seed(1)
    first = generator.sample(10)
    after = torch.rand(())
    torch.manual_seed(1)
    uniforms = torch.rand(10, LENGTH, dtype=torch.float64)
    assert torch.equal(first, generator.sample(10, uniforms=uniforms))
    assert torch.equal(after, torch.rand(()))


# ---- training ------------------------------------------------------------------------------------


def test_training_learns_a_known_distribution() -> None:
    """Two words, the first three times as frequent as the second."""
    x = torch.tensor([[0, 1, 2, 2]] * 3 + [[1, 1, 0, 2]]).repeat(32, 1)
    generator = TokenTransformer(TOKENS, LENGTH, width=16, heads=2, end=2)
    history = Training(epochs=200, lr=1e-2, batch_size=128)(generator, x, seed=0)
    assert history["elbo"].iloc[-1] > history["elbo"].iloc[0] + 2
    with torch.no_grad():
        found = generator.log_prob(x[[0, 3]]).exp().tolist()
    assert found == pytest.approx([0.75, 0.25], abs=0.02)
    assert not pyro.get_param_store().keys()


def test_images_are_learnt() -> None:
    """Images with one bright row, each as likely as the others."""
    x = torch.stack([4 * torch.eye(3, dtype=torch.long)[k][:, None].expand(3, 3) for k in range(3)]).repeat(32, 1, 1)
    generator = PixelTransformer(5, (3, 3), width=16, heads=2)
    Training(epochs=200, lr=1e-2, batch_size=96)(generator, x, seed=0)
    with torch.no_grad():
        assert generator.log_prob(x[:3]).exp().tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    drawn_images = generator.sample(50)
    assert drawn_images.shape == (50, 3, 3)
    assert float((drawn_images[:, None] == x[:3]).flatten(2).all(-1).any(1).float().mean()) > 0.8


def test_pixels_are_in_reading_order(float64: torch.dtype) -> None:
    images = PixelTransformer(3, (2, 2), width=8, heads=2)
    words = TokenTransformer(3, 4, width=8, heads=2)
    words.load_state_dict(images.state_dict())
    x = sequences()
    torch.testing.assert_close(images.log_prob(x.view(-1, 2, 2)), words.log_prob(x))
    uniforms = torch.rand(20, 4)
    assert torch.equal(images.sample(20, uniforms=uniforms).flatten(1), words.sample(20, uniforms=uniforms))
    assert float(images.log_prob(x.view(-1, 2, 2)).exp().sum().detach()) == pytest.approx(1.0)


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3])
def test_answers_are_the_likeliest_tokens(width: int, float64: torch.dtype) -> None:
    net = TokenDecoder(7, 5, 8, width=8, heads=2)
    extra = torch.randn(6, 8, 8)
    prompt = torch.randint(7, (6, width))
    found = net.complete(prompt, 5, extra=extra)
    assert torch.equal(found, net.complete(prompt, 5, extra=extra, cached=False))
    read = torch.cat([prompt, found], 1)
    for t in range(5):
        logits = net(read[:, : width + t], extra=extra)[:, -1]
        assert torch.equal(found[:, t], logits.argmax(-1))
    assert not torch.equal(found, net.complete(prompt, 5))


def test_answers_end(float64: torch.dtype) -> None:
    net, prompt, extra = TokenDecoder(5, 5, 12, width=8, heads=2), torch.randint(5, (40, 3)), torch.randn(40, 12, 8)
    whole, ended = net.complete(prompt, 10, extra=extra), net.complete(prompt, 10, end=1, extra=extra)
    after = transformer.ended_before(whole, 1)
    assert bool(after.any())
    assert not bool(after.all(1).any())
    assert torch.equal(ended, torch.where(after, 1, whole))


# ---- modules, and bad input ----------------------------------------------------------------------


def test_copies_are_independent_and_states_load(float64: torch.dtype) -> None:
    generator, x = tiny(2), sequences(2)
    before = generator.log_prob(x).detach()
    twin, other = generator.copy(), tiny(2)
    other.load_state_dict(generator.state_dict())
    with torch.no_grad():
        for value in generator.parameters():
            value.add_(1.0)
    torch.testing.assert_close(twin.log_prob(x).detach(), before)
    torch.testing.assert_close(other.log_prob(x).detach(), before)
    assert not torch.allclose(generator.log_prob(x).detach(), before)


def test_it_is_a_generator_and_a_site_of_a_model() -> None:
    generator = check_generator(tiny(2))
    with pyro.plate("data", 7):
        assert pyro.sample("x", generator.distribution()).shape == (7, LENGTH)
    assert generator.sample(0).shape == (0, LENGTH)
    assert generator.log_prob(generator.sample(0)).shape == (0,)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (torch.tensor([[0, 1, 2, 1], [0, 3, 2, 1]]), ValueError, r"x\[1\] has token 3 at position 1: expected 0 to 2"),
        (torch.tensor([[0, -1, 2, 1]]), ValueError, r"x\[0\] has token -1 at position 1: expected 0 to 2"),
        (torch.zeros(2, 5, dtype=torch.long), ValueError, r"shape \(2, 5\): expected \(n, 4\)"),
        (torch.zeros(4, dtype=torch.long), ValueError, r"shape \(4,\): expected \(n, 4\)"),
        (torch.zeros(2, 4), TypeError, r"torch\.float32: expected integer tokens"),
        (torch.zeros(2, 4, dtype=torch.bool), TypeError, "expected integer tokens"),
    ],
    ids=["above", "below", "longer", "one", "float", "bool"],
)
def test_what_is_no_sequence_is_refused(x: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        tiny().log_prob(x)


def test_a_pixel_out_of_range_is_named_by_row_and_column() -> None:
    image = torch.zeros(1, 2, 2, dtype=torch.uint8)
    image[0, 1, 0] = 9
    with pytest.raises(ValueError, match=r"x\[0\] has token 9 at position \(1, 0\): expected 0 to 4"):
        PixelTransformer(5, (2, 2), width=8).log_prob(image)


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"width=10, heads=4: expected a width that the heads can share"):
        TokenTransformer(3, 4, width=10)
    with pytest.raises(ValueError, match=r"end=3: expected an integer of at most 2"):
        TokenTransformer(3, 4, end=3)
    with pytest.raises(ValueError, match=r"uniforms has shape \(3, 2\): expected \(3, 4\)"):
        tiny().sample(3, uniforms=torch.rand(3, 2))
    net = TokenDecoder(3, 3, 4, width=8)
    with pytest.raises(ValueError, match=r"length=4 after 2 tokens: expected at most 3"):
        net.complete(torch.zeros(1, 2, dtype=torch.long), 4)
    with pytest.raises(ValueError, match=r"prompt\[0\] has token 3 at position 1"):
        net.complete(torch.tensor([[0, 3]]), 2)
    with pytest.raises(ValueError, match=r"outputs=4, inputs=3: expected that what is written can be read"):
        TokenDecoder(3, 4, 4)
    cache = Cache(net.decoder, 1, 4)
    net(torch.zeros(1, 1, dtype=torch.long), cache)
    with pytest.raises(ValueError, match="2 positions after 1 cached ones"):
        net(torch.zeros(1, 2, dtype=torch.long), cache)
