"""Backbones: one file per library, one table of names (`registry`)."""
