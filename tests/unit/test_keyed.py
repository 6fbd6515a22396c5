import torch
from scipy.stats import kstest

from lightning_modules.core.keyed import keyed_uniform, mix, seed_generators


def reference_mix(*keys: int) -> int:
    """SplitMix64 with the key as the gamma-stepped state, written again in plain integers."""
    state, mask = 0, (1 << 64) - 1
    for key in keys:
        state = ((state ^ (key & mask)) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_mix_and_tensor_form_agree_on_all_bits():
    key = mix(1, -5, 2**63)
    assert key == reference_mix(1, -5, 2**63)
    places = torch.tensor([0, 1, 17, 2**40])
    drawn = keyed_uniform(key, places)
    for place, value in zip(places.tolist(), drawn.tolist(), strict=True):
        bits = reference_mix(key, place)
        assert value == torch.tensor(((bits >> 41) + 0.5) * 2.0**-23, dtype=torch.float32).item()


def test_no_draw_reaches_one():
    """The place whose bits are all ones."""
    assert 0.9999998 < keyed_uniform(5, torch.tensor([5936221474785915633])).item() < 1.0


def test_neighbouring_keys_draw_other_numbers():
    first, second = (set(keyed_uniform(key, torch.arange(1024)).tolist()) for key in (0, 1))
    assert len(first & second) < 5


def test_draws_are_uniform_and_independent_between_streams():
    samples, ranks = torch.arange(4000)[:, None], torch.arange(25)[None]
    first, second = (keyed_uniform(mix(3, stream), samples, ranks).flatten() for stream in (0, 1))
    assert kstest(first.numpy(), "uniform").pvalue > 1e-3 and kstest(second.numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]) < 0.02
    assert first.min() > 0 and first.max() < 1


def test_a_draw_depends_on_its_own_place_alone():
    all_places = keyed_uniform(7, torch.arange(100))
    assert torch.equal(keyed_uniform(7, torch.arange(40, 60)), all_places[40:60])


def test_seeded_dropout_repeats():
    seed_generators(1, 2, 3)
    first = torch.rand(5)
    torch.rand(7)
    seed_generators(1, 2, 3)
    assert torch.equal(first, torch.rand(5))
    seed_generators(1, 2, 4)
    assert not torch.equal(first, torch.rand(5))
