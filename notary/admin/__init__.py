"""``notary-admin``: the command line that operators use on the stores of both daemons."""
