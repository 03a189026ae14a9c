"""Toy expectations, hard attention and REINFORCE run small, and what they show is true."""

import gymnasium
import pytest
import torch
from example_runs import assert_wrote, rows, run
from stats import check, limit
from torch.distributions import Categorical, Normal

import propc

# -- toys ---------------------------------------------------------------------------------


def deviations(found, factor=1.0):
    return [abs(factor * row["mean"] - row["exact"]) / (row["stderr"] + 1e-9) for row in found]


@pytest.mark.statistical
def test_toys(example, tmp_path):
    toys, out = example("toys"), tmp_path / "out"
    run("toys", out)
    assert_wrote(out, "table.txt", "results.json", "normal.png", "bernoulli.png")
    measured = [row for row in rows(out) if "toy" in row]
    ends = {row["estimator"]: row["end"] for row in rows(out) if "end" in row}
    chosen = {row["estimator"] for row in measured}
    assert chosen == {*toys.NORMAL, *toys.BERNOULLI}
    bound = limit(len(measured))
    for name in chosen:
        found = [row for row in measured if row["estimator"] == name]
        assert (max(deviations(found)) < bound) == (name not in toys.BIASED), name
        if name in toys.NORMAL:  # on the other toy the biased ones are the twins
            assert max(deviations(found, 1.1)) > bound, f"no power: {name}"
    assert set(ends) == set(toys.BERNOULLI)
    assert ends["enumerate"] < ends["rloo, 4 draws"] + 0.02 < 0.3 < ends["lr, no baseline"]


@pytest.mark.statistical
def test_variances_of_toys(example):
    """Against variances in closed form: 4 and 4 (1 - k)² + 8 for the pathwise gradients of (x - k)²."""
    toys, draws = example("toys"), 50_000
    for k in (-2.0, 1.5):
        found = toys.gradients(
            lambda loc, scale, k=k: toys.normal.with_estimator("rp")(loc, scale, torch.tensor(k), "(x - k)²"),
            (1.0, 1.0),
            draws,
        )
        squares = (found - found.mean(0)).square()
        stderr = squares.std(0) / draws**0.5
        known = torch.tensor([4.0, 4 * (1 - k) ** 2 + 8], dtype=found.dtype)
        assert ((squares.mean(0) - known).abs() < limit(4) * stderr).all(), k
        assert ((squares.mean(0) - 1.15 * known).abs() > limit(4) * stderr).all(), "no power"


@pytest.mark.parametrize("toy", ["(x - k)²", "exp(-k x²)", "cos(k x)"])
def test_expected_costs_of_toys(example, toy):
    """By quadrature, at other values than those of the example."""
    found = example("toys").TOYS[toy]
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    loc, scale = torch.tensor([0.3, 0.8], dtype=torch.float64)
    for k in torch.tensor([0.2, 1.7, 3.0], dtype=torch.float64):
        mean = torch.trapezoid(found.cost(x, k) * Normal(loc, scale).log_prob(x).exp(), x)
        torch.testing.assert_close(found.expected(loc, scale, k), mean, rtol=1e-9, atol=1e-9)


# -- hard attention -----------------------------------------------------------------------


def test_hard_attention(example, tmp_path):
    out = tmp_path / "out"
    run("hard_attention", out, "--estimators", "guess enumerated")
    attention = example("hard_attention")
    learners = attention.learners(["guess enumerated"])
    files = (f"{attention.stem(learner.label)}.pt" for learner in learners)
    assert_wrote(out, "table.txt", "results.json", "training.png", "glimpses.png", *files)
    last = {row["learner"]: row["accuracy"][-1] for row in rows(out)}
    first = {row["learner"]: row["accuracy"][0] for row in rows(out)}
    assert len(last) == len(learners) == 3
    assert max(first.values()) < 0.25
    assert 0.25 < last["random places, guess enumerated"] < last["chosen places, guess enumerated"] - 0.1
    assert last["whole digit, guess enumerated"] > 0.9
    graph = (out / "graph.txt").read_text()
    assert all(f"%place{t} " in graph for t in range(attention.GLIMPSES))


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["guess enumerated", "guess enumerated, places local"])
def test_gradients_of_hard_attention(example, monkeypatch, name):
    """At the weights that choose the places, with two glimpses, against the joint enumeration of all choices."""
    attention = example("hard_attention")
    monkeypatch.setattr(attention, "GLIMPSES", 2)
    data, reader, curiosity = attention.digits(), attention.Glimpses(hidden=8), torch.tensor(0.01)
    for layer in (reader.where, reader.what[2]):  # far from where all choices are alike
        torch.nn.init.normal_(layer.weight)

    def gradients(estimator, batch, calls):
        program = attention.mistakes.with_estimator(estimator)
        rows = data.images[:1].expand(batch, -1), data.labels[:1].expand(batch)
        costs = (program(reader, *rows, curiosity).mean() for _ in range(calls))
        return torch.stack([torch.autograd.grad(cost, reader.where.bias)[0] for cost in costs])

    (wanted,) = gradients("enumerate", 1, 1)
    draws = gradients(attention.ESTIMATORS[name], 200, 100)  # the others are too noisy for a check with power
    check(draws, wanted, twin=1.3)


