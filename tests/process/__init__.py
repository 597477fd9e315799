"""Tests with real processes, forks and signals; nothing is mocked."""
