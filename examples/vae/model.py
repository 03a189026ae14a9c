"""The model: one module, whose cost propc compiles. Nothing in it knows of estimators."""

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, OneHotCategorical, kl_divergence

import propc


@propc.compile
class DiscreteVAE(nn.Module):
    """Binary pixels explained by `latents` discrete choices: coins, or with `categories` dice of so many sides.

    Encoder, decoder and the prior of each latent are learned.
    """

    def __init__(self, pixels: int, latents: int = 20, categories: int | None = None, hidden: int = 200):
        super().__init__()
        self.event = (latents,) if categories is None else (latents, categories)
        codes = torch.Size(self.event).numel()
        self.family = Bernoulli if categories is None else OneHotCategorical
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, codes))
        self.decoder = nn.Sequential(nn.Linear(codes, hidden), nn.ReLU(), nn.Linear(hidden, pixels))
        self.prior_logits = nn.Parameter(torch.zeros(self.event))

    def forward(self, x: Tensor, bound: bool = False) -> Tensor:
        """What binary images [B, pixels] cost, [B]: their negative ELBO, or a multi-sample bound in its place.

        The ELBO's KL term does not pass the random choice. The bound is over the samples of the estimator, such as
        `vimco`, and needs what one draw has for a weight.
        """
        posterior = self.posterior(x)
        z = propc.sample(posterior, "z")
        if bound:
            return -propc.bound(self.log_weight(x, z, posterior), "bound")
        distortion = propc.cost(-self.log_likelihood(x, z), "distortion")
        return distortion + propc.cost(kl_divergence(posterior, self.prior(len(x))).sum(-1), "rate")

    def posterior(self, x: Tensor) -> Distribution:
        """q(z|x), of batch shape [B, latents]."""
        return self.family(logits=self.encoder(x).unflatten(-1, self.event))

    def prior(self, batch: int) -> Distribution:
        """p(z), of batch shape [batch, latents]."""
        return self.family(logits=self.prior_logits.expand(batch, *self.event))

    def decode(self, z: Tensor) -> Tensor:
        """Latents [..., *event] to logits of pixels [..., pixels]."""
        return self.decoder(z.flatten(-len(self.event)))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x|z), summed over pixels."""
        return Bernoulli(logits=self.decode(z)).log_prob(x).sum(-1)

    def log_weight(self, x: Tensor, z: Tensor, posterior: Distribution) -> Tensor:
        """log p(x, z)/q(z|x) at draws from q."""
        rate = posterior.log_prob(z) - self.prior(len(x)).log_prob(z)
        return self.log_likelihood(x, z) - rate.sum(-1)

    @torch.no_grad()
    def log_weights(self, x: Tensor, samples: int) -> Tensor:
        """That of several draws for each image, [samples, B].

        Their mean estimates the ELBO; the logarithm of the mean of their exponentials is a tighter bound
        (Burda et al. 2016, "Importance weighted autoencoders").
        """
        posterior = self.posterior(x)
        return self.log_weight(x, posterior.sample((samples,)), posterior)
