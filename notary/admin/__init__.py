"""``notary-admin``: what an operator does to the stores of the two daemons, from the command line."""
