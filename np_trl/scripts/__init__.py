"""Commands: the arguments and the `main` of each."""
