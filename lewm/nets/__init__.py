"""Networks: encoders turn pixels into latent tokens, predictors move latent tokens one action block ahead."""
