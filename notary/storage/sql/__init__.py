"""Both stores on SQL databases."""
