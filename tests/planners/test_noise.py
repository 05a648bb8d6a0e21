import torch
from hypothesis import given
from hypothesis import strategies as st

from planners import CEM, noise_table
from planners.noise import key_seed

KEYS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (7, 123456, 3)]


def test_shape_is_that_of_the_planner() -> None:
    planner = CEM(candidates=40, iterations=2, horizon=3)
    assert noise_table(KEYS, planner, 10).shape == (5, 2, 40, 3, 10)
    assert torch.equal(noise_table(KEYS, planner, 10), noise_table(KEYS, (2, 40, 3), 10))
    assert noise_table(KEYS, planner, 10).dtype == torch.float32


def test_row_depends_on_its_key_alone() -> None:
    table = noise_table(KEYS, (3, 33, 5), 7)
    for row, key in zip(table, KEYS):
        assert torch.equal(noise_table([key], (3, 33, 5), 7)[0], row)
    assert torch.equal(noise_table(KEYS[::-1], (3, 33, 5), 7), table.flip(0))


def test_global_generator_is_neither_read_nor_advanced() -> None:
    state = torch.random.get_rng_state()
    noise_table(KEYS, (1, 20, 2), 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_is_standard_normal_and_unrelated_between_neighbours() -> None:
    noise = noise_table([(0, episode, replan) for episode in range(20) for replan in range(10)], (1, 50, 5), 4)
    flat = noise.flatten(1).double()
    assert abs(flat.mean().item()) < 0.01
    assert abs(flat.std().item() - 1) < 0.01
    correlation = torch.corrcoef(flat) - torch.eye(200, dtype=torch.float64)
    assert correlation.abs().max() < 6 / 1000**0.5


def test_seeds_are_pinned() -> None:
    assert [key_seed(key) for key in ((), (0,), (0, 0, 0), (1, 2, 3))] == [
        0,
        5225608189600411232,
        3042070510729267593,
        8119519447357249846,
    ]
    expected = torch.tensor([-0.0811713, -1.3404367, -0.2126839, 0.6658005])
    torch.testing.assert_close(
        noise_table([(1, 2, 3)], (1, 8, 1), 2)[0, 0, :2, 0].flatten(), expected, atol=1e-5, rtol=0
    )


@given(st.lists(st.integers(-(2**63), 2**64), max_size=4), st.lists(st.integers(-(2**63), 2**64), max_size=4))
def test_different_keys_have_different_seeds(one: list[int], other: list[int]) -> None:
    seeds = key_seed(tuple(one)), key_seed(tuple(other))
    assert all(0 <= seed < 2**63 for seed in seeds)
    same = [n % 2**64 for n in one] == [n % 2**64 for n in other]
    assert (seeds[0] == seeds[1]) == same


def test_small_keys_do_not_collide_in_the_bits_that_torch_uses() -> None:
    keys = [(seed, episode, replan) for seed in range(3) for episode in range(200) for replan in range(10)]
    assert len({key_seed(key) % 2**32 for key in keys}) == len(keys)


def test_action_dim_and_key_count_are_free() -> None:
    assert noise_table([(1,)], (1, 1, 1), 1).shape == (1, 1, 1, 1, 1)
    assert noise_table([], (1, 4, 2), 3).shape == (0, 1, 4, 2, 3)
