"""Model/guide pairs to run, read and imitate, and the data that they use.

Every file shows one way of writing a pair: plain functions (`normal_normal`, `beta_bernoulli`),
autoguides (`gaussian_regression`, `eight_schools`, `logistic`, and over two plates `radon`), a
distribution of one's own (`mixture`), PyroModules (`vae`, and with two levels `hierarchical_vae`). A
*factory*, a function without arguments that returns a fresh pair, is what the command line takes:
`banel fit models.vae:digits --lam 0,0.4`.
"""
