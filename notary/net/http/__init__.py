"""HTTP/1.1 for servers: requests in, whole answers out."""