def test_glimpses_are_patches_of_the_digit(example):
    """What the network sees of place p is the 3 x 3 patch whose corner is at p, and nothing else."""
    attention = example("hard_attention")
    reader = attention.Glimpses()
    picture = torch.randn(1, 64)
    for place in (0, 13, attention.PLACES - 1):
        y, x = divmod(place, attention.ACROSS)
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[y : y + attention.PATCH, x : x + attention.PATCH] = True

        def logits(image, place=place):
            return reader(image, lambda log_p, name: torch.full((len(log_p),), place)).logits

        other = torch.randn(1, 64)
        same, changed = (torch.where(mask.flatten(), picture, other) for mask in (inside, ~inside))
        torch.testing.assert_close(logits(same), logits(picture))
        assert (logits(changed) - logits(picture)).abs().max() > 1e-4


def test_choices_of_readers(example):
    attention = example("hard_attention")
    log_p = torch.randn(1000, 5).log_softmax(-1)
    torch.testing.assert_close(attention.entropy(log_p), Categorical(logits=log_p).entropy())
    assert torch.equal(attention.best(log_p, ""), log_p.argmax(-1))
    assert (torch.bincount(attention.best(torch.zeros(1000, 5), "")) > 100).all()


# -- REINFORCE ----------------------------------------------------------------------------


def test_reinforce(example, tmp_path):
    out = tmp_path / "out"
    run("reinforce", out)
    reinforce = example("reinforce")
    runs = {row["method"]: row for row in rows(out)}
    assert_wrote(out, "table.txt", "results.json", "learning.png", *(f"{reinforce.stem(name)}-0.pt" for name in runs))
    assert set(runs) == set(reinforce.METHODS)
    for name, row in runs.items():
        assert row["returns"][0] < 30 < 50 < max(row["returns"]), name
        assert row["returns"][0] == runs["loo"]["returns"][0], name  # all start from the same policy
        assert 50 < row["played"] <= 500, name
    assert runs["loo"]["variance"] < runs["loo, whole return"]["variance"]
    graph = (out / "graph.txt").read_text()
    assert "cost.0  -> action0  [" in graph  # the first reward knows nothing of later actions
    assert "cost.2  -> action0..action2 through" in graph
    policy = reinforce.Policy()
    policy.load_state_dict(torch.load(out / "loo-0.pt"))


def test_black_box_is_the_real_environment(example):
    """Step by step what `gymnasium.make` gives from the same state by the same actions, to the end of an episode."""
    game, env = example("reinforce").CartPole(3), gymnasium.make("CartPole-v1")
    env.reset(seed=1)
    state = game.reset()
    state[1] = torch.as_tensor(env.unwrapped.state)
    assert not torch.equal(state[0], state[1])
    terminated, count = False, 0
    while not terminated:
        action, count = torch.randint(2, (3,)), count + 1
        seen, reward, terminated, _, _ = env.step(action[1].item())
        state, rewards, over = game.step(state, action)
        assert torch.equal(state[1].float(), torch.from_numpy(seen))
        assert (rewards[1].item(), over[1].item()) == (reward, terminated)
    assert 5 < count < 499
    after, *_ = game.step(state, action)  # what is over goes on, and does not begin anew
    assert after[1, 2].abs() > state[1, 2].abs()


@pytest.mark.parametrize("name", ["loo", "no baseline", "loo, whole return"])
def test_gradient_is_reinforce(example, name):
    """The same numbers as by hand: log-probabilities times rewards-to-go, less the mean of the other episodes."""
    reinforce, batch, horizon = example("reinforce"), 6, 60
    method = reinforce.METHODS[name]
    game, policy = reinforce.CartPole(batch), reinforce.Policy()
    start = game.reset()
    torch.manual_seed(1)
    loss = reinforce.program(name)(policy, game.step, start, horizon, method.split)
    found = torch.autograd.grad(loss.mean(), list(policy.parameters()))

    torch.manual_seed(1)
    state, alive, scores, rewards = start, torch.ones(batch, dtype=torch.bool), [], []
    for _ in range(horizon):
        law = Categorical(logits=policy(state))
        action = law.sample()
        scores.append(torch.where(alive, law.log_prob(action), 0.0))
        state, reward, over = game.step(state, action)
        rewards.append(torch.where(alive, reward, 0.0))
        alive = alive & ~over
    rewards = torch.stack(rewards)
    assert torch.equal(-loss.detach(), rewards.sum(0))
    assert alive.sum() < batch
    to_go = rewards.flip(0).cumsum(0).flip(0) if method.split else rewards.sum(0).expand(horizon, -1)
    others = (to_go.sum(1, keepdim=True) - to_go) / (batch - 1)
    weights = to_go - (others if method.baseline else 0.0)
    by_hand = torch.autograd.grad(-(torch.stack(scores) * weights).sum(0).mean(), list(policy.parameters()))
    for one, other in zip(found, by_hand):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert (one - 1.05 * other).abs().max() > 1e-3


def test_the_environment_compiles_no_new_graph(example):
    reinforce = example("reinforce")
    game, policy, program = reinforce.CartPole(4), reinforce.Policy(), propc.compile(reinforce.episode)
    for _ in range(4):
        program(policy, game.step, game.reset(), 3)
    assert program.compiler.traces == 1
