"""A variational autoencoder with discrete latents: images, model, training, measurements and pictures."""
