"""Stores: where logs live."""
