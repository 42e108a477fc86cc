"""The server daemon: serves signed metadata, validates what is published, signs what it holds the keys for."""
