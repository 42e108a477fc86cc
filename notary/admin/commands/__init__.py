"""The commands of ``notary-admin``, one module each."""
