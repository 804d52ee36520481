"""The search for the noise distribution with the lowest variance that meets a privacy target."""
