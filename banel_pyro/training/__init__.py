"""Training: the loop, its checks, and what stops it."""
