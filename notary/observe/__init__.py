"""What an operator sees of a running daemon: logs, metrics, readiness, reports, the debug server, the manhole."""
