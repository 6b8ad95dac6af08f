"""Rewrites that XLA for CPUs needs, each beside its plain formula."""
