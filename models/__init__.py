"""Model/guide pairs to run, read and imitate, and the data that they use.

Every file shows one way of writing a pair: plain functions (`normal_normal`, `beta_bernoulli`),
autoguides (`gaussian_regression`, `eight_schools`), PyroModules (`vae`). A *factory*, a function
without arguments that returns a fresh pair, is what the command line takes:
`banel fit models.vae:digits --lam 0,0.4`.
"""
