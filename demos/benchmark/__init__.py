"""What `demos.speed` is made of: problems, the ways to train them, and how time is taken and shown."""
