"""What runs inside containers: a runner for each language, mounted read-only."""
