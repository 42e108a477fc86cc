"""Several processes of one daemon: a parent that holds the sockets, and workers that are ordinary daemons."""
