"""Games that are known by hand."""

from __future__ import annotations

import pytest
import torch

from sparseworks.core.errors import ShapeError
from sparseworks.evaluate import CartPole, ChannelAccess, Gridworld, IndependentActors

MAZE = ("..#", ".G#", "...")


def test_a_maze_has_the_moves_and_distances_that_it_shows():
    world = Gridworld(MAZE)
    assert world.features.shape == (7, 6) and Gridworld(MAZE, cells=True).features.equal(torch.eye(7))
    assert world.goal == 3 and world.shortest().tolist() == [2, 1, 1, 2, 1, 2]
    assert world.moves[0].tolist() == [0, 1, 2, 0]  # up: a wall; right; down; left: a wall
    found = world.transitions()
    assert found.state.shape == (24, 6) and found.end.sum() == 3
    assert torch.allclose(found.reward, found.end.float() - 1 / 7)


def test_steps_are_counted_to_the_goal_or_to_the_limit():
    world = Gridworld(MAZE)
    assert world.steps(torch.tensor([1, 2, 1, 0, 0, 0, 3])).tolist() == world.shortest().tolist()
    assert world.steps(torch.zeros(7, dtype=torch.long), limit=9).tolist() == [9, 9, 9, 9, 1, 9]


def test_a_maze_needs_one_goal_and_lines_of_one_length():
    for wrong in (("..", ".."), ("G.", "G."), ("G.", "...")):
        with pytest.raises(ShapeError):
            Gridworld(wrong)


def test_a_user_succeeds_alone_on_a_channel_that_is_free():
    game, phase = ChannelAccess(users=3, channels=4, hop=1), torch.tensor([0, 1, 2])
    action = torch.tensor([[1, 2, 3], [1, 1, 3], [0, 0, 4]])
    seen, reward = game.step(phase, 1, action)  # the primary user is on channels 1, 2 and 3: actions 2, 3 and 4
    assert reward.tolist() == [2, 0, 0]
    assert (
        seen.shape == (3, 3, 6) and seen[0, :, -1].tolist() == [1, 0, 1] and seen[0, 1, :-1].tolist() == [0, 0, 1, 0, 0]
    )


def test_seeds_of_actors_do_not_touch_one_another_and_alone_play_the_same():
    game = ChannelAccess()
    both, alone = IndependentActors(game, (0, 1), width=8), IndependentActors(game, (1,), width=8)
    assert torch.equal(both.core[game.users * 8 :], alone.core) and torch.equal(both.judge[8:], alone.judge)
    played = both.play(5, 4, torch.Generator().manual_seed(0))
    assert played.log_probability.shape == (2, 5, 4, 3) and played.reward.shape == played.value.shape == (2, 5, 4)
    played.log_probability[0].sum().backward()
    assert both.core.grad[: 3 * 8].any() and not both.core.grad[3 * 8 :].any()
    groups = both.pattern.counts(both.sites[0].shape, both.sites[0].size // 4)
    assert groups.tolist() == [8 * (game.seen + 8) // 4] * 6


def test_the_loss_is_that_of_advantage_actor_critic():
    game = ChannelAccess()
    model = IndependentActors(game, (0,), width=8)
    played = model.play(2, 2, torch.Generator().manual_seed(0))
    first = played.reward[..., 0] + 0.5 * played.reward[..., 1]
    error = torch.stack([first, played.reward[..., 1]], dim=-1) - played.value
    actors = -(played.log_probability.sum(-1) * error.detach() + 0.1 * played.entropy.sum(-1))
    wanted = (actors + error.square() / 2).mean()
    assert torch.allclose(model.loss(played, discount=0.5, entropy=0.1), wanted)


def test_a_pole_falls_as_it_does_in_gymnasium():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed: pip install 'sparseworks[rl]'")
    env, game = gymnasium.make("CartPole-v1"), CartPole()
    for seed, pushes in ((0, (0, 1, 0)), (1, (1,)), (2, (0, 1))):
        seen, end, state = env.reset(seed=seed)[0], False, None
        for step in range(100):
            action = pushes[step % len(pushes)]
            state, fallen = game.step(torch.tensor(seen) if state is None else state, torch.tensor(action))
            seen, _, end, _, _ = env.step(action)
            assert torch.allclose(state, torch.tensor(seen), atol=1e-5) and bool(fallen) == end
            if end:
                break
        assert end


def test_poles_beside_each_other_are_poles_alone():
    game = CartPole()
    state, action = game.begin(4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])
    assert state.shape == (4, 4) and state.abs().max() <= 0.05
    alone = torch.stack([game.step(s, a)[0] for s, a in zip(state, action, strict=True)])
    assert torch.allclose(game.step(state, action)[0], alone)
    assert game.step(torch.tensor([2.5, 0.0, 0.0, 0.0]), torch.tensor(0))[1]
