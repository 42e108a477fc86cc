"""The life of a process: flags, configuration, start, signals, reload, stop; alone or as a parent with workers."""
