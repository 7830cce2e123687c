"""Dockerfile text → instructions → layers and an image in the store."""
