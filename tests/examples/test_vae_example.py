"""The discrete VAE runs, goes on where it stopped, and its bounds are what they say."""

import gzip
import itertools
import struct

import pytest
import torch
from example_runs import assert_wrote, rows, run
from stats import assert_rejected, assert_unbiased

FILES = (
    "table.txt",
    "table.md",
    "results.json",
    "training.png",
    "pictures.png",
    "compare-first.txt",
    "lr-0.pt",
    "vimco-samples-4-0.pt",
)


FEW = ("lr", "rloo:samples=4", "vimco:samples=4", "st_gumbel", "local")  # those that are compared below


@pytest.mark.parametrize(
    "options", [(), ("--categories", "5", "--estimators", *FEW)], ids=["coins", "dice, some estimators"]
)
def test_discrete_vae(options, tmp_path, example):
    out = tmp_path / "out"
    run("discrete_vae", out, *options)
    assert_wrote(out, *FILES)
    estimators = set(FEW if options else example("discrete_vae").ESTIMATORS)
    assert len(estimators) >= (5 if options else 7)
    trained = {row["estimator"]: row for row in rows(out) if "curve" in row}
    noise = {(row["estimator"], row["stage"]): row for row in rows(out) if "stage" in row}
    assert set(trained) == estimators
    assert set(noise) == set(itertools.product(estimators, ("first", "trained")))
    for name, row in trained.items():
        assert row["curve"][-1]["test_elbo"] > row["curve"][0]["test_elbo"], name
        assert row["test_bound"] > row["test_elbo"], name
        assert name in (out / "table.txt").read_text()
    variance = {name: noise[name, "first"]["variance"] for name in estimators}
    assert variance["rloo:samples=4"] < variance["lr"] / 2
    assert variance["st_gumbel"] < variance["lr"] / 10
    assert variance["local"] < variance["lr"] / 10
    bias = {name: noise[name, "first"]["bias"] / noise[name, "first"]["stderr"] for name in estimators}
    assert bias["lr"] < 2
    assert bias["rloo:samples=4"] < 2
    assert bias["st_gumbel"] > 4


# -- the command line ---------------------------------------------------------------------


def test_estimators_are_read(example):
    discrete_vae = example("discrete_vae")
    assert discrete_vae.parse("lr").baseline == "loo"
    assert discrete_vae.parse("lr:baseline=None").baseline is None
    assert discrete_vae.parse("lr:baseline=moving_average").baseline == "moving_average"
    chosen = discrete_vae.parse("tp:weights=past,k_interval=2")
    assert (chosen.weights, chosen.k_interval) == ("past", 2)


@pytest.mark.parametrize(
    ("name", "says"), [("lrr", "unknown estimator 'lrr'"), ("lr:base=None", "unknown option 'base' of estimator 'lr'")]
)
def test_unknown_estimators_are_refused(example, tmp_path, capsys, name, says):
    with pytest.raises(SystemExit):
        example("discrete_vae").main(["--smoke", "--out", str(tmp_path), "--estimators", name])
    assert says in capsys.readouterr().err


def test_estimators_that_cannot_work_are_refused_before_training(example, tmp_path):
    with pytest.raises(SystemExit, match=r"at site 'z' .*no rsample"):
        example("discrete_vae").main(["--smoke", "--out", str(tmp_path), "--estimators", "lr", "rp"])
    assert list(tmp_path.iterdir()) == []


# -- bounds -------------------------------------------------------------------------------


@pytest.fixture(params=[None, 3], ids=["coins", "dice"])
def small(request, example):
    """A model whose latents can be counted out, with a prior that is not uniform, and two images."""
    model = example("vae.model").DiscreteVAE(pixels=5, latents=2, categories=request.param, hidden=4).double()
    with torch.no_grad():
        for value in model.parameters():
            value.normal_()
    return model, torch.bernoulli(torch.full((2, 5), 0.5)).double()


def exact_bounds(model, x):
    """ELBO and log-likelihood of images [B, pixels], by summing over all latents z [Z, 1, *event]."""
    sides = torch.eye(model.event[1]) if len(model.event) == 2 else torch.tensor([0.0, 1.0])
    z = torch.stack([torch.stack(choice) for choice in itertools.product(sides, repeat=model.event[0])])
    z = z.to(x.dtype).unsqueeze(1)
    with torch.no_grad():
        q = model.posterior(x).log_prob(z).sum(-1)
        joint = model.log_likelihood(x, z) + model.prior(1).log_prob(z).sum(-1)
    torch.testing.assert_close(q.logsumexp(0), torch.zeros(2).to(q))
    return (q.exp() * (joint - q)).sum(0), joint.logsumexp(0)


@pytest.mark.statistical
def test_the_model_costs_its_negative_elbo(small):
    model, x = small
    elbo, _ = exact_bounds(model, x)
    draws = torch.stack([-model(x.repeat(5000, 1)).detach().reshape(5000, 2) for _ in range(4)]).flatten(0, 1)
    assert_unbiased(draws, elbo)
    assert_rejected(1.01 * draws, elbo)


