"""What `demos.tokens` writes texts with: a density over texts, and a policy with its objectives."""
