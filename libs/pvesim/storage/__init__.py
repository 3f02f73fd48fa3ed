"""Storages and their volumes."""