def test_the_bound_over_all_latents_is_the_likelihood(small):
    model, x = small
    _, likelihood = exact_bounds(model, x)
    torch.testing.assert_close(-model.with_estimator("enumerate")(x, bound=True).detach(), likelihood)


@pytest.mark.statistical
def test_weights_give_the_elbo_and_the_likelihood(small):
    model, x = small
    elbo, likelihood = exact_bounds(model, x)
    weights = model.log_weights(x, 20_000)
    assert_unbiased(weights, elbo)
    assert_rejected(1.02 * weights, elbo)
    assert_unbiased((weights - likelihood).exp(), torch.ones_like(elbo))
    assert_rejected((weights - likelihood + 0.05).exp(), torch.ones_like(elbo))


def test_more_draws_tighten_the_bound(small, example):
    model, x = small
    bounds = example("vae.bounds")
    elbo, likelihood = (bound.mean().item() for bound in exact_bounds(model, x))
    assert bounds.elbo(model, x, 20_000) == pytest.approx(elbo, abs=0.05)
    assert elbo + 0.05 < bounds.multi_sample(model, x, 20_000) == pytest.approx(likelihood, abs=0.05)


def test_measuring_draws_nothing_from_a_training(small, example):
    model, x = small
    before = torch.get_rng_state()
    assert example("vae.bounds").elbo(model, x) == example("vae.bounds").elbo(model, x)
    assert torch.equal(torch.get_rng_state(), before)


# -- training -----------------------------------------------------------------------------


def train(example, path, epochs, rate=1e-2):
    """A short run on noise; goes on from the checkpoint where there is one."""
    training, data = example("vae.training"), example("vae.data")
    torch.manual_seed(1)
    images = data.split(torch.rand(40, 2, 3), torch.rand(10, 2, 3))
    model = example("vae.model").DiscreteVAE(6, latents=3, hidden=4).with_estimator("lr")
    made = training.Run(model, training.Plan(epochs=epochs, batch=16, rate=rate, every=2))
    if path.exists():
        made.restore(path)
    training.train(made, images, path)
    return made


def test_a_run_that_goes_on_ends_as_if_it_had_not_stopped(example, tmp_path):
    whole = train(example, tmp_path / "whole.pt", 6)
    train(example, tmp_path / "parts.pt", 2)
    parts = train(example, tmp_path / "parts.pt", 6)
    assert [row["epoch"] for row in parts.curve] == [2, 4, 6]
    assert [row["test_elbo"] for row in parts.curve] == [row["test_elbo"] for row in whole.curve]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name
    assert not (tmp_path / "parts.part").exists()


def test_another_plan_is_refused(example, tmp_path):
    train(example, tmp_path / "run.pt", 2)
    with pytest.raises(ValueError, match=r"run.pt was made with .*'rate': 0.01.* not .*'rate': 0.1"):
        train(example, tmp_path / "run.pt", 2, rate=0.1)


# -- images -------------------------------------------------------------------------------


def idx(values, kind=0x08):
    """The bytes of an idx file."""
    return struct.pack(f">2x2B{values.dim()}I", kind, values.dim(), *values.shape) + values.numpy().tobytes()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_mnist_files_are_read(example, tmp_path, packed):
    pixels = {stem: torch.randint(256, (n, 3, 2), dtype=torch.uint8) for stem, n in (("train", 5), ("t10k", 4))}
    for (stem, values), joint in zip(pixels.items(), "-."):
        path = tmp_path / f"{stem}-images{joint}idx3-ubyte"
        path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(idx(values)) if packed else idx(values))
    images = example("vae.data").load(tmp_path)
    torch.testing.assert_close(images.train, pixels["train"].flatten(1) / 255)
    assert images.shape == (3, 2)
    assert images.test.shape == (4, 6)
    certain = {0: 0.0, 255: 1.0}
    for intensity, pixel in zip(pixels["t10k"].flatten().tolist(), images.test.flatten().tolist()):
        assert pixel == certain.get(intensity, pixel)
        assert pixel in (0.0, 1.0)


def test_idx_of_other_types(example, tmp_path):
    path = tmp_path / "values-idx2-float"
    path.write_bytes(struct.pack(">2x2B2I4f", 0x0D, 2, 2, 2, 1.5, -2, 3, 4))
    assert example("vae.data").read_idx(path).tolist() == [[1.5, -2], [3, 4]]


def test_bad_idx_files_are_refused(example, tmp_path):
    read = example("vae.data").read_idx
    whole = idx(torch.zeros(2, 3, dtype=torch.uint8))
    for data, says in ((b"PNG!", "is no idx file"), (whole[:-1], "holds 5 values"), (b"", "is no idx file")):
        path = tmp_path / "bad"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=says):
            read(path)
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte"):
        example("vae.data").load(tmp_path)


def test_digits_are_split_and_binary(example):
    images = example("vae.data").load()
    assert len(images.train) + len(images.test) == 1797
    assert images.shape == (8, 8)
    for binary in (images.seen, images.test):
        assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert (images.seen - images.train).mean().abs() < 0.01  # drawn with the intensity as probability
