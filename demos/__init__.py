"""Things to run and look at: `python -m demos.NAME`, and `--help` says what each one shows."""
